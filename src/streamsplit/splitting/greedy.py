"""The default policy: the cut with the least expected cost, from measured costs and the state of the moment."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from streamsplit.config import Settings, setting
from streamsplit.errors import CutError
from streamsplit.splitting.decision import Decision
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.table import CutRow, CutTable

LONGEST_RTT_MS = 1e9  # beyond it, or below 0, an estimate says nothing


@dataclass(frozen=True, kw_only=True)
class GreedySettings(Settings):
    """Weights of the cost, in the units of v2's reward (section 7): 10 quality - 5 latency/200 ms - 3 energy/100 mJ."""

    quality: float = setting(10.0, low=0.0)  # per unit of (1 - agreement)
    latency: float = setting(5.0, low=0.0)  # per `latency_ms`
    energy: float = setting(3.0, low=0.0)  # per `energy_mj`
    traffic: float = setting(4.0, low=0.0)  # per `traffic_bytes`; not in the papers: data volume has a price, too
    privacy: float = setting(0.0, low=0.0)  # per unit of privacy risk, where a table holds it
    local: float = setting(10.0, low=0.0)  # a window the server never sees, at full uncertainty; half of it at none
    latency_ms: float = setting(200.0, low=1e-3)
    energy_mj: float = setting(100.0, low=1e-3)
    traffic_bytes: float = setting(16_000.0, low=1.0)  # half a second of PCM16: what a window would cost uncoded
    interval_ms: float = setting(500.0, low=1.0)  # a window starts this often: slower stages fall behind
    horizon_windows: int = setting(10, low=1)  # over how many windows falling behind is counted
    stickiness: float = setting(0.10, low=0.0, high=1.0)  # share by which another cut must be cheaper to be taken
    least_gain: float = setting(0.05, low=0.0)  # and at least this much cost
    assumed_bps: float = setting(1e6, low=1.0)  # uplink rate before the first estimate
    assumed_rtt_ms: float = setting(80.0, low=0.0)
    fresh_ms: float = setting(5_000.0, low=0.0)  # an estimate younger than this is taken as it is
    half_life_ms: float = setting(15_000.0, low=1.0)  # then half of it (in log) is forgotten in each such time
    full_uncertainty: float = setting(math.log(64), low=1e-6)  # nats: entropy of 64 equal components
    least_free_cpu: float = setting(0.05, low=1e-3, high=1.0)

    @classmethod
    def from_reward(
        cls, accuracy: float, resource_usage: float, latency: float, privacy_risk: float, **changes: float
    ) -> GreedySettings:
        """Weights from v1's reward (1.0, -0.5, -0.3, -0.2): signs dropped, scaled so that accuracy 1.0 weighs 10."""
        return cls(
            quality=10 * abs(accuracy),
            energy=10 * abs(resource_usage),
            latency=10 * abs(latency),
            privacy=10 * abs(privacy_risk),
            **changes,  # type: ignore[arg-type]
        )


class CutCost(NamedTuple):
    """Expected consequences of one cut, and their weighted sum."""

    row: CutRow
    latency_ms: float
    behind_ms: float  # how far device or link fall behind over the horizon
    total: float


