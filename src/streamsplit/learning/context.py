"""Uncertainty from context: how much a window says about what is heard close to it in time, learned without labels."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from streamsplit.errors import CheckpointError, ConfigError

Array = NDArray[np.float32]
LEAST_WINDOWS = 128  # remembered before the first fit
REFIT_WINDOWS = 128  # observed between two fits
_SMALLEST = 1e-9
_FIRST_ROUNDS, _ROUNDS = 10, 1  # of k-means
_FIRST_STEPS, _STEPS = 60, 10  # of gradient descent


class ContextUncertainty:
    """How little a window says about which of C centres its neighbours in time are close to.

    Sound of one source goes on for a while, so neighbours are labels for free. A linear softmax head predicts from an
    embedding the mean soft assignment, softmax(cosine / `temperature`), of the windows within `reach` of it to
    centres of all windows remembered. The uncertainty is log C less the Kullback-Leibler divergence of that prediction
    from what is expected of any window: a window which says nothing about what is heard around it (silence, an
    ambiguous noise) is uncertain, however typical it is. Distances are counted in window indices, over gaps too: a
    device mostly goes on hearing what it heard before the gap.

    The newest `windows` embeddings are held as fp16; every REFIT_WINDOWS observations centres (spherical k-means) and
    head (Nesterov's descent on the penalised cross-entropy) go on from where they were. No randomness is involved.
    """

    def __init__(
        self, dim: int, *, centres: int = 32, windows: int = 2048, reach: int = 8, temperature: float = 0.1,
        penalty: float = 0.1,
    ) -> None:  # fmt: skip
        if dim < 1 or centres < 2 or windows < max(LEAST_WINDOWS, centres) or reach < 1:
            raise ConfigError(
                f"got dim={dim}, centres={centres}, windows={windows}, reach={reach}; expected at least 1 dimension, "
                f"2 centres, {max(LEAST_WINDOWS, centres)} windows and a reach of 1"
            )
        if not (temperature > 0 and penalty > 0):
            raise ConfigError(f"got temperature {temperature} and penalty {penalty}, expected both above 0")
        self.dim, self.centres, self.windows, self.reach = dim, centres, windows, reach
        self.temperature, self.penalty = temperature, penalty
        self.clear()

    def clear(self) -> None:
        """Forgets everything: the embedding space is another one."""
        self._held = np.zeros((self.windows, self.dim), np.float16)
        self._indices = np.zeros(self.windows, np.int64)
        self._seen = 0
        self._fitted_at = 0  # observations when it was fitted last, 0 before
        self._means = np.zeros((self.centres, self.dim), np.float32)
        self._head = np.zeros((self.dim + 1, self.centres), np.float32)
        self._expected = np.full(self.centres, 1.0 / self.centres, np.float32)  # of any window: the mean prediction
        self._centre = np.zeros(self.dim, np.float32)
        self._scale = np.float32(1.0)

    @property
    def ready(self) -> bool:
        """True once the head has been fitted."""
        return self._fitted_at > 0

    def observe(self, z: Array, index: int) -> None:
        """Remembers the embedding [d] of window `index`, in any order of arrival; refits now and then. ConfigError."""
        place = self._seen % self.windows
        self._held[place] = self._check(z)
        self._indices[place] = index
        self._seen += 1
        if self._seen >= max(LEAST_WINDOWS, self.centres) and self._seen - self._fitted_at >= REFIT_WINDOWS:
            self._fit()

    def probabilities(self, z: Array) -> NDArray[np.float64]:
        """Where neighbours of a window with this embedding [d] are expected, [C]; uniform before the first fit."""
        z = self._check(z)
        if not self.ready:
            return np.full(self.centres, 1.0 / self.centres)
        score = self._inputs(z[None]) @ self._head
        return _softmax(score.astype(np.float64))[0]

    def value(self, z: Array) -> float:
        """Uncertainty of an embedding [d] (or an early exit's) in nats, in [0, log C]; log C before the first fit."""
        p = self.probabilities(z)
        said = float(p @ np.log(np.maximum(p, _SMALLEST) / np.maximum(self._expected, _SMALLEST)))
        return min(max(math.log(self.centres) - said, 0.0), math.log(self.centres))

    def state_bytes(self) -> int:
        """Bytes held."""
        held = (self._held, self._indices, self._means, self._head, self._expected, self._centre)
        return sum(array.nbytes for array in held)

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `load_state` needs."""
        used = min(self._seen, self.windows)
        return {
            "held": self._held[:used].copy(), "indices": self._indices[:used].copy(), "means": self._means.copy(),
            "head": self._head.copy(), "expected": self._expected.copy(), "centre": self._centre.copy(),
            "scale": np.array([self._scale]), "counts": np.array([self._seen, self._fitted_at]),
        }  # fmt: skip

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Continues from `state()`; raises CheckpointError, before any change, if it is of other settings."""
        seen, fitted_at = (int(number) for number in state["counts"])
        used = min(seen, self.windows)
        shapes = {"held": (used, self.dim), "indices": (used,), "means": self._means.shape, "head": self._head.shape}
        for name, shape in shapes.items():
            if state[name].shape != shape:
                raise CheckpointError(
                    f"got '{name}' of {state[name].shape} in the context's state, expected {shape}; use its settings"
                )
        self.clear()
        self._held[:used], self._indices[:used] = state["held"], state["indices"]
        self._means, self._head = state["means"].copy(), state["head"].copy()
        self._expected, self._centre = state["expected"].copy(), state["centre"].copy()
        self._scale = np.float32(state["scale"][0])
        self._seen, self._fitted_at = seen, fitted_at

    def _fit(self) -> None:
        used = min(self._seen, self.windows)
        order = np.argsort(self._indices[:used], kind="stable")
        z, indices = self._held[order].astype(np.float32), self._indices[order]
        first = not self.ready
        if first:
            self._means = z[np.linspace(0, used - 1, self.centres).astype(np.int64)]
        self._means = _spherical_k_means(_unit(z), _unit(self._means), _FIRST_ROUNDS if first else _ROUNDS)
        targets, known = _around(_softmax(_unit(z) @ self._means.T / self.temperature), indices, self.reach)
        if known.any():
            self._descend(z[known], targets[known], _FIRST_STEPS if first else _STEPS)
            self._fitted_at = self._seen

    def _descend(self, z: Array, targets: Array, steps: int) -> None:
        """Nesterov's descent with a step of 1 / L, so that no embedding, however collapsed, makes it diverge."""
        centre, scale = z.mean(0), np.float32(max(float(z.std(0).mean()), 1e-6))
        head = self._head.copy()  # the same map, of inputs centred and scaled anew
        head[-1] += (centre - self._centre) / self._scale @ head[:-1]
        head[:-1] *= scale / self._scale
        self._centre, self._scale = centre, scale
        x = self._inputs(z)
        steepest = 0.5 * float(np.linalg.eigvalsh(x.T @ x / len(x))[-1]) + self.penalty
        ahead = head
        for step in range(steps):
            slope = x.T @ (_softmax(x @ ahead) - targets) / len(x) + self.penalty * ahead
            moved = ahead - slope / np.float32(steepest)
            ahead = moved + np.float32(step / (step + 3)) * (moved - head)
            head = moved
        self._head, self._expected = head, _softmax(x @ head).mean(0)

    def _inputs(self, z: Array) -> Array:
        """Centred and scaled, with a one: [n, d + 1]."""
        x = np.ones((len(z), self.dim + 1), np.float32)
        x[:, :-1] = (z - self._centre) / self._scale
        return x

    def _check(self, z: Array) -> Array:
        z = np.asarray(z, np.float32)
        if z.shape != (self.dim,) or not np.isfinite(z).all():
            raise ConfigError(f"got an embedding of shape {z.shape}, expected [{self.dim}] finite numbers")
        return z


def _around(shares: Array, indices: NDArray[np.int64], reach: int) -> tuple[Array, NDArray[np.bool_]]:
    """Mean of `shares` [n, C] over the other windows within `reach`, and which rows have any; `indices` ascend."""
    total, count = np.zeros_like(shares), np.zeros(len(shares), np.float32)
    for apart in range(1, min(reach, len(shares) - 1) + 1):
        near = indices[apart:] - indices[:-apart] <= reach
        weight = near.astype(np.float32)
        total[:-apart] += weight[:, None] * shares[apart:]
        total[apart:] += weight[:, None] * shares[:-apart]
        count[:-apart] += weight
        count[apart:] += weight
    mean: Array = total / np.maximum(count, np.float32(1.0))[:, None]
    return mean, count > 0


def _spherical_k_means(z: Array, centres: Array, rounds: int) -> Array:
    """Lloyd's rounds by cosine from given centres; one that nobody is closest to moves to the worst explained row."""
    for _ in range(rounds):
        likeness = z @ centres.T
        owner, best = likeness.argmax(1), likeness.max(1)
        member = (owner == np.arange(len(centres))[:, None]).astype(np.float32)
        sums = member @ z
        for empty in np.flatnonzero(member.sum(1) == 0):
            worst = int(best.argmin())
            sums[empty], best[worst] = z[worst], np.inf
        centres = _unit(sums)
    return centres


def _softmax(scores: NDArray) -> NDArray:
    power = np.exp(scores - scores.max(-1, keepdims=True))
    shares: NDArray = power / power.sum(-1, keepdims=True)
    return shares


def _unit(z: Array) -> Array:
    unit: Array = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    return unit
