"""Loss in bursts: a channel with a good and a bad state (Gilbert 1960; Elliott 1963), in which every packet is lost."""

from __future__ import annotations

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
