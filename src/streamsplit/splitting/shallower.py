"""What is done in place of a cut whose blocks are not on the device, or not yet."""

from __future__ import annotations

from collections.abc import Collection

from streamsplit.splitting.constraints import Constraints, ConstraintSettings
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.greedy import GreedyPolicy, GreedySettings
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.table import CutRow, CutTable
from streamsplit.wire.media import Encoding


class Shallower:
    """Chooses among the rows that the constraints allow; what they forbid is not done for want of weights either."""

    def __init__(self, constraints: ConstraintSettings, costs: GreedySettings | None = None) -> None:
        self._settings = constraints
        self._constraints: Constraints | None = None
        self._policy = GreedyPolicy(costs)
        self._parts: dict[tuple[Cut, ...], CutTable] = {}

    def deepest(self, table: CutTable, blocks: int, observation: Observation) -> Cut | None:
        """The cut that sends after the deepest block up to `blocks`, of several the cheapest; None: none may be."""
        rows = [row for row in self._allowed(table, observation) if row.cut.block <= blocks]
        depth = max((row.cut.block for row in rows), default=0)
        cuts = tuple(row.cut for row in rows if row.cut.block == depth)
        if not cuts:
            return None
        if cuts not in self._parts:
            self._parts[cuts] = table.only(cuts)
        return self._policy.decide(observation._replace(last_cut=None), self._parts[cuts]).cut

    def smallest(self, table: CutTable, blocks: Collection[int], observation: Observation) -> Cut | None:
        """The cut after one of these blocks that sends least, early exits left out; None: none may be."""
        rows = [row for row in self._allowed(table, observation) if row.cut.block in blocks]
        rows = [row for row in rows if row.cut.encoding is not Encoding.EXIT_FP16]
        return min(rows, key=lambda row: row.payload_bytes).cut if rows else None

    def _allowed(self, table: CutTable, observation: Observation) -> list[CutRow]:
        if self._constraints is None or self._constraints.table is not table:
            self._constraints, self._parts = Constraints(self._settings, table), {}
        mask = self._constraints.allowed(observation)
        return [row for row, allowed in zip(table.rows, mask, strict=True) if allowed and row.cut.sends]
