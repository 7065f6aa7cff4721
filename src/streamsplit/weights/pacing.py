"""How much of a weight transfer may be under way: a window of unconfirmed bytes, steered by the delay of confirmations.

Whatever a sender hands over faster than the link carries waits in buffers (kernel, modem, proxy) where no priority
reaches it, and everything that follows waits behind it. So the receiver confirms every chunk, and the sender keeps no
more unconfirmed than the link needs. The law is LEDBAT's (RFC 6817): the least delay seen is the link's own, what
comes on top is queueing. No IO and no clock in here: `now_ms` is any clock that never runs backwards.
"""

from __future__ import annotations

import math
from collections import deque

from streamsplit.errors import RevisionError
from streamsplit.weights.revision import revision_prefix
from streamsplit.weights.transfer import CHUNK_DATA_BYTES, DEFAULT_CHUNK_BYTES, Chunk, pack_chunk

TARGET_QUEUE_MS = 100.0  # queueing that is aimed at
SEVERE_QUEUE_MS = 300.0  # queueing that takes the window back to one chunk
CAP_BYTES = 256 << 10
CAP_CHUNKS = 64  # so that confirmations never pile up into the limit of control frames
REMEASURE_MS = 30_000.0  # a least delay older than this is measured again, with the queue drained


class DelayWindow:
    """Window of one transfer in one connection, in bytes of data; starts at one chunk.

    A confirmation with queueing delay q moves it by (100 - q) / 100 of the bytes confirmed, at most by all of them;
    past half of the smallest size at which q exceeded 100 ms, by chunk / window times that, so by at most a chunk for
    every window confirmed. Beyond 300 ms it is one chunk again.
    """

    def __init__(self, offset: int, chunk_bytes: int) -> None:
        """Nothing is under way, everything below `offset` is confirmed."""
        self.chunk_bytes = chunk_bytes
        self.confirmed = self.sent = offset
        self._cap = float(max(chunk_bytes, min(CAP_BYTES, CAP_CHUNKS * chunk_bytes)))
        self._size = float(chunk_bytes)
        self._gentle_above = self._cap
        self._under_way: deque[tuple[int, float]] = deque()  # (end of a chunk, sent at)
        self._least_ms = math.inf
        self._least_at_ms = 0.0

    @property
    def size(self) -> int:
        """Bytes that may be unconfirmed."""
        return int(self._size)

    @property
    def unconfirmed(self) -> int:
        """Bytes sent and not yet confirmed."""
        return self.sent - self.confirmed

    def allows(self, size: int) -> bool:
        """Whether a chunk of `size` bytes may go now; one always may when nothing is under way."""
        return self.unconfirmed == 0 or self.unconfirmed + size <= self._size

    def on_sent(self, size: int, now_ms: float) -> None:
        """A chunk was handed to the transport."""
        self.sent += size
        self._under_way.append((self.sent, now_ms))

    def on_confirmed(self, offset: int, now_ms: float) -> bool:
        """The receiver has everything below `offset`; False, and nothing happens, unless that is news that can be."""
        if not self.confirmed < offset <= self.sent:
            return False
        size, self.confirmed = offset - self.confirmed, offset
        sent_ms = math.nan
        while self._under_way and self._under_way[0][0] <= offset:
            sent_ms = self._under_way.popleft()[1]
        if not math.isnan(sent_ms):  # else it confirms a part of a chunk
            self._steer(now_ms - sent_ms, size, now_ms)
        return True

    def _steer(self, delay_ms: float, size: int, now_ms: float) -> None:
        if delay_ms <= self._least_ms:
            self._least_ms, self._least_at_ms = delay_ms, now_ms
        elif now_ms - self._least_at_ms > REMEASURE_MS:
            self._size = float(self.chunk_bytes)
            if self.unconfirmed == 0:  # the next chunk meets an empty queue
                self._least_ms, self._least_at_ms, self._gentle_above = math.inf, now_ms, self._cap
            return
        queue_ms = delay_ms - self._least_ms
        if queue_ms > TARGET_QUEUE_MS and self._size > self.chunk_bytes:
            self._gentle_above = min(self._gentle_above, self._size / 2)
        if queue_ms > SEVERE_QUEUE_MS:
            self._size = float(self.chunk_bytes)
            return
        change = max(-1.0, 1.0 - queue_ms / TARGET_QUEUE_MS) * size
        if self._size >= self._gentle_above:
            change *= self.chunk_bytes / self._size
        self._size = min(max(self._size + change, float(self.chunk_bytes)), self._cap)


class PacedSender:
    """A payload on its way to one receiver, chunk by chunk as its window allows."""

    def __init__(
        self, revision: str, base: str, payload: bytes, offset: int, chunk_bytes: int = DEFAULT_CHUNK_BYTES
    ) -> None:
        """Starts at `offset`; raises RevisionError when that is outside of the payload."""
        if not 0 <= offset <= len(payload):
            raise RevisionError(f"got offset {offset}, expected 0..{len(payload)}")
        self.revision = revision
        self.base = base
        self.window = DelayWindow(offset, min(chunk_bytes, CHUNK_DATA_BYTES))
        self._payload = payload
        self._prefix = revision_prefix(revision)

    @property
    def done(self) -> bool:
        """The receiver has confirmed everything."""
        return self.window.confirmed >= len(self._payload)

    def peek(self) -> tuple[bytes, bool] | None:
        """(packed chunk, whether it is the last) that may go now; None while the window is full or all is sent."""
        start = self.window.sent
        data = self._payload[start : start + self.window.chunk_bytes]
        if not data or not self.window.allows(len(data)):
            return None
        return pack_chunk(Chunk(self._prefix, start, data)), start + len(data) == len(self._payload)

    def advance(self, now_ms: float) -> None:
        """The chunk that `peek` gave was handed to the transport."""
        self.window.on_sent(min(self.window.chunk_bytes, len(self._payload) - self.window.sent), now_ms)

    def confirm(self, revision: str, base: str, offset: int, now_ms: float) -> bool:
        """A WEIGHTS_REQ came: True where it confirms chunks of this transfer, False where it asks for a start."""
        return (revision, base) == (self.revision, self.base) and self.window.on_confirmed(offset, now_ms)
