"""What a window's way was worth: the rewards of both papers, from consequences that were measured or simulated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from streamsplit.config import Settings, setting
from streamsplit.splitting.table import CutRow, CutTable


class Consequence(NamedTuple):
    """What choosing a cut for one window led to."""

    quality_loss: float  # accuracy lost against the best cut of the table, in [0, 1]
    latency_ms: float  # end of the window to its result; inf for one that was lost
    energy_mj: float  # marginal, of the device
    traffic_bytes: float  # both ways, frame headers included
    busy_ms: float  # of one core of the device
    privacy_risk: float  # of what crossed, in [0, 1]; 0 where nothing did or nobody measured
    seen: bool  # the server has the window
    doubt: float  # uncertainty as a share of its largest value, in [0, 1]


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings(Settings):
    """Weights of the reward (v2: 10 A - 5 latency/200 ms - 3 energy/100 mJ; v1: 1, -0.5, -0.3, -0.2).

    Two terms are not in the papers. Data volume has a price (`traffic`), without which features would cross for ever
    on a fast link; and a window that the server never sees is worth less (`unseen`), the more the less the model knows
    about it, without which keeping everything would be best on every fast device. Latency counts up to `deadline_ms`:
    a result later than that is of no use, and being later still costs nothing more.
    """

    version: str = setting("v2", choices=("v1", "v2"))
    quality: float = setting(10.0, low=0.0)  # per unit of accuracy
    latency: float = setting(5.0, low=0.0)  # per `latency_ms`
    energy: float = setting(3.0, low=0.0)  # per `energy_mj`
    traffic: float = setting(4.0, low=0.0)  # per `traffic_bytes`
    privacy: float = setting(0.0, low=0.0)  # per unit of privacy risk
    unseen: float = setting(10.0, low=0.0)  # a window that the server never sees, at full uncertainty
    unseen_certain: float = setting(0.5, low=0.0, high=1.0)  # share of `unseen` that remains at none
    latency_ms: float = setting(200.0, low=1e-3)
    energy_mj: float = setting(100.0, low=1e-3)
    traffic_bytes: float = setting(1_500.0, low=1.0)  # half a second of Opus at 24 kbit/s
    deadline_ms: float = setting(1000.0, low=1.0)
    resources: float = setting(5.0, low=0.0)  # v1 only: per core that is busy all the time
    full_uncertainty: float = setting(math.log(64), low=1e-6)  # nats: entropy of 64 equal components

    def doubt(self, uncertainty: float) -> float:
        """Uncertainty in nats as a share; one half where it is not known."""
        if not math.isfinite(uncertainty):
            return 0.5
        return min(max(uncertainty / self.full_uncertainty, 0.0), 1.0)


V1_OBJECTIVE = ObjectiveSettings(
    version="v1", quality=10.0, resources=5.0, latency=3.0, privacy=2.0, energy=0.0, traffic=0.0
)
"""v1's weights times ten, so that accuracy weighs as much as in v2."""


def reward(settings: ObjectiveSettings, what: Consequence, interval_ms: float = 500.0) -> float:
    """The reward of one window; at best `settings.quality`, without a lower bound but the deadline's.

    `interval_ms` is the time from one window to the next, against which v1 holds the device's busy time.
    """
    s = settings
    total = s.quality * (1.0 - what.quality_loss)
    total -= s.latency * min(what.latency_ms, s.deadline_ms) / s.latency_ms
    total -= s.energy * what.energy_mj / s.energy_mj
    total -= s.traffic * what.traffic_bytes / s.traffic_bytes
    total -= s.privacy * what.privacy_risk
    if s.version == "v1":
        total -= s.resources * min(what.busy_ms / interval_ms, 1.0)
    if not what.seen:
        total -= s.unseen * (s.unseen_certain + (1.0 - s.unseen_certain) * what.doubt)
    return total


def quality_losses(table: CutTable) -> list[float]:
    """Accuracy each row loses against the full path, where accuracy was measured; else 1 - agreement. Never negative:
    a cut that tested better than the whole encoder did so by chance."""
    if all(math.isfinite(row.accuracy) for row in table.rows):
        # A part of a table may lack the full path: against the best that is left, the order stays the same.
        whole = [row.accuracy for row in table.rows if row.cut.block == table.num_blocks]
        best = max(whole or [row.accuracy for row in table.rows])
        return [max(best - row.accuracy, 0.0) for row in table.rows]
    return [max(1.0 - row.agreement, 0.0) for row in table.rows]


def risk_of(row: CutRow) -> float:
    """The row's privacy risk; 0 where nobody measured it."""
    return 0.0 if math.isnan(row.privacy_risk) else row.privacy_risk
