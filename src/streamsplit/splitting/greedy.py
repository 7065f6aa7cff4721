"""The default policy: the cut with the least expected cost, from measured costs and the state of the moment."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from streamsplit.config import Settings, setting
from streamsplit.errors import CutError
from streamsplit.splitting.decision import Decision
from streamsplit.splitting.expected import (
    LONGEST_RTT_MS,
    Conditions,
    CutArrays,
    Expectation,
    Floats,
    rate_bps,
    share,
    trust,
)
from streamsplit.splitting.objective import ObjectiveSettings
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.table import CutRow, CutTable

LEAST_FREE_CPU = 0.1  # however busy a device says it is: a fair scheduler starves nobody


@dataclass(frozen=True, kw_only=True)
class GreedySettings(Settings):
    """Weights of the cost, in the units of v2's reward (section 7): 10 quality - 5 latency/200 ms - 3 energy/100 mJ."""

    quality: float = setting(10.0, low=0.0)  # per unit of (1 - agreement)
    latency: float = setting(5.0, low=0.0)  # per `latency_ms`
    energy: float = setting(3.0, low=0.0)  # per `energy_mj`
    traffic: float = setting(4.0, low=0.0)  # per `traffic_bytes`; not in the papers: data volume has a price, too
    privacy: float = setting(0.0, low=0.0)  # per unit of privacy risk, where a table holds it
    local: float = setting(10.0, low=0.0)  # a window the server never sees, at full uncertainty
    local_certain: float = setting(0.5, low=0.0, high=1.0)  # share of `local` that remains at none
    deadline_ms: float = setting(1e9, low=1.0)  # latency beyond it costs nothing more; by default it always does
    latency_ms: float = setting(200.0, low=1e-3)
    energy_mj: float = setting(100.0, low=1e-3)
    traffic_bytes: float = setting(16_000.0, low=1.0)  # half a second of PCM16: cheap, as features teach the server
    interval_ms: float = setting(500.0, low=1.0)  # a window starts this often: slower stages fall behind
    horizon_windows: int = setting(10, low=1)  # over how many windows falling behind is counted
    stickiness: float = setting(0.10, low=0.0, high=1.0)  # share by which another cut must be cheaper to be taken
    least_gain: float = setting(0.05, low=0.0)  # and at least this much cost
    assumed_bps: float = setting(1e6, low=1.0)  # uplink rate before the first estimate
    assumed_rtt_ms: float = setting(80.0, low=0.0)
    fresh_ms: float = setting(5_000.0, low=0.0)  # an estimate younger than this is taken as it is
    half_life_ms: float = setting(15_000.0, low=1.0)  # then half of it (in log) is forgotten in each such time
    overdue_rtts: float = setting(2.0, low=0.0)  # an answer later than so many round trips shows a stuck link
    full_uncertainty: float = setting(math.log(64), low=1e-6)  # nats: entropy of 64 equal components
    least_free_cpu: float = setting(LEAST_FREE_CPU, low=1e-3, high=1.0)

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

    @classmethod
    def from_objective(cls, objective: ObjectiveSettings, interval_ms: float, **changes: float) -> GreedySettings:
        """The weights that expect what `objective` rewards; v1's busy time has no counterpart here but energy's."""
        return cls(
            quality=objective.quality,
            latency=objective.latency,
            energy=objective.energy,
            traffic=objective.traffic,
            privacy=objective.privacy,
            local=objective.unseen,
            local_certain=objective.unseen_certain,
            latency_ms=objective.latency_ms,
            energy_mj=objective.energy_mj,
            traffic_bytes=objective.traffic_bytes,
            full_uncertainty=objective.full_uncertainty,
            deadline_ms=objective.deadline_ms,
            interval_ms=interval_ms,
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
        self._model: CostModel | None = None  # of the table seen last

    def decide(self, observation: Observation, table: CutTable) -> Decision:
        """The cheapest cut, or the last one where no other is clearly cheaper."""
        if not observation.link_up:
            return self._offline(observation, table)
        expected = self.expectation(observation, table)
        model = self._model
        assert model is not None  # expectation() has just made it
        totals = expected.total
        best = model.cheapest(totals)
        confidence = self._confidence(model, totals, observation)
        held = model.rows.get(observation.last_cut) if observation.last_cut is not None else None
        row, least = table.rows[best], float(totals[best])
        if held is not None and held != best:
            gain = float(totals[held]) - least
            if gain < max(self.settings.least_gain, self.settings.stickiness * float(totals[held])):
                cut = table.rows[held].cut
                return Decision(cut, confidence, f"stays at {cut}: {row.cut} is cheaper by {gain:.2f} only")
        cost = CutCost(row, float(expected.latency_ms[best]), float(expected.behind_ms[best]), least)
        return Decision(row.cut, confidence, self._reason(cost, observation))

    def costs(self, observation: Observation, table: CutTable) -> list[CutCost]:
        """Expected cost of every row of the table, in its order."""
        expected = self.expectation(observation, table)
        return [
            CutCost(row, *values)
            for row, *values in zip(table.rows, *(part.tolist() for part in expected), strict=True)
        ]

    def expectation(self, observation: Observation, table: CutTable) -> Expectation:
        """The same as arrays [n]; raises CutError for a table without rows."""
        if not table.rows:
            raise CutError(f"got a cut table without rows for '{table.encoder}', expected at least one")
        if self._model is None or self._model.table is not table:
            self._model = CostModel(self.settings, table)
        expected = self._model.expect(self.conditions(observation))
        if observation.room < 0:
            return expected
        return expected._replace(total=expected.total + self._passing(observation, self._model.arrays))

    def _passing(self, observation: Observation, arrays: CutArrays) -> Floats:
        """What the weights that pass through for every window cost [n]: those of blocks beyond the device's room."""
        s = self.settings
        there = float(arrays.fetch_bytes[arrays.block <= observation.room].max(initial=0.0))
        extra = np.where(arrays.block > observation.room, np.maximum(arrays.fetch_bytes - there, 0.0), 0.0)
        # nobody measures the downlink: the uplink's rate, as in steady.py
        delay_ms = np.minimum(extra * 8000.0 / self.bandwidth_bps(observation), s.deadline_ms)
        cost: Floats = s.traffic * extra / s.traffic_bytes + s.latency * delay_ms / s.latency_ms
        return cost

    def conditions(self, observation: Observation) -> Conditions:
        """The observation with its unknowns filled in."""
        s = self.settings
        bps = self.bandwidth_bps(observation)
        rtt_ms = self._rtt_ms(observation)
        # Small frames say little of the rate, but one that is overdue says that the link is stuck; the longer it has
        # been, the longer it will be (dips of mobile links are heavy-tailed).
        waiting_ms = observation.waiting_ms if 0.0 < observation.waiting_ms <= LONGEST_RTT_MS else 0.0
        stuck_ms = waiting_ms - s.overdue_rtts * rtt_ms
        unknown = not math.isfinite(observation.uncertainty)
        return Conditions(
            free_cpu=max(1.0 - share(observation.cpu), s.least_free_cpu),
            bps=bps,
            rtt_ms=rtt_ms,
            backlog_ms=max(observation.backlog_bytes * 8000.0 / bps, stuck_ms),
            doubt=0.5 if unknown else share(observation.uncertainty / s.full_uncertainty),
        )

    def _rtt_ms(self, observation: Observation) -> float:
        """The round trip to count with, aged as the rate is: one slow probe does not keep a device silent for long."""
        s = self.settings
        if not 0.0 <= observation.rtt_ms <= LONGEST_RTT_MS:
            return s.assumed_rtt_ms
        known = trust(observation.rtt_age_ms, s.fresh_ms, s.half_life_ms)
        return known * observation.rtt_ms + (1.0 - known) * s.assumed_rtt_ms

    def bandwidth_bps(self, observation: Observation) -> float:
        """The uplink rate to count with: the estimate while fresh, then (in log) on its way to `assumed_bps`."""
        s = self.settings
        return rate_bps(observation, s.assumed_bps, s.fresh_ms, s.half_life_ms)

    def _trust(self, observation: Observation) -> float:
        return trust(observation.bandwidth_age_ms, self.settings.fresh_ms, self.settings.half_life_ms)

    def _confidence(self, model: CostModel, totals: Floats, observation: Observation) -> float:
        """Weight of the best among the best cuts of each block (softmin at unit cost), less if the rate is a guess."""
        by_block = np.minimum.reduceat(totals, model.block_starts)
        weights = np.exp(np.minimum.reduce(by_block) - by_block)
        known = self._trust(observation) if math.isfinite(observation.bandwidth_bps) else 0.0
        return (0.5 + 0.5 * known) / float(np.add.reduce(weights))

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


class CostModel:
    """The expected cost of every row of one table, as GreedyPolicy counts it, with all that is constant worked out."""

    def __init__(self, settings: GreedySettings, table: CutTable) -> None:
        s, arrays = settings, CutArrays.of(table)
        self.settings = s
        self.table = table
        self.arrays = arrays
        self._bits = arrays.payload_bytes * 8000.0  # over bit/s gives ms
        self.rows = {row.cut: index for index, row in enumerate(table.rows)}
        block = arrays.block
        self.block_starts = np.flatnonzero(np.concatenate([[True], block[1:] != block[:-1]]))  # rows are in order
        self._nothing: Floats = np.zeros(len(table.rows))
        self._longest_ms, self._most_bits = float(arrays.edge_ms.max()), float(self._bits.max())
        self._sends = arrays.sends.astype(float)
        self._keeps = 1.0 - self._sends
        self._server_ms = arrays.server_ms * self._sends
        self._fixed = (s.energy / s.energy_mj) * arrays.energy_mj + s.quality * arrays.quality_loss
        self._fixed += (s.traffic / s.traffic_bytes) * arrays.payload_bytes + s.privacy * arrays.privacy_risk

    def cheapest(self, totals: Floats) -> int:
        """The row with the least; of equals the deepest."""
        best = int(totals.argmin())
        equal = np.flatnonzero(totals == totals[best])
        return best if len(equal) == 1 else max(equal.tolist(), key=lambda i: (self.arrays.block[i], -i))

    def expect(self, given: Conditions) -> Expectation:
        """Latency, delay that builds up, and weighted cost of every row [n] under `given`."""
        s = self.settings
        edge_ms = self.arrays.edge_ms / given.free_cpu
        send_ms = self._bits / given.bps
        latency_ms = self._sends * (given.backlog_ms + given.rtt_ms)
        latency_ms += edge_ms
        latency_ms += send_ms
        latency_ms += self._server_ms
        behind_ms = self._nothing
        if self._longest_ms > s.interval_ms * given.free_cpu or self._most_bits > s.interval_ms * given.bps:
            behind_ms = np.maximum(edge_ms - s.interval_ms, 0.0) + np.maximum(send_ms - s.interval_ms, 0.0)
            behind_ms *= s.horizon_windows
            latency_ms += 0.5 * behind_ms
        if given.backlog_ms > 0:
            # What waits already only clears if the link has time left: half the horizon is the mean over it.
            spare_ms = s.horizon_windows * np.maximum(s.interval_ms - send_ms, 0.0)
            latency_ms += 0.5 * self._sends * np.maximum(given.backlog_ms - spare_ms, 0.0)
        unseen = s.local * (s.local_certain + (1.0 - s.local_certain) * given.doubt)
        total = np.minimum(latency_ms, s.deadline_ms)
        total *= s.latency / s.latency_ms
        total += self._fixed
        total += unseen * self._keeps
        return Expectation(latency_ms, behind_ms, total)
