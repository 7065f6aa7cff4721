"""An alarm for embeddings that fall onto fewer and fewer directions: effective rank against what it once was."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from streamsplit.config import Settings, setting
from streamsplit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CollapseSettings(Settings):
    """When a fall of the effective rank is an alarm. Positions are in the caller's unit; the defaults count windows of
    0.5 s."""

    share: float = setting(0.5, low=0.01, high=0.99)  # of the reference; the alarm starts below it
    clear_share: float = setting(0.6, low=0.01, high=1.0)  # of the reference; it ends at or above it
    smoothing: float = setting(600.0, low=1e-9)  # time constant of the rank's moving average: 5 minutes
    first_at: float = setting(1_200.0, low=0.0)  # the first reference is taken after so much: 10 minutes
    reference_at: float = setting(7_200.0, low=0.0)  # and the lasting one after so much: 1 hour

    def check(self) -> None:
        """Refuses an alarm that would end before it starts, and references in the wrong order."""
        if self.clear_share < self.share:
            raise ConfigError(f"'clear_share': got {self.clear_share}, allowed >= share ({self.share})")
        if self.reference_at < self.first_at:
            raise ConfigError(f"'reference_at': got {self.reference_at}, allowed >= first_at ({self.first_at})")


class CollapseWatch:
    """Says whether a stream's effective rank is below a share of its reference; no clock, a few numbers of state.

    The rank is smoothed first: on a correlated stream it swings with what is heard. A first, early reference catches a
    collapse in the first hour; it gives way to the lasting one, unless the alarm is on at that time.
    """

    def __init__(self, settings: CollapseSettings | None = None) -> None:
        self.settings = settings or CollapseSettings()
        self.clear()

    def clear(self) -> None:
        """Starts anew, without an alarm: ranks before and after do not compare."""
        self.level = math.nan  # smoothed
        self.reference = math.nan  # nan before the first
        self.collapsed = False
        self.alarms = 0  # times that the alarm started
        self._elapsed = 0.0
        self._last = math.nan
        self._lasting = False

    def observe(self, position: float, rank: float, heard_rank: float = 1.0) -> bool:
        """Takes the effective rank at a position (window or virtual time) and gives `collapsed`.

        `heard_rank` is the rank of fixed features of the same sound. Where it is given, the ratio of both is watched:
        an hour of one sound lowers both and is no collapse. A position that goes back (restart) adds no time. Raises
        ConfigError for ranks that are negative or not finite.
        """
        if not (math.isfinite(rank) and rank >= 0.0 and math.isfinite(heard_rank) and heard_rank >= 0.0):
            raise ConfigError(f"got effective ranks {rank} and {heard_rank}, expected finite ones, 0 or more")
        value = rank / max(heard_rank, 1.0)
        passed = 0.0 if math.isnan(self._last) else max(position - self._last, 0.0)
        self._last = position
        self._elapsed += passed
        if math.isnan(self.level):
            self.level = value
        else:
            self.level += -math.expm1(-passed / self.settings.smoothing) * (value - self.level)
        self._judge()
        return self.collapsed

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `load_state` needs."""
        numbers = (
            self.level, self.reference, self._elapsed, self._last, self.collapsed, self._lasting, self.alarms
        )  # fmt: skip
        return {"scalars": np.array(numbers, np.float64)}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Continues from `state()`."""
        level, reference, elapsed, last, collapsed, lasting, alarms = state["scalars"].tolist()
        self.level, self.reference, self._elapsed, self._last = level, reference, elapsed, last
        self.collapsed, self._lasting, self.alarms = bool(collapsed), bool(lasting), int(alarms)

    def _judge(self) -> None:
        s = self.settings
        if not math.isnan(self.reference):
            below = self.level < (s.clear_share if self.collapsed else s.share) * self.reference
            self.alarms += below and not self.collapsed
            self.collapsed = below
        if self._lasting or self.collapsed:
            return
        self._lasting = self._elapsed >= s.reference_at
        if self._lasting or (math.isnan(self.reference) and self._elapsed >= s.first_at):
            self.reference = self.level
