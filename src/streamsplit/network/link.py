"""One direction of a link in whatever time its caller keeps: when bytes leave the sender, and when they arrive."""

from __future__ import annotations

import math
import random
from bisect import bisect_right

from streamsplit.network.bandwidth import BandwidthTrace

_SEGMENT_BYTES = 1448  # of TCP over Ethernet-sized packets, with time stamps
_LEAST_RTO_S = 0.2  # what Linux waits beyond the round trip before it repeats a segment unasked
_LONGEST_RTO_S = 60.0  # each further repetition waits twice as long, up to this (RFC 6298)


class LinkDirection:
    """A first-in-first-out queue behind a trace's rate, then half of its round trip and jitter; order is kept.

    Times are seconds on the caller's clock: the live shaper gives a monotonic one, a simulation its virtual one. TCP
    hides losses from whoever sends over it, so bytes are never lost here, only late: a piece that loses a segment
    arrives a repetition later, and all that was sent after it waits for it. The repetition comes one round trip later
    where the piece stood in a queue (duplicate acks of its neighbours ask for it), and 200 ms after that where it was
    alone (the sender's timer has to run out). Half of the trace's loss, which is of round trips, falls on a direction.
    """

    def __init__(self, trace: BandwidthTrace, jitter_ms: float = 0.0, seed: int = 0, start_s: float = 0.0) -> None:
        """`start_s` is where in the trace the clock's 0 lies."""
        self.jitter_ms = jitter_ms
        self.bytes = 0  # handed over at the far end, counted by whoever hands them over
        self._offset_s = start_s
        self._free_at_s = -math.inf
        self._arrived_s = -math.inf
        self._random = random.Random(seed)
        self.change(trace)

    def change(self, trace: BandwidthTrace) -> None:
        """The link is another one from now on; what was scheduled before stays as it was."""
        self.trace = trace
        self._duration_s = float(trace.duration_s)
        self._starts: list[float] = trace.t_s.tolist()
        self._ends = [*self._starts[1:], self._duration_s]
        self._rates: list[float] = trace.rate_bps.tolist()
        self._rtts: list[float] = trace.rtt_ms.tolist()
        lost = trace.loss is not None and bool(trace.loss.any())
        self._losses: list[float] | None = (trace.loss / 2).tolist() if lost and trace.loss is not None else None
        self._dead = not any(rate > 0 for rate in self._rates)

    @property
    def free_at_s(self) -> float:
        """When everything sent so far has left."""
        return self._free_at_s

    def rate_bps(self, now_s: float) -> float:
        """The rate offered now."""
        return self._rates[self._index(now_s)]

    def rtt_ms(self, now_s: float) -> float:
        """The unloaded round trip now."""
        return self._rtts[self._index(now_s)]

    def finish_s(self, start_s: float, size_bytes: float) -> float:
        """When `size_bytes` that start at `start_s` on an idle link have left; inf on a dead one."""
        if self._dead:
            return math.inf
        bits = size_bytes * 8.0
        cycle, phase = divmod(start_s + self._offset_s, self._duration_s)
        index = bisect_right(self._starts, phase) - 1
        base = cycle * self._duration_s - self._offset_s
        while True:
            rate = self._rates[index]
            room = rate * (self._ends[index] - phase)
            if room >= bits and rate > 0:
                return max(base + phase + bits / rate, start_s)
            bits -= room
            index += 1
            if index == len(self._starts):
                index, base = 0, base + self._duration_s
            phase = self._starts[index]

    def schedule(self, now_s: float, size_bytes: int) -> tuple[float, float]:
        """(leaves the sender, arrives at the other end) for bytes that are ready now."""
        queued = now_s < self._free_at_s
        self._free_at_s = self.finish_s(self._free_at_s if queued else now_s, size_bytes)
        if math.isinf(self._free_at_s):
            return math.inf, math.inf
        index = self._index(self._free_at_s)
        delay_s = self._rtts[index] / 2000
        if self.jitter_ms:
            delay_s += self._random.random() * self.jitter_ms / 1000
        if self._losses is not None and self._losses[index]:
            delay_s += self._repeated_s(index, size_bytes, queued)
        self._arrived_s = max(self._arrived_s, self._free_at_s + delay_s)
        return self._free_at_s, self._arrived_s

    def hold_until(self, time_s: float) -> None:
        """Nothing leaves before `time_s`: the link is cut."""
        self._free_at_s = max(self._free_at_s, time_s)

    def _repeated_s(self, index: int, size_bytes: int, queued: bool) -> float:
        """How much later a piece that leaves now arrives because segments of it were lost; 0 where none was."""
        assert self._losses is not None
        segments = max(1, math.ceil(size_bytes / _SEGMENT_BYTES))
        if self._random.random() >= 1.0 - (1.0 - self._losses[index]) ** segments:
            return 0.0
        rtt_s = self._rtts[index] / 1000
        timer_s = rtt_s + _LEAST_RTO_S
        late_s = rtt_s if queued else timer_s
        # The repetition is one segment, and may meet a loss where the link is by then.
        while self._random.random() < self._losses[self._index(self._free_at_s + late_s)]:
            timer_s = min(2 * timer_s, _LONGEST_RTO_S)
            late_s += timer_s
        return late_s

    def _index(self, now_s: float) -> int:
        return bisect_right(self._starts, (now_s + self._offset_s) % self._duration_s) - 1
