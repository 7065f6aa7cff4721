"""A limit on bytes a second; time is an argument."""

from __future__ import annotations


class RateLimit:
    """A token bucket: takes bytes at once and says how long the taker has to wait for them. 0 is no limit."""

    def __init__(self, bytes_per_s: float, burst_bytes: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._burst_bytes = burst_bytes
        self._free = burst_bytes
        self._at_s: float | None = None

    def wait_s(self, size_bytes: int, now_s: float) -> float:
        """Seconds until bytes taken now may go; whoever comes later waits behind them."""
        if self.bytes_per_s <= 0:
            return 0.0
        if self._at_s is not None:
            self._free = min(self._burst_bytes, self._free + self.bytes_per_s * (now_s - self._at_s))
        self._at_s = now_s
        self._free -= size_bytes
        return max(0.0, -self._free / self.bytes_per_s)
