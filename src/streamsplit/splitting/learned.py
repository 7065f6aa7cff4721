"""The learned policy on a device: a small numpy network on top of expected costs, with a way out of its depth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamsplit.splitting.decision import Decision
from streamsplit.splitting.features import STATE_FEATURES, FeatureBuilder, saturated
from streamsplit.splitting.greedy import GreedyPolicy
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.policy_file import PolicyFile
from streamsplit.splitting.table import CutTable

Floats64 = NDArray[np.float64]
Floats32 = NDArray[np.float32]
RANGE_MARGIN = 0.05  # of a feature's range in training, beyond which it counts as outside


class LearnedPolicy:
    """Logits = network(state, costs) - cost weight x (expected costs), the highest wins; masked where there is no row.

    A state outside the range seen in training is answered by the greedy policy on the same objective, and the reason
    says so. A table without some of its cuts, as constraints or a missing codec leave one, is such a state unless
    training knew constraints: the network reads the costs of all its actions. Holds no state between windows.
    """

    def __init__(self, file: PolicyFile) -> None:
        self.file = file
        self.fallbacks = 0  # decisions that the greedy policy made instead
        self._greedy = GreedyPolicy(file.settings)
        self._table: CutTable | None = None
        self._builder: FeatureBuilder | None = None  # for that table
        *self._hidden, self._last = [(layer.weight, layer.bias) for layer in file.layers]
        self._cost_weight = np.float32(file.cost_weight)
        margin = RANGE_MARGIN * (file.high - file.low) + 1e-3
        self._low, self._high = file.low - margin, file.high + margin
        self._states = len(STATE_FEATURES)
        self._saw_masks = file.saw_masks

    def decide(self, observation: Observation, table: CutTable) -> Decision:
        """The best action's cut; raises CutError when the table is of another kind than the policy's."""
        builder = self.builder(table)
        if builder is None:
            return self._fall_back(observation, table, "none of its cuts may be taken")
        if not (builder.whole or self._saw_masks):
            missing = [str(cut) for cut, there in zip(self.file.cuts, builder.available, strict=True) if not there]
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            return self._fall_back(observation, table, f"without {missing[0]}{more}")
        vector, costs = builder.build(observation)
        state = vector[: self._states]
        outside = (state < self._low) | (state > self._high)
        if np.logical_or.reduce(outside):
            named = ", ".join(f"{STATE_FEATURES[i]} {state[i]:.2f}" for i in np.flatnonzero(outside)[:2])
            return self._fall_back(observation, table, named)
        logits = self.logits(vector, costs)
        best = int(logits.argmax())
        confidence = 1.0 / float(np.add.reduce(np.exp(logits - logits[best])))
        least = float(np.minimum.reduce(costs))
        extra = float(costs[best]) - least
        how = "least expected cost" if extra <= 0 else f"{extra:.2f} above the least expected cost"
        return Decision(self.file.cuts[best], confidence, f"learned policy v{self.file.version}: {how} {least:.2f}")

    def logits(self, vector: Floats32, costs: Floats64) -> Floats32:
        """Of every action [n] from a `FeatureBuilder`'s vector and costs; -inf for what the table lacks."""
        hidden = vector
        for weight, bias in self._hidden:
            hidden = np.tanh(hidden @ weight + bias)
        weight, bias = self._last
        logits: Floats32 = hidden @ weight
        logits += bias
        logits -= self._cost_weight * saturated(vector[self._states :])
        if np.maximum.reduce(costs) == np.inf:
            logits[~np.isfinite(costs)] = -np.inf
        return logits

    def builder(self, table: CutTable) -> FeatureBuilder | None:
        """The features for `table`, made anew when it is another one; None when it has none of the policy's cuts.

        Raises CutError when it is of another kind.
        """
        if table is not self._table:
            self.file.check_kind(table)
            known = set(self.file.cuts).intersection(table.cuts)
            self._builder = FeatureBuilder(table, self.file.cuts, self.file.settings) if known else None
            self._table = table
        return self._builder

    def _fall_back(self, observation: Observation, table: CutTable, why: str) -> Decision:
        self.fallbacks += 1
        decision = self._greedy.decide(observation, table)
        return decision._replace(reason=f"outside of what the policy was trained on ({why}), so {decision.reason}")
