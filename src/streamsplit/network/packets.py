"""One direction of a link as packets meet it, in whatever time its caller keeps: lost in bursts, late, out of order.

The counterpart of `link.LinkDirection`, which is a link as a stream over TCP meets it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from streamsplit.config import Settings, setting
from streamsplit.network.bursts import BurstLoss, TimedLoss


@dataclass(frozen=True, kw_only=True)
class PacketLinkSettings(Settings):
    """A link that loses packets."""

    one_way_ms: float = setting(20.0, low=0.0, high=10_000.0)
    jitter_ms: float = setting(0.0, low=0.0, high=10_000.0)  # uniform, on top; packets may overtake each other
    loss: float = setting(0.0, low=0.0, high=0.99)  # share of packets
    burst: float = setting(2.0, low=1.0, high=1_000.0)  # packets lost in a row, on average
    burst_ms: float | None = setting(None, low=0.1, high=60_000.0)  # bursts last so long instead, whoever sends when
    rate_bps: float = setting(10e6, low=1e3, high=1e12)  # IP packets, headers included where the caller counts them
    queue_ms: float = setting(200.0, low=0.0, high=60_000.0)  # packets that would wait longer are lost, too


class PacketDirection:
    """When each packet arrives, if it does."""

    def __init__(self, settings: PacketLinkSettings, seed: int = 0) -> None:
        self.settings = settings
        self.packets = self.bytes = self.lost = 0  # given to it; their size; of the packets, lost
        self._random = random.Random(seed)
        source = random.Random(f"loss {seed}")
        self._bursts = BurstLoss(settings.loss, settings.burst, source.random)
        self._timed = (
            None if settings.burst_ms is None else TimedLoss(settings.loss, settings.burst_ms / 1000.0, source)
        )
        self._free_at_s = 0.0

    def arrival_s(self, now_s: float, size_bytes: int) -> float | None:
        """When a packet that is sent now arrives; None where it does not."""
        s = self.settings
        self.packets += 1
        self.bytes += size_bytes
        gone = self._bursts.lost() if self._timed is None else self._timed.lost(now_s)
        starts_s = max(now_s, self._free_at_s)
        if gone or starts_s - now_s > s.queue_ms / 1000.0:
            self.lost += 1
            return None
        self._free_at_s = starts_s + 8.0 * size_bytes / s.rate_bps
        return self._free_at_s + (s.one_way_ms + self._random.random() * s.jitter_ms) / 1000.0
