"""Online correction of a learned policy: what windows really took against what was expected, learned while running."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamsplit.config import Settings, setting
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.decision import Decision, Experience
from streamsplit.splitting.expected import CutArrays
from streamsplit.splitting.greedy import GreedyPolicy
from streamsplit.splitting.learned import LearnedPolicy
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.ridge import DiscountedRidge
from streamsplit.splitting.table import CutTable

Floats64 = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class CorrectionSettings(Settings):
    """How fast the correction learns and forgets."""

    discount: float = setting(0.98, low=0.5, high=1.0)
    regularisation: float = setting(1.0, low=1e-6)
    exploration: float = setting(0.0, low=0.0)  # optimism, in units of 100 ms
    warm_up_windows: int = setting(10, low=1)  # nothing is corrected before


class CorrectedPolicy:
    """A learned policy whose expected latencies are corrected by a linear bandit (edge time, bytes, sends at all).

    The residual of each window, its latency minus the one expected when it was chosen, is regressed on what it asked of
    the processor and of the link; the expected cost of every action then moves by what that says. A table that is wrong
    by a factor, a throttled processor or a slow server show up here within some ten windows.
    """

    def __init__(self, policy: LearnedPolicy, settings: CorrectionSettings | None = None) -> None:
        self.policy = policy
        self.settings = settings or CorrectionSettings()
        self._model = DiscountedRidge(3, regularisation=self.settings.regularisation, discount=self.settings.discount)
        self._table: CutTable | None = None
        self._expected = GreedyPolicy(policy.file.settings)
        self._rows: dict[Cut, int] = {}
        self._contexts: dict[Cut, Floats64] = {}
        self._matrix: Floats64 = np.zeros((0, 3))

    def decide(self, observation: Observation, table: CutTable) -> Decision:
        """The learned policy's choice with its costs corrected; its own fallback stays as it is."""
        if table is not self._table:
            self._prepare(table)
        decision = self.policy.decide(observation, table)
        builder = self.policy.builder(table)
        outside = decision.reason.startswith("outside")
        if builder is None or outside or self._model.samples < self.settings.warm_up_windows:
            return decision
        vector, costs = builder.build(observation)
        s = self.policy.file.settings
        late_ms = 100.0 * self._model.predict(self._matrix)
        if self.settings.exploration:
            late_ms = late_ms - 100.0 * self.settings.exploration * self._model.width(self._matrix)
        costs = costs + s.latency / s.latency_ms * late_ms
        logits = self.policy.logits(builder.with_costs(vector, costs), costs)
        best = int(np.argmax(logits))
        cut = self.policy.file.cuts[best]
        if cut == decision.cut:
            return decision
        confidence = 1.0 / float(np.exp(logits - logits[best]).sum())
        return Decision(cut, confidence, f"corrected by {late_ms[best]:+.0f} ms of experience; {decision.cut} before")

    def learn(self, experience: Experience) -> None:
        """Compares what a window took with what was expected of its cut when it was chosen."""
        context = self._contexts.get(experience.cut)
        if context is None or self._table is None or not math.isfinite(experience.latency_ms):
            return
        expected = self._expected.expectation(experience.observation, self._table)
        limit = self.policy.file.settings.deadline_ms
        late_ms = min(experience.latency_ms, limit) - min(expected.latency_ms[self._rows[experience.cut]], limit)
        self._model.update(context, float(late_ms) / 100.0)

    def _prepare(self, table: CutTable) -> None:
        arrays = CutArrays.of(table)
        columns = np.stack([arrays.edge_ms / 100.0, arrays.payload_bytes / 10_000.0, arrays.sends], axis=1).astype(
            float
        )
        self._table = table
        self._rows = {row.cut: i for i, row in enumerate(table.rows)}
        self._contexts = {row.cut: columns[i] for i, row in enumerate(table.rows)}
        missing = np.zeros(3)
        self._matrix = np.stack([self._contexts.get(cut, missing) for cut in self.policy.file.cuts])
