"""Policies by name, behind `Policy` of decision.py: made from settings, held to constraints, and what steps in when the
one that was asked for cannot be had."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from streamsplit.config import Settings, section, setting
from streamsplit.errors import ConfigError, CutError
from streamsplit.splitting.argmin import ArgminPolicy
from streamsplit.splitting.bandit import BanditPolicy, BanditSettings
from streamsplit.splitting.constraints import ConstrainedPolicy, Constraints, ConstraintSettings
from streamsplit.splitting.correction import CorrectedPolicy, CorrectionSettings
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.decision import Decision, Experience, LearningPolicy, Policy
from streamsplit.splitting.greedy import GreedyPolicy, GreedySettings
from streamsplit.splitting.heuristic import HeuristicPolicy, HeuristicSettings
from streamsplit.splitting.learned import LearnedPolicy
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.policy_file import PolicyFile, load_policy, packaged_policy
from streamsplit.splitting.steady import SteadyPolicy, SteadySettings
from streamsplit.splitting.table import CutTable
from streamsplit.wire.media import Encoding

DEFAULT_POLICY = "greedy"  # of every device and agent that is not told otherwise
LEARNED_POLICIES = ("ppo", "ppo-corrected")  # those that need a policy file
POLICIES = ("greedy", "heuristic", "argmin", "bandit", *LEARNED_POLICIES, "fixed", "keep-local")

__all__ = [
    "DEFAULT_POLICY",
    "LEARNED_POLICIES",
    "POLICIES",
    "Decision",
    "FixedPolicy",
    "GreedyPolicy",
    "GreedySettings",
    "HeuristicPolicy",
    "HeuristicSettings",
    "KeepLocalPolicy",
    "Policy",
    "PolicySettings",
    "SubstitutePolicy",
    "check_policy",
    "fallbacks_of",
    "learner_of",
    "make_policy",
    "policy_file",
    "usable_policy",
]


@dataclass(frozen=True, kw_only=True)
class PolicySettings(Settings):
    """Which policy, and the sections of all of them."""

    name: str = setting(DEFAULT_POLICY, choices=POLICIES)
    cut: str = setting("")  # 'fixed' only, such as '6:int8'
    cuts: tuple[str, ...] = setting(())  # cuts to choose from; empty = every row of the table
    policy_file: str = setting("")  # 'ppo' and 'ppo-corrected'; "" = the one that ships for `encoder`
    encoder: str = setting("mobilenet")
    constraints: ConstraintSettings = section(ConstraintSettings)
    greedy: GreedySettings = section(GreedySettings)  # also what the bandit and the price of a change count in
    heuristic: HeuristicSettings = section(HeuristicSettings)
    bandit: BanditSettings = section(BanditSettings)
    correction: CorrectionSettings = section(CorrectionSettings)
    steady: SteadySettings = section(SteadySettings)

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


class SubstitutePolicy:
    """Decides in place of a policy that cannot: always where there is none, else only where it fails.

    `fallbacks` counts those decisions. What it may be left with for a moment are few rows (an energy budget that is
    spent, say), where a trained or fixed policy has no answer.
    """

    def __init__(self, policy: Policy | None, substitute: Policy, why: str = "") -> None:
        self.policy, self.substitute, self.why = policy, substitute, why
        self.fallbacks = 0

    def decide(self, observation: Observation, table: CutTable) -> Decision:
        """The policy's decision, or the substitute's with the reason for it."""
        why = self.why
        if self.policy is not None:
            try:
                return self.policy.decide(observation, table)
            except CutError as error:
                why = str(error)
        self.fallbacks += 1
        decision = self.substitute.decide(observation, table)
        return decision._replace(reason=f"{decision.reason} (in place of the policy: {why})")

    def learn(self, experience: Experience) -> None:
        """Passes a window's outcome on to a policy that learns."""
        if isinstance(self.policy, LearningPolicy):
            self.policy.learn(experience)


class ThriftiestPolicy:
    """The row of the least energy."""

    def decide(self, observation: Observation, table: CutTable) -> Decision:
        """The row; raises CutError for an empty table."""
        if not table.rows:
            raise CutError(f"got a cut table without rows for '{table.encoder}', expected at least one")
        row = min(table.rows, key=lambda row: row.energy_mj)
        return Decision(row.cut, 1.0, f"{row.energy_mj:.1f} mJ is the least that may be taken now")


class _ChosenCuts:
    """A policy on a part of the table."""

    def __init__(self, policy: Policy, cuts: tuple[Cut, ...]) -> None:
        self.policy, self.cuts = policy, cuts
        self._whole: CutTable | None = None
        self._part: CutTable | None = None

    def decide(self, observation: Observation, table: CutTable) -> Decision:
        if table is not self._whole or self._part is None:
            present = [cut for cut in self.cuts if cut in table.cuts]  # constraints may have taken some of them away
            self._whole, self._part = table, table.only(present or self.cuts)
        return self.policy.decide(observation, self._part)

    def learn(self, experience: Experience) -> None:
        """Passes a window's outcome on to a policy that learns."""
        if isinstance(self.policy, LearningPolicy):
            self.policy.learn(experience)


