"""The learned policy on a device: what it computes equals the network that was trained, and it knows its limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import COSTS, observations, small_table, untrained_file

from streamsplit.errors import CutError
from streamsplit.splitting.constraints import ConstraintSettings
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.features import STATE_FEATURES, FeatureBuilder
from streamsplit.splitting.greedy import GreedyPolicy
from streamsplit.splitting.learned import LearnedPolicy
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.policy_file import Layer, policy_from_bytes

TABLE = small_table()
SEEN = Observation(uncertainty=2.0, cpu=0.3, bandwidth_bps=2e6, bandwidth_age_ms=100.0, rtt_ms=60.0, rtt_age_ms=100.0)


def test_untrained_it_takes_the_least_expected_cost():
    policy = LearnedPolicy(untrained_file(TABLE.cuts))
    for bps in (1e4, 1e5, 1e6, 1e7, 1e8):
        seen = SEEN._replace(bandwidth_bps=bps)
        costs = GreedyPolicy(policy.file.settings).costs(seen, TABLE)
        decision = policy.decide(seen, TABLE)
        assert decision.cut == min(costs, key=lambda cost: cost.total).row.cut
        assert 0.0 < decision.confidence <= 1.0 and "least expected cost" in decision.reason


def test_its_logits_equal_those_of_the_network_that_was_trained():
    """numpy here, torch there, the weights through a file."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("stable_baselines3")
    import gymnasium

    from streamsplit.simulation.training import PriorPolicy

    torch.manual_seed(0)
    n, f = len(TABLE.cuts), len(STATE_FEATURES)
    trained = PriorPolicy(
        gymnasium.spaces.Box(-100.0, 100.0, (f + 2 * n,)), gymnasium.spaces.Discrete(n), lambda _: 1e-3,
        hidden=16, cost_weight=2.0, actions=n,
    )  # fmt: skip
    linear = [part for part in trained.actor if isinstance(part, torch.nn.Linear)]
    for part in linear:
        torch.nn.init.normal_(part.weight, std=0.5)
        torch.nn.init.normal_(part.bias, std=0.5)
    layers = tuple(Layer(part.weight.detach().numpy().T, part.bias.detach().numpy()) for part in linear)
    file = policy_from_bytes(untrained_file(TABLE.cuts)._replace(layers=layers).to_bytes())
    policy, rng = LearnedPolicy(file), np.random.default_rng(0)
    builder = FeatureBuilder(TABLE, TABLE.cuts, file.settings)
    for _ in range(50):
        seen = Observation(
            uncertainty=rng.uniform(0, 4), cpu=rng.random(), bandwidth_bps=10 ** rng.uniform(3.5, 8), rtt_ms=50.0,
            bandwidth_age_ms=10 ** rng.uniform(1, 5), backlog_bytes=int(10 ** rng.uniform(0, 6)),
        )  # fmt: skip
        vector, costs = builder.build(seen)
        mask = rng.random(n) < 0.8
        mask[0] = True
        observation = torch.from_numpy(np.concatenate([vector, mask]).astype(np.float32))[None]
        theirs = trained.logits(observation).detach().numpy()[0]
        ours = policy.logits(vector, np.where(mask, costs, np.inf))
        # Masking may take away the least cost, which shifts all that is left alike: compare differences.
        if mask[costs.argmin()]:
            np.testing.assert_allclose(ours[mask], theirs[mask], atol=0.03)  # fp16 weights of size 0.5, 33 inputs
        assert np.isneginf(ours[~mask]).all() and (theirs[~mask] < -1e7).all()


@settings(max_examples=60, deadline=None)
@given(
    observations, st.sets(st.sampled_from(sorted(COSTS)), min_size=2, max_size=8), st.integers(0, 5),
    st.sampled_from([0.0, 2.0, -3.0]),
)  # fmt: skip
def test_what_the_table_lacks_is_never_chosen(observation, present, seed, cost_weight):
    part = TABLE.only([Cut.parse(text) for text in present])
    policy = LearnedPolicy(untrained_file(TABLE.cuts, scale=3.0, seed=seed, cost_weight=cost_weight))
    assert str(policy.decide(observation, part).cut) in present
    builder = policy.builder(part)
    assert builder is not None
    vector, costs = builder.build(observation)
    assert np.isneginf(policy.logits(vector, costs)[~np.isin([str(cut) for cut in TABLE.cuts], sorted(present))]).all()


def test_a_state_it_was_not_trained_on_is_answered_by_the_greedy_policy_which_says_so():
    file = untrained_file(TABLE.cuts, scale=3.0)
    low, high, cpu = file.low.copy(), file.high.copy(), STATE_FEATURES.index("cpu")
    low[cpu], high[cpu] = 0.0, 0.5
    policy = LearnedPolicy(file._replace(low=low, high=high))
    greedy = GreedyPolicy(file.settings)
    inside, outside = SEEN._replace(cpu=0.4), SEEN._replace(cpu=0.95)
    assert "outside" not in policy.decide(inside, TABLE).reason and policy.fallbacks == 0
    decision = policy.decide(outside, TABLE)
    assert decision.cut == greedy.decide(outside, TABLE).cut
    assert decision.reason.startswith("outside of what the policy was trained on (cpu 0.95)")
    assert policy.fallbacks == 1


