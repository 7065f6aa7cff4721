"""The paper's baseline: a block by formula from processor load and bandwidth."""

from __future__ import annotations

import math
from dataclasses import dataclass

from streamsplit.config import Settings, setting
from streamsplit.errors import ConfigError, CutError
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.decision import Decision
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.table import CutTable
from streamsplit.wire.media import Encoding


@dataclass(frozen=True, kw_only=True)
class HeuristicSettings(Settings):
    """Constants of v1's baseline, App. H."""

    cpu_weight: float = setting(0.6, low=0.0)
    bandwidth_weight: float = setting(0.4, low=0.0)
    low_bps: float = setting(0.5e6, low=0.0)  # normalises to 0
    high_bps: float = setting(8e6, low=1.0)  # normalises to 1

    def check(self) -> None:
        """The range must not be empty."""
        if self.high_bps <= self.low_bps:
            raise ConfigError(f"'high_bps': got {self.high_bps:g}, expected more than low_bps ({self.low_bps:g})")


class HeuristicPolicy:
    """v1 App. H: k = clip(floor(L (0.6 (1 - cpu) + 0.4 bandwidth)), 1, L - 1), INT8 activations.

    The bandwidth term is as printed: a better link cuts deeper. That is debatable, but it is the baseline. Where the
    table lacks that row (constraints, a device without an encoder), the nearest block's INT8 one stands in, or where
    there is none, the least bytes at the nearest block: it decides where everything else failed, so it always does.
    """

    def __init__(self, settings: HeuristicSettings | None = None) -> None:
        self.settings = settings or HeuristicSettings()

    def decide(self, observation: Observation, table: CutTable) -> Decision:
        """The formula's block; an unknown rate or load counts as 0. Raises CutError for a table without rows."""
        s = self.settings
        bps = observation.bandwidth_bps if math.isfinite(observation.bandwidth_bps) else s.low_bps
        rate = min(max((bps - s.low_bps) / (s.high_bps - s.low_bps), 0.0), 1.0)
        cpu = min(max(observation.cpu, 0.0), 1.0) if math.isfinite(observation.cpu) else 0.0
        score = s.cpu_weight * (1.0 - cpu) + s.bandwidth_weight * rate
        # Products like 13 x (0.6 x 0.5 + 0.4 x 0.5) may land a hair under a whole number: floor what was meant.
        block = min(max(math.floor(table.num_blocks * score + 1e-9), 1), table.num_blocks - 1)
        cut = Cut(block, Encoding.INT8)
        if cut not in table.cuts:
            cut = _nearest(table, block)
        fraction = table.num_blocks * score - math.floor(table.num_blocks * score)
        confidence = 0.5 + min(fraction, 1.0 - fraction)  # 1 in the middle between two blocks' borders
        return Decision(cut, confidence, f"heuristic: cpu {cpu:.0%}, bandwidth {rate:.0%} of range -> block {block}")


def _nearest(table: CutTable, block: int) -> Cut:
    if not table.rows:
        raise CutError(f"got a cut table without rows for '{table.encoder}', expected at least one")
    rows = [row for row in table.rows if row.cut.encoding is Encoding.INT8] or list(table.rows)
    return min(rows, key=lambda row: (abs(row.cut.block - block), row.payload_bytes)).cut
