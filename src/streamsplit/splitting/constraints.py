"""Hard constraints on what a policy may choose: a privacy floor and an energy budget, as masks over a table's rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamsplit.config import Settings, setting
from streamsplit.errors import CutError
from streamsplit.splitting.decision import Decision, Experience, LearningPolicy, Policy
from streamsplit.splitting.expected import CutArrays, share
from streamsplit.splitting.greedy import LEAST_FREE_CPU
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.table import CutTable

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ConstraintSettings(Settings):
    """What may never happen, whatever it would gain. The defaults forbid nothing."""

    raw_audio: bool = setting(True)  # False: sound, coded or not, never leaves the device
    max_privacy_risk: float = setting(1.0, low=0.0, high=1.0)  # rows measured above it are never taken
    max_quality_loss: float = setting(1.0, low=0.0, high=1.0)  # accuracy below the whole encoder's; 0.01 = one point
    energy_budget_mw: float = setting(0.0, low=0.0)  # mean marginal power over `energy_window_s`; 0 = no limit
    energy_window_s: float = setting(60.0, low=1.0)
    interval_ms: float = setting(500.0, low=1.0)  # from one window to the next

    @property
    def forbids_nothing(self) -> bool:
        """Whether these are no constraints at all."""
        tolerant = self.max_privacy_risk >= 1.0 and self.max_quality_loss >= 1.0
        return self.raw_audio and tolerant and not self.energy_budget_mw

    def next_power_mw(self, power_mw: float, window_mj: float) -> float:
        """The running mean of the marginal power after a window that cost `window_mj`."""
        weight = self.interval_ms / 1000.0 / self.energy_window_s
        return power_mw + min(weight, 1.0) * (window_mj / self.interval_ms * 1000.0 - power_mw)

    def allowance_mj(self, power_mw: float) -> float:
        """What the next window may cost at most so that the running mean stays within the budget."""
        interval_s = self.interval_ms / 1000.0
        window_s = max(self.energy_window_s, interval_s)  # one window alone fills a shorter one
        return max(
            self.energy_budget_mw * window_s - power_mw * (window_s - interval_s), 0.0
        )  # mW s = mJ: the largest x with next_power_mw(power, x) <= budget


class Constraints:
    """The settings, applied to one table."""

    def __init__(self, settings: ConstraintSettings, table: CutTable) -> None:
        """Raises CutError when the privacy floor leaves no row."""
        self.settings, self.table = settings, table
        arrays = CutArrays.of(table)
        private = arrays.privacy_risk <= settings.max_privacy_risk
        private &= arrays.quality_loss <= settings.max_quality_loss + 1e-9
        self._private = private if settings.raw_audio else private & ~arrays.audio
        if not self._private.any():
            good = "" if settings.max_quality_loss >= 1.0 else f" and max_quality_loss {settings.max_quality_loss:g}"
            raise CutError(
                f"no cut of the table for '{table.encoder}' satisfies max_privacy_risk {settings.max_privacy_risk:g}"
                f"{good}{'' if settings.raw_audio else ' without raw audio'}; raise the limit or add cuts that keep "
                "more here"
            )
        self._energy_mj = arrays.energy_mj
        self._thriftiest = int(np.argmin(np.where(self._private, arrays.energy_mj, np.inf)))

    def allowed(self, observation: Observation) -> Mask:
        """Which rows [n] may be taken now; where the budget allows none, the private one of the least energy."""
        if not self.settings.energy_budget_mw:
            return self._private
        busy = max(1.0 - share(observation.cpu), LEAST_FREE_CPU)
        mask = self._private & (self._energy_mj / busy <= self.settings.allowance_mj(observation.power_mw))
        if not mask.any():
            mask[self._thriftiest] = True
        return mask


class ConstrainedPolicy:
    """A policy that only ever sees the rows that the constraints allow."""

    def __init__(self, policy: Policy, settings: ConstraintSettings) -> None:
        self.policy, self.settings = policy, settings
        self._constraints: Constraints | None = None
        self._parts: dict[bytes, CutTable] = {}

    def decide(self, observation: Observation, table: CutTable) -> Decision:
        """The policy's choice among the allowed rows; raises CutError when the privacy floor leaves none."""
        if self._constraints is None or self._constraints.table is not table:
            self._constraints, self._parts = Constraints(self.settings, table), {}
        mask = self._constraints.allowed(observation)
        if mask.all():
            return self.policy.decide(observation, table)
        free = [row.cut for row, allowed in zip(table.rows, mask, strict=True) if allowed]
        if len(free) == 1:
            return Decision(free[0], 1.0, f"{free[0]} is all that the constraints allow")
        key = mask.tobytes()
        if key not in self._parts:
            self._parts[key] = table.only(free)
        return self.policy.decide(observation, self._parts[key])

    def learn(self, experience: Experience) -> None:
        """Passes a window's outcome on to a policy that learns."""
        if isinstance(self.policy, LearningPolicy):
            self.policy.learn(experience)
