"""muLinUCB of ANS (Zhang et al., WWW 2021): learns online what sending costs, knows what computing costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamsplit.config import Settings, setting
from streamsplit.splitting.decision import Decision, Experience
from streamsplit.splitting.expected import CutArrays, share
from streamsplit.splitting.greedy import GreedySettings
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.ridge import DiscountedRidge
from streamsplit.splitting.table import CutTable

_DELAY_UNIT_MS = 100.0  # delays are learned in this unit, so that one regularisation fits them


@dataclass(frozen=True, kw_only=True)
class BanditSettings(Settings):
    """The paper's constants where it gives them."""

    exploration: float = setting(0.3, low=0.0)  # alpha, in units of 100 ms
    forced_share: float = setting(0.25, low=0.0, high=0.5)  # mu: one forced sample in about n ** mu windows
    discount: float = setting(0.97, low=0.5, high=1.0)  # forgetting, for links that change; 1 = the paper's first form
    regularisation: float = setting(0.1, low=1e-6)


class BanditPolicy:
    """Delay of a cut = what the device takes (by the table) + theta (1, payload, server time), theta learned online.

    Chooses the least optimistic cost, weighted by the same objective as the greedy policy. Windows the model is unsure
    about explore less (the paper's key frames). A cut that sends nothing teaches nothing, so now and then another one
    is forced. The delay of a window that crossed comes in by `learn`; nothing else is known of the link.
    """

    def __init__(self, settings: BanditSettings | None = None, objective: GreedySettings | None = None) -> None:
        self.settings = settings or BanditSettings()
        self.objective = objective or GreedySettings()
        self._model = DiscountedRidge(3, regularisation=self.settings.regularisation, discount=self.settings.discount)
        self._table: CutTable | None = None
        self._windows = 0
        self._since_sent = 0

    def decide(self, observation: Observation, table: CutTable) -> Decision:
        """The row with the least optimistic cost; now and then one that sends."""
        s = self.objective
        if table is not self._table:
            self._prepare(table)
        self._windows += 1
        doubt = share(observation.uncertainty / s.full_uncertainty) if math.isfinite(observation.uncertainty) else 0.5
        free = max(1.0 - share(observation.cpu), s.least_free_cpu)
        delay = np.maximum(self._model.predict(self._contexts), 0.0)
        delay -= self.settings.exploration * math.sqrt(1.0 - doubt) * self._model.width(self._contexts)
        latency_ms = self._arrays.edge_ms / free + np.where(self._arrays.sends, delay * _DELAY_UNIT_MS, 0.0)
        unseen = s.local * (s.local_certain + (1.0 - s.local_certain) * doubt)
        costs = self._fixed + (s.latency / s.latency_ms) * np.minimum(latency_ms, s.deadline_ms)
        costs += np.where(self._arrays.sends, 0.0, unseen)
        due = max(int(self._windows**self.settings.forced_share), 2)
        forced = self._since_sent >= due and self._arrays.sends.any()
        if forced:
            costs = np.where(self._arrays.sends, costs, np.inf)
        best = int(np.argmin(costs))
        self._since_sent = 0 if self._arrays.sends[best] else self._since_sent + 1
        if self._since_sent:
            self._model.forget()  # links change with time, not with samples
        row = table.rows[best]
        reason = f"bandit after {self._model.samples} samples: {latency_ms[best]:.0f} ms expected at best"
        return Decision(row.cut, 1.0, f"{reason}, forced to send" if forced else reason)

    def learn(self, experience: Experience) -> None:
        """A window that crossed took `network_ms` from leaving the device's processor to its result."""
        if self._table is None or not math.isfinite(experience.network_ms):
            return
        late_ms = min(experience.network_ms, self.objective.deadline_ms)
        for row, context in zip(self._table.rows, self._contexts, strict=True):
            if row.cut == experience.cut and row.cut.sends:
                self._model.update(context, late_ms / _DELAY_UNIT_MS)

    def _prepare(self, table: CutTable) -> None:
        s = self.objective
        arrays = CutArrays.of(table)
        self._table, self._arrays = table, arrays
        ones: NDArray[np.float64] = np.ones(len(table.rows))
        self._contexts = np.stack([ones, arrays.payload_bytes / 10_000.0, arrays.server_ms / 10.0], axis=1)
        self._fixed = (s.energy / s.energy_mj) * arrays.energy_mj + s.quality * arrays.quality_loss
        self._fixed += (s.traffic / s.traffic_bytes) * arrays.payload_bytes + s.privacy * arrays.privacy_risk
