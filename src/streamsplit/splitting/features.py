"""What a learned policy looks at: a device's state and the expected cost of every action, as one vector of numbers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from streamsplit.splitting.cut import ACTIVATION_ENCODINGS, AUDIO_ENCODINGS, FEATURE_ENCODINGS, Cut
from streamsplit.splitting.expected import LONGEST_RTT_MS, share, trust
from streamsplit.splitting.greedy import CostModel, GreedyPolicy, GreedySettings
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.table import CutTable

Floats32 = NDArray[np.float32]
Floats64 = NDArray[np.float64]

STATE_FEATURES = (
    "doubt", "doubt unknown", "cpu", "memory", "battery", "thermal", "log10 Mbit/s", "trust in the rate",
    "log10 age of the rate in s", "log10 round trip in 100 ms", "log backlog in 100 ms", "log bytes waiting in kB",
    "link up", "last block", "last was audio", "last was features", "last was an activation", "last was an embedding",
    "last was nothing", "blocks on the device", "log10 interval in 500 ms", "log10 full path in intervals",
    "log10 energy of the full path in 100 mJ", "recent power in W", "log time without an answer in 100 ms",
    "log10 newest round trip in 100 ms",
)  # fmt: skip
WORST_COST = 12.0  # dearer than the cheapest by more than this is all the same
SATURATION = 4.0  # see saturated()
COST_SCALE = 4.0  # costs are divided by this in the vector


class FeatureBuilder:
    """Vectors [len(STATE_FEATURES) + n] for a table and `cuts`, the n actions: state, then costs above the least.

    The costs are the greedy policy's expectation, so that a learned policy starts from what is known about every cut
    and learns what the expectation misses. Actions that the table lacks are masked.
    """

    def __init__(self, table: CutTable, cuts: tuple[Cut, ...], settings: GreedySettings) -> None:
        rows = {row.cut: row for row in table.rows}
        self.cuts = cuts
        self.table = table
        self.available = np.array([cut in rows for cut in cuts])
        present = table._replace(rows=tuple(rows[cut] for cut in cuts if cut in rows))
        self._costs = CostModel(settings, present)
        self._greedy = GreedyPolicy(settings)
        self.whole = bool(self.available.all())
        full = max(present.rows, key=lambda row: (row.cut.block, row.edge_ms))
        self._statics = (
            math.log10(settings.interval_ms / 500.0),
            math.log10(max(full.edge_ms, 1e-3) / settings.interval_ms),
            math.log10(max(full.energy_mj, 1e-3) / 100.0),
        )
        self._depth = table.num_blocks

    def costs(self, observation: Observation) -> Floats64:
        """Expected cost of every action [n]; inf for one that the table lacks."""
        return self._spread(self._costs.expect(self._greedy.conditions(observation)).total)

    def build(self, observation: Observation) -> tuple[Floats32, Floats64]:
        """(the vector [f + n], the expected costs [n] with inf for what the table lacks)."""
        s = self._greedy.settings
        o = observation
        given = self._greedy.conditions(o)
        costs = self._spread(self._costs.expect(given).total)
        known = trust(o.bandwidth_age_ms, s.fresh_ms, s.half_life_ms) if math.isfinite(o.bandwidth_bps) else 0.0
        last, depth = o.last_cut, self._depth
        kind = _kind(last, depth)
        age_ms = o.bandwidth_age_ms if o.bandwidth_age_ms < 1e6 else 1e6  # nan, too: a rate of unknown age is old
        state = (
            given.doubt, not math.isfinite(o.uncertainty), share(o.cpu), share(o.memory), share(o.battery),
            share(o.thermal), _log10(given.bps / 1e6, -4.0, 4.0), known,
            _log10(max(age_ms, 1.0) / 1000.0, -3.0, 3.0), _log10(given.rtt_ms / 100.0, -3.0, 3.0),
            math.log1p(min(given.backlog_ms, 1e7) / 100.0), math.log1p(min(o.backlog_bytes, 1e9) / 1000.0),
            o.link_up, min(last.block, depth) / depth if last is not None else 0.0,
            kind == 0, kind == 1, kind == 2, kind == 3, kind == 4,
            (min(o.blocks, depth) if o.blocks >= 0 else depth) / depth, *self._statics,
            min(o.power_mw / 1000.0, 100.0) if o.power_mw > 0 else 0.0,
            math.log1p(min(o.waiting_ms, 1e7) / 100.0) if o.waiting_ms > 0 else 0.0,
            _log10((o.last_rtt_ms if 0.0 <= o.last_rtt_ms <= LONGEST_RTT_MS else given.rtt_ms) / 100.0, -3.0, 3.0),
        )  # fmt: skip
        vector = np.empty(len(state) + len(self.cuts), np.float32)
        vector[: len(state)] = state
        return self.with_costs(vector, costs), costs

    @staticmethod
    def with_costs(vector: Floats32, costs: Floats64) -> Floats32:
        """The vector with these costs [n] in the place of its own, written in place."""
        above = costs - np.minimum.reduce(costs)
        np.minimum(above, WORST_COST, out=above)
        above *= 1.0 / COST_SCALE
        vector[len(STATE_FEATURES) :] = above
        return vector

    def _spread(self, totals: Floats64) -> Floats64:
        if self.whole:
            return totals
        costs = np.full(len(self.cuts), np.inf)
        costs[self.available] = totals
        return costs


def saturated(above: Floats32) -> Floats32:
    """What costs above the least, as they stand in the vector, take from an action's logit at a weight of 1.

    In proportion while small; the dearest end at `SATURATION`, so that training still tries what the expectation
    condemns: that is where the expectation may be wrong.
    """
    cost = above * np.float32(COST_SCALE)
    return cost / (np.float32(1.0) + cost / np.float32(SATURATION))


def _kind(cut: Cut | None, depth: int) -> int:
    if cut is None:
        return -1
    if not cut.sends:
        return 4
    if cut.encoding in AUDIO_ENCODINGS:
        return 0
    if cut.encoding in FEATURE_ENCODINGS:
        return 1
    return 2 if cut.encoding in ACTIVATION_ENCODINGS and cut.block < depth else 3


def _log10(value: float, low: float, high: float) -> float:
    return min(max(math.log10(value), low), high) if value > 0 else low
