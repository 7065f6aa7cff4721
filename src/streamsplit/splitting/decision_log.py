"""What was decided, what else there was to choose, and in hindsight how much better the best choice would have been."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from streamsplit.splitting.constraints import Constraints, ConstraintSettings
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.decision import Decision
from streamsplit.splitting.device import DeviceProfile
from streamsplit.splitting.greedy import CostModel, GreedyPolicy, GreedySettings
from streamsplit.splitting.hindsight import Hindsight, Realised
from streamsplit.splitting.objective import ObjectiveSettings
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.table import CutTable

ALTERNATIVES = 3


class Alternative(NamedTuple):
    """A cut and its expected cost."""

    cut: Cut
    cost: float


class Decided(NamedTuple):
    """One decision as the log keeps it."""

    number: int  # 0, 1, ...
    cut: Cut
    reason: str
    confidence: float
    expected: float  # cost of the cut, nan where the table lacks it
    alternatives: tuple[Alternative, ...]  # the best other ones, cheapest first
    observation: Observation
    table: CutTable

    def plain(self) -> list[list[str | float]]:
        """The alternatives as a line of JSON holds them."""
        return [[str(other.cut), round(other.cost, 4)] for other in self.alternatives]


class Judged(NamedTuple):
    """A decision in hindsight."""

    cost: float  # of what was done
    regret: float  # that cost minus the least that any allowed row would have had; never negative
    best: Cut


class DecisionLog:
    """Counts decisions and judges them, all by one objective whatever the policy, so that policies compare.

    Costs are `objective.quality` - reward, 0 at best. `constraints` say which rows count as choices. Times come in as
    arguments; not for more than one thread at a time.
    """

    def __init__(
        self,
        device: DeviceProfile,
        objective: ObjectiveSettings | None = None,
        constraints: ConstraintSettings | None = None,
        *,
        interval_ms: float = 500.0,
        whole_factor: float = 2.0,
    ) -> None:
        self.objective = objective or ObjectiveSettings()
        self.decisions = 0
        self.changes = 0
        self.judged = 0
        self.regret = 0.0  # sum
        self._device = device
        self._constraints = constraints or ConstraintSettings()
        self._interval_ms, self._whole_factor = interval_ms, whole_factor
        expected = GreedySettings.from_objective(self.objective, interval_ms)
        self._settings = expected.replace(deadline_ms=self.objective.deadline_ms)
        self._conditions = GreedyPolicy(self._settings)
        self._prepared: _Prepared | None = None

    @property
    def mean_regret(self) -> float:
        """Per judged decision; nan before the first."""
        return self.regret / self.judged if self.judged else math.nan

    def decided(self, observation: Observation, decision: Decision, table: CutTable) -> Decided:
        """Notes a decision with the alternatives there were."""
        known = self._for(table)
        totals = known.costs.expect(self._conditions.conditions(observation)).total
        row = known.rows.get(decision.cut)
        order = np.argsort(totals)[: ALTERNATIVES + 1].tolist()
        others = tuple(Alternative(known.cuts[i], float(totals[i])) for i in order if i != row)[:ALTERNATIVES]
        made = Decided(
            self.decisions, decision.cut, decision.reason, decision.confidence,
            math.nan if row is None else float(totals[row]), others, observation, table,
        )  # fmt: skip
        self.decisions += 1
        self.changes += observation.last_cut is not None and observation.last_cut != decision.cut
        return made

    def judge(self, decided: Decided, realised: Realised) -> Judged | None:
        """What came of it; None where what was done is not what was decided, or cannot be judged."""
        if realised.cut != decided.cut:
            return None
        known = self._for(decided.table)
        found = known.hindsight.costs(realised)
        if found is None:
            return None
        taken, costs = found
        open_costs = costs
        if known.constraints is not None:
            allowed = known.constraints.allowed(decided.observation).copy()
            allowed[taken] = True
            open_costs = np.where(allowed, costs, np.inf)
        best = int(open_costs.argmin())
        regret = float(costs[taken] - costs[best])
        self.judged += 1
        self.regret += regret
        return Judged(float(costs[taken]), regret, decided.table.rows[best].cut)

    def doubt(self, uncertainty: float) -> float:
        """Uncertainty in nats as the objective counts it."""
        return self.objective.doubt(uncertainty)

    def _for(self, table: CutTable) -> _Prepared:
        if self._prepared is None or self._prepared.table is not table:
            hindsight = Hindsight(
                self.objective, table, self._device, interval_ms=self._interval_ms, whole_factor=self._whole_factor
            )
            free = self._constraints.forbids_nothing
            self._prepared = _Prepared(
                table,
                CostModel(self._settings, table),
                hindsight,
                None if free else Constraints(self._constraints, table),
            )
        return self._prepared


class _Prepared:
    """One table with what is worked out once."""

    def __init__(
        self, table: CutTable, costs: CostModel, hindsight: Hindsight, constraints: Constraints | None
    ) -> None:
        self.table, self.costs, self.hindsight, self.constraints = table, costs, hindsight, constraints
        self.cuts = table.cuts
        self.rows = {cut: index for index, cut in enumerate(self.cuts)}