def test_a_hair_beyond_the_training_range_still_counts_as_inside():
    file = untrained_file(TABLE.cuts)
    low, high = file.low.copy(), file.high.copy()
    cpu = STATE_FEATURES.index("cpu")
    low[cpu], high[cpu] = 0.2, 0.6
    policy = LearnedPolicy(file._replace(low=low, high=high))
    for load, fallbacks in ((0.61, 0), (0.19, 0), (0.63, 1), (0.17, 2)):  # 5 % of the range of 0.4 is 0.02
        policy.decide(SEEN._replace(cpu=load), TABLE)
        assert policy.fallbacks == fallbacks


def test_the_network_moves_the_choice_away_from_the_expected_cost():
    file = untrained_file(TABLE.cuts)
    wanted = TABLE.cuts.index(Cut.parse("3:int8"))
    bias = np.where(np.arange(len(TABLE.cuts)) == wanted, 50.0, 0.0).astype(np.float32)
    policy = LearnedPolicy(file._replace(layers=(*file.layers[:2], Layer(file.layers[2].weight, bias))))
    decision = policy.decide(SEEN, TABLE)
    assert str(decision.cut) == "3:int8" and "above the least expected cost" in decision.reason
    assert decision.confidence > 0.99


def test_it_follows_from_one_table_to_another_and_refuses_a_strange_one():
    policy = LearnedPolicy(untrained_file(TABLE.cuts))
    part = TABLE.only([Cut.parse("2:int8"), Cut.parse("4:none")])
    assert policy.decide(SEEN, TABLE).cut in TABLE.cuts
    assert policy.decide(SEEN, part).cut in part.cuts
    assert policy.decide(SEEN, TABLE).cut in TABLE.cuts
    with pytest.raises(CutError, match="got encoder other, expected tiny"):
        policy.decide(SEEN, TABLE._replace(encoder="other"))


def test_a_part_of_the_table_without_any_of_its_cuts_is_left_to_the_greedy_policy():
    """As constraints may leave one in the middle of a run."""
    policy = LearnedPolicy(untrained_file((Cut.parse("0:pcm16"), Cut.parse("4:none")), scale=1.0))
    part = TABLE.only([Cut.parse("2:int8"), Cut.parse("3:int8")])
    decision = policy.decide(SEEN, part)
    assert decision.cut == GreedyPolicy(policy.file.settings).decide(SEEN, part).cut
    assert decision.reason.startswith("outside of what the policy was trained on (none of its cuts may be taken)")
    assert policy.fallbacks == 1
    one = TABLE.only([Cut.parse("4:none"), Cut.parse("3:int8")])
    assert str(policy.decide(SEEN, one).cut) == "4:none" and policy.fallbacks == 1


def test_a_policy_that_never_saw_a_mask_leaves_a_part_of_the_table_to_the_greedy_policy():
    """The network reads the costs of all actions; measured, it did worse than greedy with one of them gone."""
    record = {"training": {"environment": {"constraints": ConstraintSettings().as_dict()}}}
    part = TABLE.only(TABLE.cuts[1:])
    for about in (record, {}, {"training": 3}):
        policy = LearnedPolicy(untrained_file(TABLE.cuts, scale=3.0, about=about))
        assert "outside" not in policy.decide(SEEN, TABLE).reason
        decision = policy.decide(SEEN, part)
        assert decision.cut == GreedyPolicy(policy.file.settings).decide(SEEN, part).cut and policy.fallbacks == 1
        assert f"trained on (without {TABLE.cuts[0]})" in decision.reason
        two = policy.decide(SEEN, TABLE.only(TABLE.cuts[2:]))
        assert f"(without {TABLE.cuts[0]} and 1 more)" in two.reason


@pytest.mark.parametrize("limits", [{"raw_audio": False}, {"max_privacy_risk": 0.5}, {"energy_budget_mw": 5.0}])
def test_a_policy_trained_under_constraints_decides_under_them(limits):
    record = {"training": {"environment": {"constraints": ConstraintSettings(**limits).as_dict()}}}
    policy = LearnedPolicy(untrained_file(TABLE.cuts, scale=3.0, about=record))
    assert "learned policy" in policy.decide(SEEN, TABLE.only(TABLE.cuts[1:])).reason and policy.fallbacks == 0


@settings(deadline=None)
@given(observations)
def test_any_observation_gets_a_cut_of_the_table(observation):
    decision = LearnedPolicy(untrained_file(TABLE.cuts, scale=1.0)).decide(observation, TABLE)
    assert decision.cut in TABLE.cuts and 0.0 <= decision.confidence <= 1.0
