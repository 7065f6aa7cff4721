"""Changes that cost something: priced, earned before they are made, and not made back and forth."""

from __future__ import annotations

import math

import pytest

from streamsplit.splitting.cut import Cut
from streamsplit.splitting.decision import Decision
from streamsplit.splitting.greedy import GreedyPolicy, GreedySettings
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.policy import PolicySettings, make_policy
from streamsplit.splitting.steady import SteadyPolicy, SteadySettings, extra_bytes, fetch_bytes
from streamsplit.splitting.table import CutRow, CutTable, make_table

PCM, OPUS, CODES, FEATURES, MIDDLE, DEEP, NONE = (
    Cut.parse(text)
    for text in ("0:pcm16", "0:opus24", "0:tinystream", "0:logmel-int8", "6:int8", "13:embedding-fp16", "13:none")
)
ROWS = (  # of a small network on a slow processor: edge_ms, server_ms, payload_bytes, energy_mj, agreement
    CutRow(PCM, 0.15, 3.5, 16_020.0, 8.2, 1.0),
    CutRow(OPUS, 13.4, 4.6, 1_685.0, 16.0, 0.935),
    CutRow(CODES, 65.0, 6.7, 169.0, 70.0, 0.88),
    CutRow(FEATURES, 1.15, 3.5, 6_424.0, 4.5, 1.0),
    CutRow(Cut.parse("2:fp32"), 9.0, 3.0, 205_000.0, 110.0, 1.0),
    CutRow(MIDDLE, 23.0, 1.8, 5_000.0, 28.0, 0.99),
    CutRow(DEEP, 45.2, 0.0, 280.0, 51.3, 1.0),
    CutRow(NONE, 45.0, 0.0, 0.0, 51.0, 1.0),
)
TABLE = make_table(CutTable("mobilenet", "pi4", 11.7, 13, ROWS, {}))
SEEN = Observation(uncertainty=2.0, cpu=0.2, bandwidth_bps=4e6, bandwidth_age_ms=100.0, rtt_ms=40.0, rtt_age_ms=100.0)
EAGER = GreedySettings(stickiness=0.0, least_gain=0.0)


class Wishes:
    """Asks for the cuts that it is given, one after the other."""

    def __init__(self, *cuts: Cut) -> None:
        self.cuts = list(cuts)

    def decide(self, observation: Observation, table) -> Decision:
        return Decision(self.cuts.pop(0), 1.0, "a wish")


def follow(policy, observations: list[Observation], last: Cut, table=TABLE) -> list[Cut]:
    """What a device does that sees these."""
    cuts = []
    for observation in observations:
        last = policy.decide(observation._replace(last_cut=last), table).cut
        cuts.append(last)
    return cuts


def changes(cuts: list[Cut], first: Cut) -> int:
    return sum(a != b for a, b in zip([first, *cuts], cuts, strict=False))


@pytest.mark.parametrize(
    ("cut", "last", "whole"),
    [
        (PCM, PCM, False), (PCM, OPUS, False), (FEATURES, PCM, False), (FEATURES, FEATURES, False),
        (PCM, FEATURES, True), (OPUS, FEATURES, True), (FEATURES, DEEP, True), (OPUS, NONE, True), (PCM, None, True),
        (MIDDLE, FEATURES, False), (DEEP, None, False), (NONE, PCM, False), (CODES, CODES, False), (CODES, PCM, True),
        (PCM, CODES, False), (FEATURES, CODES, False), (CODES, DEEP, True),
    ],
)  # fmt: skip
def test_a_window_goes_up_whole_where_the_one_before_left_nothing_to_continue(cut, last, whole):
    row = TABLE.row(cut)
    assert extra_bytes(row, last, 2.0) == (row.payload_bytes if whole else 0.0)
    assert extra_bytes(row, last, 1.0) == 0.0


def test_the_price_is_the_extra_bytes_as_traffic_and_as_delay():
    policy = SteadyPolicy(GreedyPolicy(), costs=GreedySettings(traffic=4.0, traffic_bytes=16_000.0, latency=5.0))
    row = TABLE.row(FEATURES)
    price = policy.price(SEEN._replace(last_cut=DEEP), TABLE, row)
    assert price == pytest.approx(4 * row.payload_bytes / 16_000 + 5 * (row.payload_bytes * 8 / 4e3) / 200)
    assert policy.price(SEEN._replace(last_cut=FEATURES), TABLE, TABLE.row(DEEP)) == 0.0


