"""One direction of a link in whatever time its caller keeps: when bytes leave the sender, and when they arrive."""

from __future__ import annotations

import math
import random
from bisect import bisect_right

from streamsplit.network.trace import BandwidthTrace


class LinkDirection:
    """A first-in-first-out queue behind a trace's rate, then half of its round trip and jitter; order is kept.

    Times are seconds on the caller's clock: the live shaper gives a monotonic one, a simulation its virtual one. TCP
    hides losses from whoever sends over it, so bytes are never lost here, only late.
    """

    def __init__(self, trace: BandwidthTrace, jitter_ms: float = 0.0, seed: int = 0, start_s: float = 0.0) -> None:
        """`start_s` is where in the trace the clock's 0 lies."""
        self.trace = trace
        self.jitter_ms = jitter_ms
        self.bytes = 0  # handed over at the far end, counted by whoever hands them over
        self._offset_s = start_s
        self._free_at_s = -math.inf
        self._arrived_s = -math.inf
        self._random = random.Random(seed)
        self._duration_s = float(trace.duration_s)
        self._starts: list[float] = trace.t_s.tolist()
        self._ends = [*self._starts[1:], self._duration_s]
        self._rates: list[float] = trace.rate_bps.tolist()
        self._rtts: list[float] = trace.rtt_ms.tolist()
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
        self._free_at_s = self.finish_s(max(now_s, self._free_at_s), size_bytes)
        if math.isinf(self._free_at_s):
            return math.inf, math.inf
        delay_ms = self._rtts[self._index(self._free_at_s)] / 2
        if self.jitter_ms:
            delay_ms += self._random.random() * self.jitter_ms
        self._arrived_s = max(self._arrived_s, self._free_at_s + delay_ms / 1000)
        return self._free_at_s, self._arrived_s

    def hold_until(self, time_s: float) -> None:
        """Nothing leaves before `time_s`: the link is cut."""
        self._free_at_s = max(self._free_at_s, time_s)

    def _index(self, now_s: float) -> int:
        return bisect_right(self._starts, (now_s + self._offset_s) % self._duration_s) - 1
