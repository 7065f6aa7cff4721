"""Loss in bursts: a channel with a good and a bad state (Gilbert 1960; Elliott 1963), in which every packet is lost.

States change from packet to packet (`BurstLoss`), as measured figures of codecs count them, or with time (`TimedLoss`),
which is fair to whoever waits before he repeats.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from streamsplit.errors import ConfigError


class BurstLoss:
    """Asked packet by packet; starts in the good state."""

    def __init__(self, share: float, burst: float, random: Callable[[], float]) -> None:
        """`share` of packets lost on average, in runs of `burst` packets on average; `random` draws from [0, 1).
        Raises ConfigError."""
        if not (0.0 <= share < 1.0 and burst >= 1.0):
            raise ConfigError(f"got a loss of {share:g} in bursts of {burst:g}, expected 0 to below 1, and at least 1")
        self._leave = 1.0 / burst
        self._enter = min(1.0, self._leave * share / (1.0 - share))
        self._random = random
        self._bad = False

    def lost(self) -> bool:
        """Whether the next packet is lost."""
        if not self._enter:
            return False
        draw = self._random()
        self._bad = draw >= self._leave if self._bad else draw < self._enter
        return self._bad


class TimedLoss:
    """Asked with times that do not go back; starts in the good state."""

    def __init__(self, share: float, burst_s: float, source: random.Random) -> None:
        """`share` of time in the bad state, which lasts `burst_s` on average. Raises ConfigError."""
        if not (0.0 <= share < 1.0 and burst_s > 0.0):
            raise ConfigError(
                f"got a loss of {share:g} in bursts of {burst_s:g} s, expected 0 to below 1, and more than 0"
            )
        self._share, self._burst_s, self._source = share, burst_s, source
        self._bad = True
        self._until_s: float | None = None

    def lost(self, now_s: float) -> bool:
        """Whether a packet sent now is lost."""
        if not self._share:
            return False
        until_s = now_s if self._until_s is None else self._until_s
        while until_s <= now_s:
            self._bad = not self._bad
            mean_s = self._burst_s if self._bad else self._burst_s * (1.0 - self._share) / self._share
            until_s += self._source.expovariate(1.0 / mean_s)
        self._until_s = until_s
        return self._bad
