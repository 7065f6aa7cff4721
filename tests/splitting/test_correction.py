"""The online correction against devices whose table is wrong by a known factor."""

from __future__ import annotations

import math

import numpy as np
import pytest
from policy_cases import COSTS, small_table, untrained_file

from streamsplit.splitting.correction import CorrectedPolicy, CorrectionSettings
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.decision import Decision, Experience, Policy
from streamsplit.splitting.features import STATE_FEATURES
from streamsplit.splitting.greedy import GreedyPolicy, GreedySettings
from streamsplit.splitting.learned import LearnedPolicy
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.table import CutTable

# Ten times the time on the device, so that it is what decides.
SLOW = {text: (10 * edge, *rest) for text, (edge, *rest) in COSTS.items()}
TABLE = small_table(SLOW)
TRUE = small_table({text: (2 * edge, *rest) for text, (edge, *rest) in SLOW.items()})  # table wrong by a factor of 2
SETTINGS = GreedySettings(deadline_ms=2000.0, horizon_windows=1)


def states(count: int, seed: int = 0) -> list[Observation]:
    """Links and loads that make other cuts the best ones."""
    rng = np.random.default_rng(seed)
    return [
        Observation(uncertainty=4.0, cpu=0.3 * rng.random(), bandwidth_bps=10 ** rng.uniform(5, 7.5), rtt_ms=40.0,
                    bandwidth_age_ms=0.0)
        for _ in range(count)
    ]  # fmt: skip


def follow(policy: Policy, seen: list[Observation], true: CutTable = TRUE) -> tuple[list[Decision], list[float], float]:
    """(decisions, regret of each, share of them that are right) where windows take what the true table says."""
    truth = GreedyPolicy(SETTINGS)
    decisions, regrets = [], []
    for observation in seen:
        decision = policy.decide(observation, TABLE)
        costs = {cost.row.cut: cost for cost in truth.costs(observation, true)}
        took = costs[decision.cut]
        decisions.append(decision)
        regrets.append(took.total - min(cost.total for cost in costs.values()))
        if hasattr(policy, "learn"):
            policy.learn(Experience(observation, decision.cut, took.latency_ms, math.nan))
    return decisions, regrets, float(np.mean([regret == 0.0 for regret in regrets]))


def learned(**changes: float) -> LearnedPolicy:
    return LearnedPolicy(untrained_file(TABLE.cuts, settings=SETTINGS.replace(**changes)))


def test_with_a_table_that_is_wrong_by_two_it_ends_closer_to_the_right_cut():
    seen = states(300)
    _, plain, plain_right = follow(learned(), seen)
    decisions, corrected, _ = follow(CorrectedPolicy(learned()), seen)
    right = np.mean([regret == 0.0 for regret in corrected[200:]])
    assert np.mean(corrected[200:]) < 0.4 * np.mean(plain[200:])
    assert plain_right < 0.9 and right > 0.95
    assert any(decision.reason.startswith("corrected by +") for decision in decisions)


def test_with_a_table_that_is_right_it_changes_nothing():
    seen = states(150)
    plain, _, right = follow(learned(), seen, TABLE)
    corrected, _, _ = follow(CorrectedPolicy(learned()), seen, TABLE)
    assert right == 1.0 and [d.cut for d in corrected] == [d.cut for d in plain]


def test_it_forgets_a_fault_that_is_over():
    """A processor that was throttled for a while, and is fast again."""
    policy = CorrectedPolicy(learned())
    follow(policy, states(200))
    _, regrets, _ = follow(policy, states(300, seed=1), TABLE)
    assert np.mean(regrets[:20]) > 0.01
    assert np.mean(regrets[200:]) < 0.2 * np.mean(regrets[:20])


def test_nothing_is_corrected_before_it_has_seen_enough():
    policy = CorrectedPolicy(learned(), CorrectionSettings(warm_up_windows=50))
    plain, _, _ = follow(learned(), states(50))
    corrected, _, _ = follow(policy, states(50))
    assert [d.cut for d in corrected] == [d.cut for d in plain]
    assert any("corrected" in d.reason for d in follow(policy, states(50, seed=2))[0])


def test_outside_of_its_training_the_fallback_stays_as_it_is():
    file = untrained_file(TABLE.cuts, settings=SETTINGS)
    low, high, cpu = file.low.copy(), file.high.copy(), STATE_FEATURES.index("cpu")
    low[cpu], high[cpu] = 0.0, 0.5
    policy = CorrectedPolicy(LearnedPolicy(file._replace(low=low, high=high)))
    follow(policy, states(100))
    busy = states(1)[0]._replace(cpu=0.9)
    assert policy.decide(busy, TABLE) == policy.policy.decide(busy, TABLE)
    assert policy.decide(busy, TABLE).reason.startswith("outside")


def test_lost_windows_and_unknown_cuts_teach_nothing():
    policy = CorrectedPolicy(learned(), CorrectionSettings(warm_up_windows=1))
    policy.learn(Experience(Observation(), Cut.parse("2:int8"), 5000.0, 40.0))  # before it has seen any table
    policy.decide(states(1)[0], TABLE)
    policy.learn(Experience(Observation(), Cut.parse("2:int8"), math.inf, math.inf))
    policy.learn(Experience(Observation(), Cut.parse("1:int8"), 5000.0, 40.0))
    for seen in states(20):
        assert policy.decide(seen, TABLE) == policy.policy.decide(seen, TABLE)


def test_cuts_without_a_row_are_never_chosen_however_late_the_others_are():
    part = TABLE.only([Cut.parse(text) for text in ("0:opus24", "3:int8", "4:none")])
    policy = CorrectedPolicy(LearnedPolicy(untrained_file(TABLE.cuts, settings=SETTINGS)))
    for seen in states(60):
        decision = policy.decide(seen, part)
        assert decision.cut in part.cuts
        policy.learn(Experience(seen, decision.cut, 2000.0, 1000.0))


def test_a_link_that_is_far_better_than_believed_does_not_bring_in_cuts_that_are_out_of_the_question():
    """A round trip taken for 900 ms that is 100 ms: sending is worth it again, but not of sound at a price of 320."""
    policy = CorrectedPolicy(learned(traffic_bytes=200.0))
    seen = Observation(uncertainty=4.0, bandwidth_bps=2e6, bandwidth_age_ms=0.0, rtt_ms=900.0, rtt_age_ms=0.0)
    for text in ("0:pcm16", "2:int8", "3:int8", "4:embedding-int8", "4:none"):
        policy.decide(seen, TABLE)
        latency_ms = GreedyPolicy(SETTINGS).costs(seen, TABLE)[TABLE.cuts.index(Cut.parse(text))].latency_ms
        for _ in range(10):
            policy.learn(Experience(seen, Cut.parse(text), latency_ms - (0 if text == "4:none" else 800), math.nan))
    assert str(policy.policy.decide(seen, TABLE).cut) == "4:none"
    assert str(policy.decide(seen, TABLE).cut) == "4:embedding-int8"


@pytest.mark.parametrize("exploration", [0.0, 5.0])
def test_optimism_tries_what_was_not_tried(exploration):
    policy = CorrectedPolicy(learned(), CorrectionSettings(exploration=exploration))
    decisions, _, _ = follow(policy, [states(1)[0]] * 200)
    tried = {decision.cut for decision in decisions}
    assert len(tried) == 1 if not exploration else len(tried) >= 2
