"""Shuffle buffer: a bounded set of past windows from which small batches of *distinct* times are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamsplit.errors import ConfigError, EncoderError
from streamsplit.learning.contrastive import positive_law

Array = NDArray[np.float32]


class Batch(NamedTuple):
    """Windows to learn from."""

    times: NDArray[np.int64]  # window indices of the anchors [b]
    anchor_features: Array  # [b, f, t]
    partner_features: Array  # [b, f, t]: for each anchor a window close in time, or itself where there is none
    anchor_slots: NDArray[np.intp]  # [b] where the buffer holds them
    partner_slots: NDArray[np.intp]  # [b]
    excluded: NDArray[np.bool_]  # [b, b]: pairs too close in time to be negatives of each other


class ShuffleBuffer:
    """At most `capacity` windows as fp16, kept as runs of up to `run` windows that follow each other.

    When full, a whole run chosen at random makes room: what stays is spread over the past (older runs ever thinner)
    and every window keeps its neighbours, which positives need. Windows of both resolutions may mix.
    """

    def __init__(self, capacity: int, run: int = 10, shape: tuple[int, int] = (128, 100)) -> None:
        if capacity < 2 * run or run < 2:
            raise ConfigError(f"got a buffer of {capacity} windows in runs of {run}, expected at least two runs of two")
        self.capacity, self.run, self.shape = capacity, run, shape
        self._features = np.zeros((capacity, *shape), np.float16)
        self._sizes = np.zeros((capacity, 2), np.int64)  # bands, frames; 0 = free slot
        self._times = np.zeros(capacity, np.int64)
        self._segments = np.zeros(capacity, np.int64)  # stretch of uninterrupted sound
        self._runs = np.full(capacity, -1, np.int64)  # run number, -1 = free slot
        self._segment = 0
        self._newest_run = -1
        self._last_time = -1

    def __len__(self) -> int:
        return int((self._runs >= 0).sum())

    def add(self, features: Array, time: int, rng: np.random.Generator, *, continuous: bool = True) -> int:
        """Stores features [f, t] of the window `time` (its index) and gives the slot it took.

        continuous=False: it does not follow the window before (new clip, gap); such windows never form a positive.
        """
        features = np.asarray(features)
        bands, frames = features.shape if features.ndim == 2 else (0, 0)
        if not 0 < bands <= self.shape[0] or not 0 < frames <= self.shape[1] or not np.isfinite(features).all():
            raise EncoderError(f"got features of shape {features.shape}, expected finite [f, t] within {self.shape}")
        if not continuous or time <= self._last_time:
            self._segment += 1
            self._newest_run += 1
        elif self._newest_run < 0 or int((self._runs == self._newest_run).sum()) >= self.run:
            self._newest_run += 1
        free = np.flatnonzero(self._runs < 0)
        if not len(free):
            held = np.unique(self._runs[self._runs != self._newest_run])
            self._runs[self._runs == held[rng.integers(len(held))]] = -1
            free = np.flatnonzero(self._runs < 0)
        slot = int(free[0])
        self._features[slot, :bands, :frames] = np.clip(features, -60000.0, 60000.0)
        self._sizes[slot] = bands, frames
        self._times[slot], self._segments[slot], self._runs[slot] = time, self._segment, self._newest_run
        self._last_time = time
        return slot

    def draw(self, size: int, rng: np.random.Generator, *, decay: float, reach: int, gap: int) -> Batch | None:
        """Draws `size` anchors of one resolution from as many runs as possible, and a partner for each.

        The partner is at distance d in 1..reach windows with density ~ exp(-decay d). None while the buffer holds
        fewer than 2 windows of the drawn resolution.
        """
        held = np.flatnonzero(self._runs >= 0)
        if len(held) < 2:
            return None
        kind = self._sizes[rng.choice(held)]
        held = held[(self._sizes[held] == kind).all(1)]
        if len(held) < 2:
            return None
        anchors = self._spread(held, min(size, len(held)), rng)
        partners = np.array([self._partner(slot, held, rng, decay, reach) for slot in anchors])
        excluded = (self._segments[anchors][:, None] == self._segments[anchors][None]) & (
            np.abs(self._times[anchors][:, None] - self._times[anchors][None]) < gap
        )
        windows = self.features(anchors), self.features(partners)
        return Batch(self._times[anchors], *windows, anchors, partners, excluded)

    def pairs(self, size: int, rng: np.random.Generator, *, decay: float, reach: int) -> tuple[Array, Array] | None:
        """Up to `size` anchors and partners of the commonest resolution, every window at most once an anchor."""
        held = np.flatnonzero(self._runs >= 0)
        if len(held) < 2:
            return None
        kinds, counts = np.unique(self._sizes[held], axis=0, return_counts=True)
        held = held[(self._sizes[held] == kinds[counts.argmax()]).all(1)]
        anchors = rng.permutation(held)[:size]
        partners = np.array([self._partner(slot, held, rng, decay, reach) for slot in anchors])
        return self.features(anchors), self.features(partners)

    def features(self, slots: NDArray[np.intp]) -> Array:
        """float32 [n, f, t] of slots that share one resolution."""
        bands, frames = self._sizes[slots[0]]
        return self._features[slots, :bands, :frames].astype(np.float32)

    def in_order(self, size: int = 32) -> Iterator[tuple[NDArray[np.int64], Array]]:
        """All windows, oldest first, as (indices [n], features [n, f, t]) with n <= size and one resolution each."""
        held = np.flatnonzero(self._runs >= 0)
        held = held[np.argsort(self._times[held], kind="stable")]
        start = 0
        while start < len(held):
            same = (self._sizes[held[start : start + size]] == self._sizes[held[start]]).all(1)
            stop = start + (len(same) if same.all() else int(same.argmin()))
            yield self._times[held[start:stop]], self.features(held[start:stop])
            start = stop

    def times(self) -> NDArray[np.int64]:
        """Indices of the windows held, sorted."""
        return np.sort(self._times[self._runs >= 0])

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `load_state` needs."""
        counters = np.array([self._segment, self._newest_run, self._last_time], np.int64)
        return {
            "features": self._features.copy(), "sizes": self._sizes.copy(), "times": self._times.copy(),
            "segments": self._segments.copy(), "runs": self._runs.copy(), "counters": counters,
        }  # fmt: skip

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Continues from `state()` of a buffer of the same capacity and shape."""
        if state["features"].shape != self._features.shape:
            got = state["features"].shape
            raise ConfigError(f"got a buffer of shape {got}, expected {self._features.shape}: the settings differ")
        self._features, self._sizes = state["features"].copy(), state["sizes"].copy()
        self._times, self._segments, self._runs = (state[name].copy() for name in ("times", "segments", "runs"))
        self._segment, self._newest_run, self._last_time = (int(v) for v in state["counters"])

    def state_bytes(self) -> int:
        """Bytes held; constant."""
        arrays = (self._features, self._sizes, self._times, self._segments, self._runs)
        return sum(array.nbytes for array in arrays)

    def _spread(self, held: NDArray[np.intp], size: int, rng: np.random.Generator) -> NDArray[np.intp]:
        """Slots from as many different runs as possible, none twice."""
        shuffled = rng.permutation(held)
        _, first = np.unique(self._runs[shuffled], return_index=True)
        leading = np.zeros(len(shuffled), bool)
        leading[first] = True
        ordered = np.concatenate([rng.permutation(shuffled[leading]), shuffled[~leading]])
        return ordered[:size]

    def _partner(
        self, slot: np.intp, held: NDArray[np.intp], rng: np.random.Generator, decay: float, reach: int
    ) -> np.intp:
        distance = np.abs(self._times[held] - self._times[slot])
        near = (self._segments[held] == self._segments[slot]) & (distance > 0) & (distance <= reach)
        if not near.any():
            return slot
        chosen = rng.choice(held[near], p=positive_law(distance[near], decay))
        return np.intp(chosen)
