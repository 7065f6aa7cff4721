"""One range of a chunk on its way: what has arrived, and whether it is what was asked for."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np

from streamsplit.weights.streaming.buffers import aligned_buffer


class Hashing:
    """How far one try's bytes are hashed."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.end = 0


_numbers = itertools.count()


class Job:
    """Received bytes in an aligned buffer, hashed as they come; survives lost connections."""

    def __init__(self, digest: str, offset: int, length: int, parts: Sequence[tuple[int, bytes]]) -> None:
        """`parts` are the lengths and SHA-256 of the pieces that the range consists of; digest "" is the manifest."""
        self.number = next(_numbers)
        self.digest = digest
        self.offset = offset
        self.length = length
        self.future: Future[np.ndarray] = Future()
        self.faults = 0
        self.received = 0
        self._parts = tuple(parts)
        self._data = aligned_buffer(length)
        self._view = memoryview(self._data)  # type: ignore[arg-type]
        self.hashing = Hashing()

    @property
    def key(self) -> tuple[str, int, int]:
        """Equal for equal ranges."""
        return self.digest, self.offset, self.length if self.digest else 0

    @property
    def complete(self) -> bool:
        """True when every byte is here."""
        return self.received == self.length

    def start(self, length: int) -> None:
        """Empties the job; the manifest's length is known only once the server has been met."""
        if length != self.length:
            self.length = length
            self._data = aligned_buffer(length)
            self._view = memoryview(self._data)  # type: ignore[arg-type]
        self.received = 0
        self.hashing = Hashing()

    def take(self, data: memoryview) -> None:
        """The next bytes; the session has made sure that there are not too many."""
        end = self.received + len(data)
        self._view[self.received : end] = data
        self.received = end

    def room(self, length: int) -> memoryview:
        """Where the next bytes go; `placed` counts them."""
        return self._view[self.received : self.received + length]

    def placed(self, size_bytes: int) -> None:
        """So many bytes have come into their places."""
        self.received += size_bytes

    def hash_up_to(self, end: int, hashing: Hashing) -> None:
        """Hashes what has arrived up to `end`; may run in another thread, one call after the other.

        `hashing` is `self.hashing` at the time of the call: bytes that were asked for again have another.
        """
        if len(self._parts) == 1 and end > hashing.end:
            hashing.hash.update(self._view[hashing.end : end])
            hashing.end = end

    def damage(self) -> str:
        """What is wrong with the complete bytes; "" where every hash is right."""
        if len(self._parts) == 1:
            self.hash_up_to(self.length, self.hashing)
            got, expected = self.hashing.hash.digest(), self._parts[0][1]
            return "" if got == expected else _differs(got, expected)
        at = 0
        for length, expected in self._parts:
            got = hashlib.sha256(self._view[at : at + length]).digest()
            if got != expected:
                return _differs(got, expected)
            at += length
        return ""

    def deliver(self) -> None:
        """Hands the bytes to whoever waits."""
        self.future.set_result(self._data)


def _differs(got: bytes, expected: bytes) -> str:
    return f"the bytes hash to {got.hex()[:12]}, expected {expected.hex()[:12]}: damaged or not what was asked for"
