"""What may never happen: audio that leaves against the floor, more energy than the budget."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import COSTS, observations, small_table, untrained_file

from streamsplit.errors import CutError
from streamsplit.splitting.argmin import ArgminPolicy
from streamsplit.splitting.bandit import BanditPolicy
from streamsplit.splitting.constraints import ConstrainedPolicy, Constraints, ConstraintSettings
from streamsplit.splitting.correction import CorrectedPolicy
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.decision import Decision, Experience
from streamsplit.splitting.greedy import LEAST_FREE_CPU, GreedyPolicy, GreedySettings
from streamsplit.splitting.learned import LearnedPolicy
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.policy import FixedPolicy, HeuristicPolicy, KeepLocalPolicy
from streamsplit.splitting.table import CutTable

RISKS = {"0:pcm16": 1.0, "0:opus24": 0.9, "0:logmel-int8": 0.8, "2:fp16": 0.5, "2:int8": 0.45, "3:int8": 0.3}
# INT8 at every block, which the heuristic needs.
TABLE = small_table(COSTS | {"1:int8": (7.0, 8.0, 9_000.0, 12.0, 0.99)}, privacy_risk=RISKS)
AUDIO = {Cut.parse("0:pcm16"), Cut.parse("0:opus24")}
NO_AUDIO = ConstraintSettings(raw_audio=False)
# A greedy policy for which audio is the best there is: sending and losing quality cost it nothing.
EAGER = GreedySettings(quality=0.0, energy=0.0, traffic=0.0, local=100.0)
POLICIES = {
    "greedy": GreedyPolicy,
    "eager": lambda: GreedyPolicy(EAGER),
    "argmin": ArgminPolicy,
    "argmin by energy": lambda: ArgminPolicy(minimise="energy", keeps=True),
    "bandit": lambda: BanditPolicy(objective=EAGER),
    "heuristic": HeuristicPolicy,
    "keep-local": KeepLocalPolicy,
    "learned": lambda: LearnedPolicy(untrained_file(TABLE.cuts, scale=1.0, settings=EAGER)),
    "corrected": lambda: CorrectedPolicy(LearnedPolicy(untrained_file(TABLE.cuts, scale=1.0, settings=EAGER))),
}


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=40, deadline=None)
@given(seen=st.lists(observations, min_size=1, max_size=4))
def test_raw_audio_never_leaves_whatever_the_policy_sees(name, seen):
    policy = ConstrainedPolicy(POLICIES[name](), NO_AUDIO)
    assert not (Constraints(NO_AUDIO, TABLE).allowed(seen[0]) & [cut in AUDIO for cut in TABLE.cuts]).any()
    for observation in seen:
        cut = policy.decide(observation, TABLE).cut
        assert cut in TABLE.cuts and cut not in AUDIO
        policy.learn(Experience(observation, cut, 50.0, 20.0))


def test_without_the_floor_the_same_policy_sends_audio():
    fast = Observation(bandwidth_bps=1e9, bandwidth_age_ms=0.0, rtt_ms=1.0, cpu=0.9)
    assert ConstrainedPolicy(GreedyPolicy(EAGER), ConstraintSettings()).decide(fast, TABLE).cut in AUDIO
    assert ConstraintSettings().forbids_nothing and not NO_AUDIO.forbids_nothing


def test_a_fixed_cut_against_the_floor_is_an_error_and_not_sent():
    with pytest.raises(CutError, match="0:pcm16"):
        ConstrainedPolicy(FixedPolicy(Cut.parse("0:pcm16")), NO_AUDIO).decide(Observation(), TABLE)


def test_rows_above_the_risk_are_masked_and_unmeasured_ones_are_not():
    allowed = Constraints(ConstraintSettings(max_privacy_risk=0.45), TABLE).allowed(Observation())
    kept = {str(cut) for cut, free in zip(TABLE.cuts, allowed, strict=True) if free}
    assert kept == {"1:int8", "2:int8", "3:int8", "4:embedding-fp16", "4:embedding-int8", "4:none"}


def test_floors_that_leave_nothing_are_one_clear_error():
    audio = TABLE.only(AUDIO)
    with pytest.raises(CutError, match="without raw audio; raise the limit"):
        Constraints(NO_AUDIO, audio)
    with pytest.raises(CutError, match=r"satisfies max_privacy_risk 0\.5"):
        ConstrainedPolicy(GreedyPolicy(), ConstraintSettings(max_privacy_risk=0.5)).decide(Observation(), audio)


@settings(max_examples=50, deadline=None)
@given(
    budget_mw=st.floats(9.5, 200.0),  # the thriftiest row takes 4.5 mJ in 0.5 s: 9 mW
    window_s=st.sampled_from([1.0, 10.0, 60.0]),
    loads=st.lists(st.floats(0.0, 1.0), min_size=200, max_size=200),
    seed=st.integers(0, 99),
)
def test_the_mean_power_never_exceeds_the_budget_while_a_row_fits_it(budget_mw, window_s, loads, seed):
    """Any allowed row is taken, each at the price that the constraints count with, and the mean is kept by hand."""
    rng = np.random.default_rng(seed)
    limits = ConstraintSettings(energy_budget_mw=budget_mw, energy_window_s=window_s)
    constraints, mean_mw = Constraints(limits, TABLE), 0.0
    energy = np.array([row.energy_mj for row in TABLE.rows])
    for load in loads:
        price = energy / max(1.0 - load, LEAST_FREE_CPU)
        after = mean_mw + 0.5 / window_s * (price / 0.5 - mean_mw)  # of every row
        allowed = constraints.allowed(Observation(cpu=load, power_mw=mean_mw))
        fits = after <= budget_mw
        if fits.any():
            assert (allowed == fits)[np.abs(after - budget_mw) > 1e-9].all()
            mean_mw = after[rng.choice(np.flatnonzero(allowed))]
            assert mean_mw <= budget_mw + 1e-9
        else:
            assert [str(cut) for cut, free in zip(TABLE.cuts, allowed, strict=True) if free] == ["0:logmel-int8"]
            mean_mw = after[energy.argmin()]
    assert limits.next_power_mw(0.0, 10.0) == pytest.approx(10.0 / window_s)


def test_a_window_longer_than_the_means_time_is_held_to_the_budget_alone():
    limits = ConstraintSettings(energy_budget_mw=10.0, energy_window_s=1.0, interval_ms=2000.0)
    assert limits.allowance_mj(500.0) == pytest.approx(20.0)
    assert limits.next_power_mw(500.0, 20.0) == pytest.approx(10.0)


@pytest.mark.parametrize("name", POLICIES)
def test_a_budget_that_leaves_one_row_takes_it_with_any_policy(name):
    limits = ConstraintSettings(energy_budget_mw=1.0, raw_audio=False, max_privacy_risk=0.4)
    seen = Observation(power_mw=100.0, bandwidth_bps=1e7, bandwidth_age_ms=0.0, rtt_ms=20.0)
    decision = ConstrainedPolicy(POLICIES[name](), limits).decide(seen, TABLE)
    assert str(decision.cut) == "1:int8"  # the least energy among those that are private enough: never measured
    assert "all that the constraints allow" in decision.reason


class Listening:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[Experience] = []

    def decide(self, observation: Observation, table: CutTable) -> Decision:
        return Decision(table.cuts[0], 1.0, "first")

    def learn(self, experience: Experience) -> None:
        self.told.append(experience)


def test_what_a_policy_learns_from_passes_through():
    inner = Listening()
    experience = Experience(Observation(), Cut.parse("2:int8"), 50.0, 20.0)
    ConstrainedPolicy(inner, NO_AUDIO).learn(experience)
    ConstrainedPolicy(GreedyPolicy(), NO_AUDIO).learn(experience)  # one that does not learn is not bothered
    assert inner.told == [experience]


@functools.cache
def _thriftiest(floor: bool) -> str:
    rows = [row for row in TABLE.rows if not floor or row.cut not in AUDIO]
    return str(min(rows, key=lambda row: row.energy_mj).cut)


@settings(deadline=None)
@given(observations)
def test_there_is_always_a_row_to_take(observation):
    limits = ConstraintSettings(energy_budget_mw=0.001, raw_audio=False)
    allowed = Constraints(limits, TABLE).allowed(observation._replace(power_mw=50.0))
    assert [str(TABLE.cuts[i]) for i in np.flatnonzero(allowed)] == [_thriftiest(True)]
