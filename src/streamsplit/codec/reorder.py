"""Packets of a stream put back in order for a listener that plays nothing: every frame once, none moved in time.

The jitter buffer serves an ear: it waits, leaves out and makes up for lost time. Whoever only wants to know what was
said wants frame i to be frame i: here a missing frame is waited for, for as long as the packets behind it may wait, and
then recovered from the copy in the next packet, or concealed. Time is an argument.
"""

from __future__ import annotations

from streamsplit.codec.jitter import Decision, JitterCounts, Play
from streamsplit.codec.opus_packet import carries_copy


class ReorderBuffer:
    """Of one stream."""

    def __init__(self, patience_ms: float, *, fec: bool = True) -> None:
        """`patience_ms`: how long a packet waits for those before it; `fec`: packets of Opus may carry a
        copy of the one before them."""
        self.patience_ms, self.fec = patience_ms, fec
        self.counts = JitterCounts()
        self._packets: dict[int, tuple[bytes, float]] = {}  # place -> packet, arrival
        self._passed: set[int] = set()  # lost, as far as is known
        self._next = 0
        self.end: int | None = None  # frames in all, once that is known

    @property
    def complete(self) -> bool:
        """Whether nothing of a stream whose end is known is missing."""
        return self.end is not None and all(place in self._packets for place in range(self._next, self.end))

    def push(self, index: int, data: bytes, now_ms: float) -> None:
        """A packet: the frame number `index`."""
        if index in self._passed:
            self._passed.discard(index)
            self.counts.lost -= 1
            self.counts.late += 1
        elif index < self._next or index in self._packets:
            self.counts.duplicates += 1
        elif self.end is None or index < self.end:
            self.counts.received += 1
            self._packets[index] = data, now_ms

    def finish(self, frames: int) -> None:
        """The stream has `frames` frames in all; packets beyond are none of it."""
        self.end = max(frames, self._next)
        for index in [index for index in self._packets if index >= self.end]:
            del self._packets[index]

    def take(self, now_ms: float, *, rest: bool = False) -> list[Decision]:
        """What is in order by now; `rest`: without waiting any longer, up to the end if that is known."""
        taken = []
        while (decision := self._following(now_ms, rest)) is not None:
            taken.append(decision)
        return taken

    def _following(self, now_ms: float, rest: bool) -> Decision | None:
        held = self._packets.pop(self._next, None)
        if held is not None:
            self._next += 1
            self.counts.played += 1
            return Decision(Play.PACKET, held[0], self._next - 1)
        late = self._packets and now_ms - min(arrived for _, arrived in self._packets.values()) >= self.patience_ms
        missing = self.end is not None and self._next < self.end
        if not (late or (rest and (self._packets or missing))):
            return None
        self._next += 1
        following = self._packets.get(self._next)
        if self.fec and following is not None and carries_copy(following[0]):
            self.counts.recovered += 1
            return Decision(Play.RECOVER, following[0], self._next - 1)
        self._passed.add(self._next - 1)
        self.counts.lost += 1
        self.counts.concealed += 1
        return Decision(Play.CONCEAL, b"", self._next - 1)