def policy_file(settings: PolicySettings) -> PolicyFile:
    """The policy file that the settings name, else the one that ships for the encoder; raises CutError."""
    if settings.policy_file:
        return load_policy(settings.policy_file)
    try:
        return packaged_policy(settings.encoder)
    except OSError as error:
        raise CutError(
            f"no trained policy ships for encoder '{settings.encoder}' ({error.strerror or error}); give policy_file"
        ) from None


def make_policy(settings: PolicySettings | None = None, file: PolicyFile | None = None) -> Policy:
    """The policy that `settings` describe; raises CutError when it needs a file that cannot be read.

    `file` takes the place of the settings' own for 'ppo' and 'ppo-corrected', and is left aside by others. A trained
    policy's expected costs count in windows as long as this device's stride, whatever it was trained with.
    """
    settings = settings or PolicySettings()
    if settings.name in LEARNED_POLICIES:
        file = file or policy_file(settings)
        file = file._replace(settings=file.settings.replace(interval_ms=settings.greedy.interval_ms))
        return _held(_learned(settings, file), settings)
    return _held(_bare(settings), settings)


def usable_policy(
    settings: PolicySettings, table: CutTable, file: PolicyFile | None = None, *, strict: bool = False
) -> tuple[Policy, str]:
    """(the policy, what is wrong with it): the heuristic steps in for a trained policy that is missing, damaged or of
    another table, and the text says so; '' when all is well.

    With `strict` that is an error, too. Raises CutError for what nothing can stand in for: a fixed cut that the table
    lacks or the constraints forbid, constraints that leave no row.
    """
    check_policy(settings, table)
    if settings.name not in LEARNED_POLICIES:
        return make_policy(settings), ""
    try:
        file = file or policy_file(settings)
        file.check_table(table)
        return make_policy(settings, file), ""
    except CutError as error:
        if strict:
            raise
        why = str(error)
    substitute = SubstitutePolicy(None, HeuristicPolicy(settings.heuristic), f"'{settings.name}' is not usable")
    return _held(substitute, settings), f"policy '{settings.name}' is not usable, the heuristic decides: {why}"


def check_policy(settings: PolicySettings, table: CutTable) -> None:
    """Raises CutError unless the constraints leave something of `table`, and the fixed cut if there is one."""
    if settings.constraints.forbids_nothing and settings.name != "fixed":
        return
    wanted = settings.constraints.replace(energy_budget_mw=0.0)  # what may be taken at some time
    allowed = Constraints(wanted, table).allowed(Observation())
    if settings.name != "fixed":
        return
    row = table.row(Cut.parse(settings.cut))
    if not allowed[table.rows.index(row)]:
        risk = "" if math.isnan(row.privacy_risk) else f" (privacy risk {row.privacy_risk:g})"
        raise CutError(
            f"the fixed cut {row.cut}{risk} is forbidden by the constraints "
            f"raw_audio={settings.constraints.raw_audio}, max_privacy_risk={settings.constraints.max_privacy_risk:g}; "
            "fix another cut or change them"
        )


def learner_of(policy: Policy) -> LearningPolicy | None:
    """The part of a policy, however wrapped, that learns from results; None where nothing does."""
    passing_on = (ConstrainedPolicy, SteadyPolicy, SubstitutePolicy, _ChosenCuts)
    parts = (part for part in _parts(policy) if not isinstance(part, passing_on))
    return next((part for part in parts if isinstance(part, LearningPolicy)), None)


def fallbacks_of(policy: Policy) -> int:
    """Decisions that something else made in the policy's place."""
    return sum(getattr(part, "fallbacks", 0) for part in _parts(policy))


def _parts(policy: Policy) -> Iterator[Policy]:
    """A policy and what it wraps, from the outside in."""
    part: Policy | None = policy
    while part is not None:
        yield part
        part = cast("Policy | None", getattr(part, "policy", None))


def _learned(settings: PolicySettings, file: PolicyFile) -> Policy:
    """A trained policy, without constraints."""
    learned: Policy = LearnedPolicy(file)
    if settings.name == "ppo-corrected":
        learned = CorrectedPolicy(LearnedPolicy(file), settings.correction)
    return SubstitutePolicy(learned, GreedyPolicy(file.settings))


def _bare(settings: PolicySettings) -> Policy:
    """Any other policy, without constraints."""
    name, greedy = settings.name, GreedyPolicy(settings.greedy)
    if name == "fixed":
        return FixedPolicy(Cut.parse(settings.cut))
    if name == "keep-local":
        return KeepLocalPolicy()
    policy: Policy = greedy
    if name == "heuristic":
        policy = HeuristicPolicy(settings.heuristic)
    elif name == "argmin":
        policy = ArgminPolicy(estimator=greedy)
    elif name == "bandit":
        policy = BanditPolicy(settings.bandit, settings.greedy)
    return SteadyPolicy(policy, settings.steady, settings.greedy) if settings.steady.enabled else policy


def _held(policy: Policy, settings: PolicySettings) -> Policy:
    """The policy within `cuts` and constraints."""
    if settings.name == "keep-local":
        return policy
    if settings.cuts and settings.name != "fixed":
        policy = _ChosenCuts(policy, tuple(Cut.parse(text) for text in settings.cuts))
    if settings.constraints.forbids_nothing:
        return policy
    if settings.name == "fixed":
        policy = SubstitutePolicy(policy, ThriftiestPolicy())
    return ConstrainedPolicy(policy, settings.constraints)
