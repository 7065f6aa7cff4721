"""A ring of the last samples of a stream, addressed by their position in the stream."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamsplit.errors import AudioError


class SampleRing:
    """Keeps the last `capacity` samples in fixed memory; positions count from the stream's first sample."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise AudioError(f"got a ring of {capacity} samples, expected at least 1")
        self._data = np.zeros(capacity, np.float32)
        self._end = 0
        self._held = 0

    @property
    def capacity(self) -> int:
        """Samples that fit."""
        return len(self._data)

    @property
    def start(self) -> int:
        """Position of the oldest sample still held."""
        return self._end - self._held

    @property
    def end(self) -> int:
        """Position after the newest sample: how many samples came in so far."""
        return self._end

    def append(self, samples: NDArray[np.float32]) -> None:
        """Writes samples [n] after the newest one; the oldest are overwritten when the ring is full."""
        count = len(samples)
        if count > self.capacity:
            self._end += count - self.capacity
            samples = samples[count - self.capacity :]
            count = self.capacity
        at = self._end % self.capacity
        first = min(count, self.capacity - at)
        self._data[at : at + first] = samples[:first]
        self._data[: count - first] = samples[first:]
        self._end += count
        self._held = min(self.capacity, self._held + count)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """A copy of the samples at positions start..stop-1; raises AudioError if some are gone or still to come."""
        if not self.start <= start <= stop <= self._end:
            raise AudioError(f"got positions {start}..{stop}, the ring holds {self.start}..{self._end}")
        at = start % self.capacity
        first = min(stop - start, self.capacity - at)
        return np.concatenate((self._data[at : at + first], self._data[: stop - start - first]))

    def clear(self) -> None:
        """Forgets the samples; positions start again at 0."""
        self._end = self._held = 0