def test_weights_that_are_not_on_the_device_are_part_of_the_price():
    rows = tuple(row._replace(fetch_bytes=40_000.0 * row.cut.block) for row in TABLE.rows)
    table = TABLE._replace(rows=rows)
    assert fetch_bytes(table.row(MIDDLE), table, 2) == 4 * 40_000.0
    assert fetch_bytes(table.row(MIDDLE), table, 6) == fetch_bytes(table.row(MIDDLE), table, -1) == 0.0
    policy = SteadyPolicy(GreedyPolicy())
    held = policy.price(SEEN._replace(last_cut=FEATURES, blocks=13), table, table.row(MIDDLE))
    missing = policy.price(SEEN._replace(last_cut=FEATURES, blocks=2), table, table.row(MIDDLE))
    assert held == 0.0 and missing == pytest.approx(4 * 160_000 / 16_000 + 5 * (160_000 * 8 / 4e3) / 200)


def test_a_change_that_costs_nothing_is_made_at_once():
    policy = SteadyPolicy(Wishes(MIDDLE, DEEP, NONE))
    assert follow(policy, [SEEN] * 3, FEATURES) == [MIDDLE, DEEP, NONE]


def test_a_gain_beyond_the_price_is_taken_in_the_same_window():
    # With the processor all but taken, the deep cut costs 20 times its time: features pay for themselves in one window.
    busy = SEEN._replace(cpu=0.97, bandwidth_bps=5e7)
    assert follow(SteadyPolicy(GreedyPolicy(EAGER), costs=EAGER), [busy], DEEP)[0].block == 0


def test_a_small_gain_waits_until_it_has_earned_the_price_and_no_longer():
    settings = SteadySettings(patience_windows=1_000)
    policy = SteadyPolicy(Wishes(*[FEATURES] * 40), settings, EAGER)
    near = SEEN._replace(cpu=0.5, bandwidth_bps=1e6)
    totals = {c.row.cut: c.total for c in GreedyPolicy(EAGER).costs(near, TABLE)}
    gain = totals[DEEP] - totals[FEATURES]
    price = policy.price(near._replace(last_cut=DEEP), TABLE, TABLE.row(FEATURES))
    assert 0 < gain < price
    cuts = follow(policy, [near] * 40, DEEP)
    assert cuts.index(FEATURES) == math.ceil(price / gain) - 1  # it pays in the window whose gain completes the price


# Between these two links the cheapest and the fastest of two cuts are one at block 0 and one at the last block.
POOR, GOOD = (SEEN._replace(cpu=0.5, bandwidth_bps=bps) for bps in (4e5, 1e6))


def test_conditions_that_flap_do_not_make_the_cut_flap():
    part = TABLE.only([FEATURES, DEEP])
    assert [GreedyPolicy(EAGER).decide(o, part).cut for o in (POOR, GOOD)] == [DEEP, FEATURES]
    flapping = [GOOD, POOR] * 30
    plain = follow(GreedyPolicy(EAGER), flapping, DEEP, part)
    steady = follow(SteadyPolicy(GreedyPolicy(EAGER), costs=EAGER), flapping, DEEP, part)
    assert (changes(plain, DEEP), changes(steady, DEEP)) == (60, 0)
    lasting = follow(SteadyPolicy(GreedyPolicy(EAGER), costs=EAGER), [GOOD] * 30, DEEP, part)
    assert lasting[-1] == FEATURES and changes(lasting, DEEP) == 1


@pytest.mark.parametrize("name", ["greedy", "argmin"])
def test_policies_made_by_name_have_the_brake(name):
    def made(enabled: bool) -> int:
        steady = SteadySettings(enabled=enabled)
        settings = PolicySettings(name=name, cuts=(str(FEATURES), str(DEEP)), greedy=EAGER, steady=steady)
        return changes(follow(make_policy(settings), [GOOD, POOR] * 30, DEEP), DEEP)

    assert (made(False), made(True)) == (60, 0)


def test_a_wish_that_lasts_is_followed_even_against_the_expected_cost():
    cheap = SEEN._replace(bandwidth_bps=1e5)
    policy = SteadyPolicy(Wishes(*[PCM] * 20), SteadySettings(patience_windows=4))
    assert follow(policy, [cheap] * 6, DEEP) == [DEEP, DEEP, DEEP, PCM, PCM, PCM]


def test_a_wish_taken_back_starts_anew():
    wishes = [PCM, PCM, PCM, DEEP, PCM, PCM, PCM, PCM]
    policy = SteadyPolicy(Wishes(*wishes), SteadySettings(patience_windows=4))
    assert follow(policy, [SEEN._replace(bandwidth_bps=1e5)] * 8, DEEP) == [DEEP] * 7 + [PCM]


def test_with_the_link_down_or_the_last_cut_gone_the_wish_is_followed():
    assert follow(SteadyPolicy(Wishes(PCM)), [SEEN._replace(link_up=False)], DEEP) == [PCM]
    part = TABLE.only([PCM, FEATURES])
    assert follow(SteadyPolicy(Wishes(PCM)), [SEEN], DEEP, part) == [PCM]
