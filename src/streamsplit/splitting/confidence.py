"""When an early exit's embedding may stand for the window's own: only where it is surer than it mostly is."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from streamsplit.config import Settings, setting


@dataclass(frozen=True, kw_only=True)
class ExitSettings(Settings):
    """How sure an early exit has to be."""

    percentile: float = setting(50.0, low=0.0, high=100.0)  # of the uncertainties after the same block
    warm_up_windows: int = setting(20, low=1)
    memory_windows: int = setting(256, low=8)  # newest windows of a block that the percentile is taken over


class ExitRule:
    """Confident = the early exit's uncertainty is at most the running percentile of those after the same block.

    Blocks are kept apart, because exits of different depths are unsure on different scales. In a block's warm-up, and
    where the uncertainty is not known, nothing is confident.
    """

    def __init__(self, settings: ExitSettings | None = None) -> None:
        self.settings = settings or ExitSettings()
        self._recent: dict[int, deque[float]] = {}

    def restart(self) -> None:
        """Warms up anew: other weights give other uncertainties."""
        self._recent.clear()

    def confident(self, block: int, uncertainty: float) -> bool:
        """Whether the early exit after `block` may be used for a window of this uncertainty (nats); call for every
        window that stopped there, used or not, as it also is what later ones are compared with."""
        if not math.isfinite(uncertainty):
            return False
        s = self.settings
        recent = self._recent.setdefault(block, deque(maxlen=s.memory_windows))
        sure = len(recent) >= s.warm_up_windows and uncertainty <= np.percentile(np.array(recent), s.percentile)
        recent.append(uncertainty)
        return bool(sure)
