"""Prototypes: mini-batch k-means over embeddings, kept on the server and sent to devices (v1)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from streamsplit.errors import EncoderError
from streamsplit.learning.seeding import squared_distances
from streamsplit.refinement.kmeans import weighted_k_means


class Nearest(NamedTuple):
    """For every row: index of the nearest prototype [n], and the Euclidean distance to it [n]."""

    prototype: np.ndarray
    distance: np.ndarray


class Prototypes:
    """`count` centres that follow a stream of embeddings (Sculley 2010), memory count x d.

    The first 3 x count rows seed the centres (k-means); afterwards each centre is the running mean of the rows that
    were nearest to it, with at most `memory` rows of inertia so that it can follow a drift. A centre that nobody
    claimed for long is moved to a row that is far from all.
    """

    def __init__(self, count: int = 50, dim: int = 128, *, memory: float = 500.0, seed: int = 0) -> None:
        if count < 1 or dim < 1:
            raise EncoderError(f"got {count} prototypes of {dim} dimensions, expected at least 1 of each")
        self.count, self.dim, self.memory = count, dim, memory
        self.centres = np.zeros((0, dim))
        self.claims = np.zeros(0)  # rows that each centre stands for, at most `memory`
        self._idle = np.zeros(0, dtype=np.int64)  # rows seen since a centre was last claimed
        self._waiting = np.zeros((0, dim))
        self.rng = np.random.default_rng(seed)

    @property
    def ready(self) -> bool:
        """True once the centres are seeded."""
        return len(self.centres) > 0

    def observe(self, z: np.ndarray) -> None:
        """Takes a batch of embeddings z [n, d]; raises EncoderError on a wrong width or NaN."""
        z = np.atleast_2d(np.asarray(z, dtype=np.float64))
        if z.shape[1] != self.dim or not np.isfinite(z).all():
            raise EncoderError(f"got embeddings {z.shape}, expected finite [n, {self.dim}]")
        if not self.ready:
            self._waiting = np.concatenate([self._waiting, z])
            if len(self._waiting) < 3 * self.count:
                return
            z, self._waiting = self._waiting, np.zeros((0, self.dim))
            self._seed(z)
        self._update(z)

    def nearest(self, z: np.ndarray) -> Nearest:
        """The nearest prototype of every row z [n, d]; raises EncoderError before the centres are seeded."""
        if not self.ready:
            raise EncoderError(f"got no prototypes yet, expected {3 * self.count} embeddings first")
        distance = np.sqrt(squared_distances(np.atleast_2d(np.asarray(z, dtype=np.float64)), self.centres))
        index = distance.argmin(axis=1)
        return Nearest(index, distance[np.arange(len(index)), index])

    def state(self) -> dict[str, np.ndarray]:
        """Everything but the random state, for a snapshot."""
        return {"centres": self.centres, "claims": self.claims, "idle": self._idle, "waiting": self._waiting}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Takes what `state` gave."""
        self.centres, self.claims = np.array(state["centres"]), np.array(state["claims"])
        self._idle, self._waiting = np.array(state["idle"]), np.array(state["waiting"])

    def _seed(self, z: np.ndarray) -> None:
        self.centres, _ = weighted_k_means(z, np.ones(len(z)), self.count, self.rng, rounds=5)
        self.claims = np.zeros(self.count)
        self._idle = np.zeros(self.count, dtype=np.int64)

    def _update(self, z: np.ndarray) -> None:
        distance = np.sqrt(squared_distances(z, self.centres))
        owner = distance.argmin(axis=1)
        self._idle += len(z)
        for centre in np.unique(owner):
            rows = z[owner == centre]
            held = min(self.claims[centre], self.memory)
            self.centres[centre] = (held * self.centres[centre] + rows.sum(axis=0)) / (held + len(rows))
            self.claims[centre] = min(held + len(rows), self.memory)
            self._idle[centre] = 0
        for centre in np.flatnonzero(self._idle > 20 * self.count):
            far = distance.min(axis=1) ** 2
            if far.sum() <= 0:
                break
            row = int(self.rng.choice(len(z), p=far / far.sum()))
            self.centres[centre], self.claims[centre], self._idle[centre] = z[row], 1.0, 0
            distance[:, centre] = np.linalg.norm(z - z[row], axis=1)
