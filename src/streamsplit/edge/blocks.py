"""What every source speaks: blocks of sound with their stream time, and the pace at which they come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from streamsplit.errors import AudioError

RATE_HZ = 16_000


class AudioBlock(NamedTuple):
    """A piece of a source's stream: mono float32 samples at 16 kHz."""

    samples: NDArray[np.float32]
    start_ms: float  # stream time of the first sample, counted in samples, so it does not depend on the speed
    label: str | None  # ground truth where the source knows it
    clip: str | None  # name of the file; a change means that the sound is not continuous
    outage: bool = False  # the device was gone before it: `start_ms` lies behind the gap


class SourceInfo(NamedTuple):
    """What a source is, for logs and reports."""

    kind: str  # 'synthetic', 'file', 'folder', 'microphone' or 'url'
    name: str
    live: bool  # True if the sound arrives at its own pace, so that `speed` has no effect
    labels: tuple[str, ...]  # labels that may occur


class Source(Protocol):
    """Iterate once, from one thread; `close` may come from any thread and ends the iteration."""

    @property
    def info(self) -> SourceInfo: ...

    def __iter__(self) -> Iterator[AudioBlock]: ...

    def close(self) -> None: ...


class Pacer:
    """Holds every block back until it would have been recorded: `speed` 1 is real time, 0 does not wait.

    The schedule is absolute, so time lost in the consumer is caught up and errors do not add up.
    """

    def __init__(self, speed: float, clock: Callable[[], float] = time.monotonic) -> None:
        if not 0.0 <= speed <= 1e6:
            raise AudioError(f"got speed {speed}, expected 0 (as fast as possible), 1 (real time) or a factor")
        self.speed = speed
        self._clock = clock
        self._started: float | None = None
        self._closed = threading.Event()

    def wait(self, end_ms: float) -> bool:
        """Sleeps until stream time `end_ms` is due; False if the source was closed meanwhile."""
        now = self._clock()
        if self._started is None:
            self._started = now
        if self.speed > 0.0:
            delay = self._started + end_ms / (1_000.0 * self.speed) - now
            if delay > 0.0:
                self._closed.wait(delay)
        return not self._closed.is_set()

    def close(self) -> None:
        """Ends a wait under way and all later ones."""
        self._closed.set()