class GreedyPolicy:
    """Argmin of expected latency, energy, bytes and quality loss, with hysteresis.

    Latency = edge_ms / free cpu + backlog and payload over the link rate + round trip + server_ms; what keeps the
    device or the link busier than a window lasts is charged with the delay that builds up. A stale rate is pulled
    toward `assumed_bps`, from above and from below: a device that stopped sending tries again. With the link down
    nothing but size matters: the window waits in the offline queue.
    """

    def __init__(self, settings: GreedySettings | None = None) -> None:
        self.settings = settings or GreedySettings()

    def decide(self, observation: Observation, table: CutTable) -> Decision:
        """The cheapest cut, or the last one where no other is clearly cheaper."""
        if not observation.link_up:
            return self._offline(observation, table)
        costs = sorted(self.costs(observation, table), key=lambda cost: (cost.total, -cost.row.cut.block))
        best = costs[0]
        confidence = self._confidence(costs, observation)
        held = next((cost for cost in costs if cost.row.cut == observation.last_cut), None)
        if held is not None and held.row.cut != best.row.cut:
            needed = max(self.settings.least_gain, self.settings.stickiness * held.total)
            if held.total - best.total < needed:
                return Decision(
                    held.row.cut,
                    confidence,
                    f"stays at {held.row.cut}: {best.row.cut} is cheaper by {held.total - best.total:.2f} only",
                )
        return Decision(best.row.cut, confidence, self._reason(best, observation))

    def costs(self, observation: Observation, table: CutTable) -> list[CutCost]:
        """Expected cost of every row of the table, in its order."""
        s = self.settings
        free_cpu = max(1.0 - _share(observation.cpu), s.least_free_cpu)
        bps = self.bandwidth_bps(observation)
        rtt_ms = observation.rtt_ms if 0.0 <= observation.rtt_ms <= LONGEST_RTT_MS else s.assumed_rtt_ms
        backlog_ms = observation.backlog_bytes * 8000.0 / bps
        unknown = not math.isfinite(observation.uncertainty)
        doubt = 0.5 if unknown else _share(observation.uncertainty / s.full_uncertainty)
        results = []
        for row in table.rows:
            edge_ms = row.edge_ms / free_cpu
            send_ms = row.payload_bytes * 8000.0 / bps
            behind_ms = s.horizon_windows * (max(edge_ms - s.interval_ms, 0.0) + max(send_ms - s.interval_ms, 0.0))
            # What waits already only clears if the link has time left: half the horizon is the mean over it.
            latency_ms = edge_ms + behind_ms / 2
            total = 0.0
            if row.cut.sends:
                latency_ms += backlog_ms + send_ms + rtt_ms + row.server_ms
                spare_ms = max(s.interval_ms - send_ms, 0.0) * s.horizon_windows
                latency_ms += max(backlog_ms - spare_ms, 0.0) / 2
            else:
                total += s.local * (0.5 + 0.5 * doubt)
            total += s.latency * latency_ms / s.latency_ms
            total += s.energy * row.energy_mj / s.energy_mj
            total += s.traffic * row.payload_bytes / s.traffic_bytes
            total += s.quality * max(1.0 - row.agreement, 0.0)
            if not math.isnan(row.privacy_risk):
                total += s.privacy * row.privacy_risk
            results.append(CutCost(row, latency_ms, behind_ms, total))
        if not results:
            raise CutError(f"got a cut table without rows for '{table.encoder}', expected at least one")
        return results

    def bandwidth_bps(self, observation: Observation) -> float:
        """The uplink rate to count with: the estimate while fresh, then (in log) on its way to `assumed_bps`."""
        s = self.settings
        if not (math.isfinite(observation.bandwidth_bps) and observation.bandwidth_bps > 0):
            return s.assumed_bps
        trust = self._trust(observation)
        if trust == 0.0:
            return s.assumed_bps
        return math.exp(trust * math.log(observation.bandwidth_bps) + (1.0 - trust) * math.log(s.assumed_bps))

    def _trust(self, observation: Observation) -> float:
        stale_ms = max(observation.bandwidth_age_ms - self.settings.fresh_ms, 0.0)
        return 0.5 ** (stale_ms / self.settings.half_life_ms)

    def _confidence(self, costs: list[CutCost], observation: Observation) -> float:
        """Weight of the best among the best cuts of each block (softmin at unit cost), less if the rate is a guess."""
        best_by_block: dict[int, float] = {}
        for cost in costs:
            best_by_block.setdefault(cost.row.cut.block, cost.total)
        lowest = costs[0].total
        weights = [math.exp(lowest - total) for total in best_by_block.values()]
        known = self._trust(observation) if math.isfinite(observation.bandwidth_bps) else 0.0
        return (0.5 + 0.5 * known) / sum(weights)

    def _reason(self, best: CutCost, observation: Observation) -> str:
        if not best.row.cut.sends:
            return f"kept local: sending costs more than the server's view is worth at cpu {observation.cpu:.0%}"
        return (
            f"least cost {best.total:.2f}: {best.latency_ms:.0f} ms, {best.row.payload_bytes:.0f} B, "
            f"{best.row.energy_mj:.1f} mJ, agreement {best.row.agreement:.3f} "
            f"at cpu {observation.cpu:.0%}, {self.bandwidth_bps(observation) / 1e6:.2f} Mbit/s"
        )

    def _offline(self, observation: Observation, table: CutTable) -> Decision:
        rows = [row for row in table.rows if row.cut.sends] or list(table.rows)
        row = min(rows, key=lambda row: (row.payload_bytes, row.edge_ms))
        return Decision(row.cut, 1.0, f"link down: {row.payload_bytes:.0f} B a window is the least for the queue")


def _share(value: float) -> float:
    """Clipped to [0, 1]; nan counts as 0."""
    return min(max(value, 0.0), 1.0) if value == value else 0.0
