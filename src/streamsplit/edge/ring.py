"""Blocks of sound from one thread to another without a lock: what an audio driver's callback may touch."""

from __future__ import annotations

import contextlib
import select
import socket

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class BlockRing:
    """Of so many blocks of `size` samples; all memory is there from the start. One thread writes, one reads.

    A reader that falls behind loses the oldest blocks, and is told how many.
    """

    def __init__(self, size: int, blocks: int) -> None:
        self._data = np.zeros((blocks + 1, size), np.float32)  # one is being written
        self._written = self._read = 0  # blocks; each is changed by one thread alone

    @property
    def held(self) -> int:
        """Blocks that wait, lost ones among them."""
        return self._written - self._read

    def put(self, samples: Floats) -> None:
        """A block [size]; never waits."""
        self._data[self._written % len(self._data)] = samples
        self._written += 1

    def get(self, out: Floats) -> int:
        """The oldest block into `out` [size]; how many were lost before it, -1 where there is none."""
        while self._written > self._read:
            lost = max(0, self._written - self._read - (len(self._data) - 1))
            at = self._read + lost
            out[:] = self._data[at % len(self._data)]
            if self._written - at < len(self._data):  # or it was written over meanwhile
                self._read = at + 1
                return lost
        return -1


class Bell:
    """Wakes another thread without a lock; ringing never waits."""

    def __init__(self) -> None:
        self._rung, self._ringing = socket.socketpair()
        self._rung.setblocking(False)
        self._ringing.setblocking(False)

    def ring(self) -> None:
        """Wakes whoever waits, or will."""
        with contextlib.suppress(OSError):  # it rings already, or is closed: nobody waits any more
            self._ringing.send(b"\0")

    def wait(self, timeout_s: float) -> None:
        """Until it rings, or so long."""
        if select.select([self._rung], [], [], timeout_s)[0]:
            self._rung.recv(4_096)

    def close(self) -> None:
        """Nobody waits any more."""
        self._ringing.close()
        self._rung.close()
