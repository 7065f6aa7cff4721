"""Policies by name: fixed, heuristic (v1), greedy (the default) and keep-local, behind `Policy` of decision.py."""

from __future__ import annotations

import math
from dataclasses import dataclass

from streamsplit.config import Settings, section, setting
from streamsplit.errors import ConfigError, CutError
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.decision import Decision, Policy
from streamsplit.splitting.greedy import GreedyPolicy, GreedySettings
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.table import CutTable
from streamsplit.wire.media import Encoding

__all__ = [
    "Decision",
    "FixedPolicy",
    "GreedyPolicy",
    "GreedySettings",
    "HeuristicPolicy",
    "HeuristicSettings",
    "KeepLocalPolicy",
    "Policy",
    "PolicySettings",
    "make_policy",
]


@dataclass(frozen=True, kw_only=True)
class HeuristicSettings(Settings):
    """Constants of v1's baseline, App. H."""

    cpu_weight: float = setting(0.6, low=0.0)
    bandwidth_weight: float = setting(0.4, low=0.0)
    low_bps: float = setting(0.5e6, low=0.0)  # normalises to 0
    high_bps: float = setting(8e6, low=1.0)  # normalises to 1

    def check(self) -> None:
        """The range must not be empty."""
        if self.high_bps <= self.low_bps:
            raise ConfigError(f"'high_bps': got {self.high_bps:g}, expected more than low_bps ({self.low_bps:g})")


@dataclass(frozen=True, kw_only=True)
class PolicySettings(Settings):
    """Which policy, and its own section."""

    name: str = setting("greedy", choices=("greedy", "heuristic", "fixed", "keep-local"))
    cut: str = setting("")  # 'fixed' only, such as '6:int8'
    cuts: tuple[str, ...] = setting(())  # cuts to choose from; empty = every row of the table
    greedy: GreedySettings = section(GreedySettings)
    heuristic: HeuristicSettings = section(HeuristicSettings)

    def check(self) -> None:
        """Cuts must read as cuts, and 'fixed' needs one."""
        if self.name == "fixed" and not self.cut:
            raise ConfigError("'cut': got nothing, expected a cut such as '6:int8' for the policy 'fixed'")
        for text in filter(None, (self.cut, *self.cuts)):
            try:
                Cut.parse(text)
            except CutError as error:
                raise ConfigError(f"'cut': {error}") from None


class FixedPolicy:
    """Always the same cut."""

    def __init__(self, cut: Cut) -> None:
        self.cut = cut

    def decide(self, observation: Observation, table: CutTable) -> Decision:
        """The cut; raises CutError when the table does not have it."""
        return Decision(table.row(self.cut).cut, 1.0, f"fixed at {self.cut}")


class KeepLocalPolicy:
    """Everything on the device, nothing crosses."""

    def decide(self, observation: Observation, table: CutTable) -> Decision:
        """The last block, nothing sent."""
        return Decision(Cut(table.num_blocks, Encoding.NONE), 1.0, "splitting is off: everything stays on the device")


class HeuristicPolicy:
    """v1 App. H: k = clip(floor(L (0.6 (1 - cpu) + 0.4 bandwidth)), 1, L - 1), INT8 activations.

    The bandwidth term is as printed: a better link cuts deeper. That is debatable, but it is the baseline.
    """

    def __init__(self, settings: HeuristicSettings | None = None) -> None:
        self.settings = settings or HeuristicSettings()

    def decide(self, observation: Observation, table: CutTable) -> Decision:
        """The formula's block at INT8; raises CutError when the table lacks it. An unknown rate or load counts as 0."""
        s = self.settings
        bps = observation.bandwidth_bps if math.isfinite(observation.bandwidth_bps) else s.low_bps
        rate = min(max((bps - s.low_bps) / (s.high_bps - s.low_bps), 0.0), 1.0)
        cpu = min(max(observation.cpu, 0.0), 1.0) if math.isfinite(observation.cpu) else 0.0
        score = s.cpu_weight * (1.0 - cpu) + s.bandwidth_weight * rate
        # Products like 13 x (0.6 x 0.5 + 0.4 x 0.5) may land a hair under a whole number: floor what was meant.
        block = min(max(math.floor(table.num_blocks * score + 1e-9), 1), table.num_blocks - 1)
        cut = table.row(Cut(block, Encoding.INT8)).cut
        fraction = table.num_blocks * score - math.floor(table.num_blocks * score)
        confidence = 0.5 + min(fraction, 1.0 - fraction)  # 1 in the middle between two blocks' borders
        return Decision(cut, confidence, f"heuristic: cpu {cpu:.0%}, bandwidth {rate:.0%} of range -> block {block}")


class _ChosenCuts:
    """A policy on a part of the table."""

    def __init__(self, policy: Policy, cuts: tuple[Cut, ...]) -> None:
        self.policy, self.cuts = policy, cuts
        self._whole: CutTable | None = None
        self._part: CutTable | None = None

    def decide(self, observation: Observation, table: CutTable) -> Decision:
        if table is not self._whole or self._part is None:
            self._whole, self._part = table, table.only(self.cuts)
        return self.policy.decide(observation, self._part)


def make_policy(settings: PolicySettings | None = None) -> Policy:
    """The policy that `settings` describe."""
    settings = settings or PolicySettings()
    policy: Policy
    if settings.name == "fixed":
        return FixedPolicy(Cut.parse(settings.cut))
    if settings.name == "keep-local":
        return KeepLocalPolicy()
    policy = HeuristicPolicy(settings.heuristic) if settings.name == "heuristic" else GreedyPolicy(settings.greedy)
    return _ChosenCuts(policy, tuple(Cut.parse(text) for text in settings.cuts)) if settings.cuts else policy
