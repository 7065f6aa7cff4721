"""The transmission gate with its percentile kept in order: the same decisions in a fraction of the time."""

from __future__ import annotations

import math
from bisect import bisect_left, insort

from streamsplit.splitting.observation import Observation
from streamsplit.splitting.transmission import GateSettings, UncertaintyGate


class SortedGate(UncertaintyGate):
    """An `UncertaintyGate` that inserts each window's uncertainty into a sorted list instead of sorting for each."""

    def __init__(self, settings: GateSettings | None = None) -> None:
        super().__init__(settings)
        self._ordered: list[float] = []

    def restart(self) -> None:
        """As the gate."""
        super().restart()
        self._ordered.clear()

    def threshold(self, observation: Observation) -> float:
        """As the gate; numpy's linear interpolation, operation for operation."""
        s, ordered = self.settings, self._ordered
        if s.version != "v2" or not math.isnan(self._fixed) or self._seen < s.warm_up_windows:
            return super().threshold(observation)
        place = (len(ordered) - 1) * (s.percentile / 100.0)
        below = math.floor(place)
        low, high, share = ordered[below], ordered[min(below + 1, len(ordered) - 1)], place - below
        return low + (high - low) * share if share < 0.5 else high - (high - low) * (1.0 - share)

    def _remember(self, uncertainty: float) -> None:
        recent = self._recent
        full = len(recent) == recent.maxlen
        oldest = recent[0] if full else math.nan
        before = len(recent)
        super()._remember(uncertainty)
        if self.settings.version != "v2" or math.isnan(uncertainty):
            return
        if full:
            del self._ordered[bisect_left(self._ordered, oldest)]
        if full or len(recent) > before:
            insort(self._ordered, uncertainty)
