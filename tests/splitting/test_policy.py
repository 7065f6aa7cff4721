"""Policies: known answers, monotone behaviour, hysteresis, stale estimates."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamsplit.errors import ConfigError, CutError
from streamsplit.splitting.argmin import ArgminPolicy
from streamsplit.splitting.bandit import BanditPolicy
from streamsplit.splitting.cut import Cut, all_cuts
from streamsplit.splitting.device import device_profile
from streamsplit.splitting.greedy import GreedyPolicy, GreedySettings
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.policy import (
    DEFAULT_POLICY,
    FixedPolicy,
    HeuristicPolicy,
    HeuristicSettings,
    KeepLocalPolicy,
    Policy,
    PolicySettings,
    make_policy,
)
from streamsplit.splitting.steady import SteadyPolicy, SteadySettings
from streamsplit.splitting.table import CutRow, CutTable, make_table
from streamsplit.wire.media import Encoding

L = 13
SIZES = {
    Encoding.PCM16: 16020,
    Encoding.OPUS24: 1500,
    Encoding.LOGMEL_FP16: 12820,
    Encoding.LOGMEL_INT8: 6420,
    Encoding.EMBEDDING_FP16: 276,
    Encoding.EMBEDDING_INT8: 152,
    Encoding.NONE: 0,
}
LOSS = {Encoding.OPUS24: 0.05, Encoding.LOGMEL_INT8: 0.01, Encoding.INT8: 0.02, Encoding.EMBEDDING_INT8: 0.001}


def synthetic_table(device: str = "pi4") -> CutTable:
    """Costs that grow with depth and bytes that shrink with it, as of a small convolutional network."""
    rows = []
    for cut in all_cuts(L):
        edge = 0.5 + 0.3 * cut.block + (3.0 if cut.encoding is Encoding.OPUS24 else 0.0)
        width = 4 if cut.encoding is Encoding.FP32 else 2 if cut.encoding is Encoding.FP16 else 1
        size = SIZES.get(cut.encoding, 20 + width * (50_000 >> (cut.block // 2)))
        rows.append(CutRow(cut, edge, 0.3 * (L - cut.block), size, 0.0, 1.0 - LOSS.get(cut.encoding, 0.0)))
    return make_table(CutTable("mobilenet", "host", 1.0, L, tuple(rows), {})).for_device(device_profile(device))


TABLE = synthetic_table()
GOOD = Observation(uncertainty=2.0, cpu=0.2, bandwidth_bps=8e6, bandwidth_age_ms=100.0, rtt_ms=20.0, rtt_age_ms=100.0)


@pytest.mark.parametrize(
    ("cpu", "bps", "block"),
    [
        (0.0, 8e6, 12),  # floor(13 x 1.0) = 13, clipped to L - 1
        (1.0, 0.5e6, 1),  # 0, clipped to 1
        (0.5, 0.5e6, 3),  # floor(13 x 0.3) = floor(3.9)
        (0.0, 0.5e6, 7),  # floor(13 x 0.6) = floor(7.8)
        (0.5, 4.25e6, 6),  # floor(13 x (0.3 + 0.2)) = floor(6.5)
        (1.0, 8e6, 5),  # floor(13 x 0.4) = floor(5.2)
        (0.25, 1e9, 11),  # bandwidth above the range counts as 1: floor(13 x 0.85)
        (0.25, 0.0, 5),  # below the range as 0: floor(13 x 0.45) = floor(5.85)
        (0.0, math.nan, 7),  # unknown as 0
    ],
)
def test_the_heuristic_gives_the_papers_formula(cpu, bps, block):
    decision = HeuristicPolicy().decide(Observation(cpu=cpu, bandwidth_bps=bps), TABLE)
    assert decision.cut == Cut(block, Encoding.INT8)
    assert 0.0 <= decision.confidence <= 1.0


def test_the_heuristic_does_not_lose_a_block_to_rounding():
    ten = make_table(CutTable("x", "host", 1.0, 10, tuple(CutRow(c, 1, 1, 1, 1, 1) for c in all_cuts(10)), {}))
    for tenths in range(11):  # L (0.6 (1 - cpu)) with 0.6 (1 - cpu) = 0.06 tenths: 10 x 0.3 is 3, 10 x 0.6 is 6
        observation = Observation(cpu=1 - tenths / 10, bandwidth_bps=0.5e6)
        exact = min(max((6 * tenths) // 10, 1), 9)
        assert HeuristicPolicy().decide(observation, ten).cut.block == exact


def test_the_fixed_policy_gives_its_cut_and_refuses_one_without_a_row():
    assert FixedPolicy(Cut.parse("6:int8")).decide(GOOD, TABLE).cut == Cut(6, Encoding.INT8)
    with pytest.raises(CutError, match="6:int8"):
        FixedPolicy(Cut.parse("6:int8")).decide(GOOD, TABLE.only([Cut.parse("0:pcm16")]))


def test_keep_local_never_sends():
    assert KeepLocalPolicy().decide(GOOD, TABLE).cut == Cut(L, Encoding.NONE)


def test_the_greedy_cost_of_a_row_is_the_stated_sum():
    table = TABLE.only([Cut.parse("0:logmel-int8")])
    row = table.rows[0]
    settings = GreedySettings(quality=10.0, latency=5.0, energy=3.0, traffic=4.0, traffic_bytes=16_000.0)
    cost = GreedyPolicy(settings).costs(GOOD._replace(backlog_bytes=10_000), table)[0]
    latency = row.edge_ms / 0.8 + 10_000 * 8 / 8e3 + 6420 * 8 / 8e3 + 20.0 + row.server_ms
    assert cost.latency_ms == pytest.approx(latency)
    assert cost.behind_ms == 0.0
    expected = 5 * latency / 200 + 3 * row.energy_mj / 100 + 4 * 6420 / 16000 + 10 * (1 - row.agreement)
    assert cost.total == pytest.approx(expected)


def test_the_greedy_choice_is_the_brute_force_minimum():
    policy = GreedyPolicy()
    for cpu in (0.0, 0.5, 0.9):
        for bps in (5e4, 5e5, 5e6, 5e7):
            observation = GOOD._replace(cpu=cpu, bandwidth_bps=bps)
            costs = {c.row.cut: c.total for c in policy.costs(observation, TABLE)}
            assert costs[policy.decide(observation, TABLE).cut] == pytest.approx(min(costs.values()))


def test_a_worse_link_never_makes_the_greedy_policy_send_more():
    policy = GreedyPolicy()
    sizes = []
    for bps in (1e8, 3e7, 1e7, 3e6, 1e6, 3e5, 1e5, 3e4, 1e4, 1e3):
        decision = policy.decide(GOOD._replace(bandwidth_bps=bps), TABLE)
        sizes.append(TABLE.row(decision.cut).payload_bytes)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 1_500 and sizes[-1] < 500


def test_a_busier_processor_never_makes_the_greedy_policy_cut_deeper():
    policy, slow = GreedyPolicy(), synthetic_table("pi-zero-2w")
    edge = []
    for cpu in (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95):
        decision = policy.decide(GOOD._replace(cpu=cpu, bandwidth_bps=2e5), slow)
        edge.append(slow.row(decision.cut).edge_ms)
    assert edge == sorted(edge, reverse=True)
    assert edge[0] > edge[-1]


def test_a_device_that_cannot_keep_up_with_a_cut_does_not_choose_it():
    slow = device_profile("pi4", factor=400.0)  # the last block takes 1.8 s: no window in time
    table = synthetic_table().for_device(slow)
    decision = GreedyPolicy().decide(GOOD._replace(bandwidth_bps=2e5), table)
    assert table.row(decision.cut).edge_ms < 500


def test_the_greedy_policy_does_not_flap_on_a_noisy_link():
    policy = GreedyPolicy()
    noisy = [1e6 * factor for factor in (1.0, 0.85, 1.15, 0.9, 1.1) * 20]

    def switches(sticky: GreedyPolicy, border: float) -> int:
        last, count = None, 0
        for bps in noisy:
            cut = sticky.decide(GOOD._replace(bandwidth_bps=bps * border, last_cut=last), TABLE).cut
            count += last is not None and cut != last
            last = cut
        return count

    loose = GreedyPolicy(GreedySettings(stickiness=0.0, least_gain=0.0))
    borders = [10 ** (tenth / 10) for tenth in range(-10, 15)]
    assert max(switches(loose, border) for border in borders) >= 30  # there is a border where it would flap
    assert max(switches(policy, border) for border in borders) <= 1


def test_a_clearly_better_cut_is_taken_despite_stickiness():
    policy = GreedyPolicy()
    decision = policy.decide(GOOD._replace(bandwidth_bps=1e4, last_cut=Cut.parse("0:pcm16")), TABLE)
    assert TABLE.row(decision.cut).payload_bytes < 500


def test_a_stale_estimate_is_forgotten_from_above_and_from_below():
    policy = GreedyPolicy()

    def rate(bps: float, age_ms: float) -> float:
        return policy.bandwidth_bps(Observation(bandwidth_bps=bps, bandwidth_age_ms=age_ms))

    assert rate(1e4, 4_999) == pytest.approx(1e4) and rate(1e8, 4_999) == pytest.approx(1e8)
    assert rate(1e4, 20_000) == pytest.approx(1e5)  # one half-life: half way in log to 1e6
    assert rate(1e8, 20_000) == pytest.approx(1e7)
    assert rate(1e4, math.inf) == rate(math.nan, 0.0) == rate(0.0, 0.0) == 1e6


def test_a_device_that_stopped_sending_tries_again_when_its_estimate_is_old():
    policy = GreedyPolicy()
    poor = GOOD._replace(bandwidth_bps=300.0, rtt_ms=50.0, last_cut=Cut(L, Encoding.NONE))
    assert not policy.decide(poor, TABLE).cut.sends
    assert policy.decide(poor._replace(bandwidth_age_ms=120_000.0), TABLE).cut.sends


def test_certain_windows_stay_local_before_uncertain_ones():
    policy = GreedyPolicy()
    poor = GOOD._replace(bandwidth_bps=5e3)
    assert not policy.decide(poor._replace(uncertainty=0.0), TABLE).cut.sends
    assert policy.decide(poor._replace(uncertainty=math.log(64)), TABLE).cut.sends


def test_with_the_link_down_the_smallest_window_goes_to_the_queue():
    decision = GreedyPolicy().decide(GOOD._replace(link_up=False), TABLE)
    assert decision.cut == Cut(L, Encoding.EMBEDDING_INT8)
    assert "link down" in decision.reason


def test_confidence_falls_when_the_link_is_a_guess():
    policy = GreedyPolicy()
    known = policy.decide(GOOD, TABLE).confidence
    unknown = policy.decide(GOOD._replace(bandwidth_bps=math.nan, bandwidth_age_ms=math.inf), TABLE).confidence
    assert 0 < unknown < known <= 1


@settings(deadline=None)
@example(0.0, 0.0, 0.0, 0.0, -3.6e307, 0, None, True)  # such a round trip once made every cost -inf
@example(0.0, 0.0, 0.0, 0.0, 1.7e308, 2**40, None, True)
@given(
    st.floats(allow_nan=True),
    st.floats(allow_nan=True),
    st.floats(allow_nan=True),
    st.floats(min_value=0),
    st.floats(allow_nan=True),
    st.integers(0, 2**40),
    st.sampled_from([None, *TABLE.cuts]),
    st.booleans(),
)
def test_every_observation_gets_a_row_of_the_table(uncertainty, cpu, bps, age, rtt, backlog, last, up):
    observation = Observation(
        uncertainty=uncertainty,
        cpu=cpu,
        bandwidth_bps=bps,
        bandwidth_age_ms=age,
        rtt_ms=rtt,
        backlog_bytes=backlog,
        last_cut=last,
        link_up=up,
    )
    for policy in (GreedyPolicy(), HeuristicPolicy(), KeepLocalPolicy()):
        decision = policy.decide(observation, TABLE)
        assert decision.cut in TABLE.cuts
        assert 0.0 <= decision.confidence <= 1.0 and decision.reason


def test_settings_make_the_policy_they_name():
    plain = {"steady": SteadySettings(enabled=False)}
    assert isinstance(make_policy(PolicySettings(name="greedy", **plain)), GreedyPolicy)
    assert isinstance(make_policy(PolicySettings(name="heuristic", **plain)), HeuristicPolicy)
    assert isinstance(make_policy(PolicySettings(name="argmin", **plain)), ArgminPolicy)
    assert isinstance(make_policy(PolicySettings(name="bandit", **plain)), BanditPolicy)
    assert isinstance(make_policy(), SteadyPolicy) and PolicySettings().name == DEFAULT_POLICY
    assert isinstance(make_policy(PolicySettings(name="keep-local")), KeepLocalPolicy)
    fixed = make_policy(PolicySettings(name="fixed", cut="0:opus24"))
    assert fixed.decide(GOOD, TABLE).cut == Cut.parse("0:opus24")
    assert all(isinstance(make_policy(PolicySettings(name=name)), Policy) for name in ("greedy", "heuristic"))


def test_a_policy_may_be_held_to_some_cuts():
    some = ("0:opus24", "13:embedding-fp16")
    policy = make_policy(PolicySettings(cuts=some))
    for bps in (1e4, 1e6, 1e8):
        assert str(policy.decide(GOOD._replace(bandwidth_bps=bps), TABLE).cut) in some


def test_bad_policy_settings_name_what_is_wrong():
    with pytest.raises(ConfigError, match="6:int8"):
        PolicySettings(name="fixed")
    with pytest.raises(ConfigError, match="BLOCK:ENCODING"):
        PolicySettings(name="fixed", cut="six")
    with pytest.raises(ConfigError, match="allowed greedy"):
        PolicySettings(name="gready")
    with pytest.raises(ConfigError, match="high_bps"):
        HeuristicSettings(low_bps=2e6, high_bps=1e6)


def test_the_seeds_reward_weights_keep_their_proportions():
    settings = GreedySettings.from_reward(1.0, -0.5, -0.3, -0.2)
    assert (settings.quality, settings.energy, settings.latency, settings.privacy) == (10.0, 5.0, 3.0, 2.0)
