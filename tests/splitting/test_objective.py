"""The reward and the expected cost: sums worked out by hand, and a slow loop beside the columns."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import COSTS, observations, small_table

from streamsplit.splitting.cut import Cut
from streamsplit.splitting.expected import CutArrays
from streamsplit.splitting.greedy import CostModel, GreedyPolicy, GreedySettings
from streamsplit.splitting.objective import Consequence, ObjectiveSettings, quality_losses, reward, risk_of
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.table import CutTable

V2 = ObjectiveSettings(
    version="v2", quality=10.0, latency=5.0, energy=3.0, traffic=4.0, privacy=2.0, unseen=3.0, unseen_certain=0.2,
    latency_ms=200.0, energy_mj=100.0, traffic_bytes=1_500.0, deadline_ms=1000.0,
)  # fmt: skip
V1 = V2.replace(version="v1", resources=5.0, latency=3.0, energy=0.0, traffic=0.0)
WINDOW = Consequence(
    quality_loss=0.1, latency_ms=80.0, energy_mj=25.0, traffic_bytes=3000.0, busy_ms=125.0, privacy_risk=0.5, seen=True,
    doubt=0.5,
)  # fmt: skip


def test_v2_is_the_sum_worked_out_by_hand():
    # 9 quality - 2 latency - 0.75 energy - 8 traffic - 1 privacy
    assert reward(V2, WINDOW) == pytest.approx(9.0 - 2.0 - 0.75 - 8.0 - 1.0)


def test_v1_takes_the_processors_time_as_a_share_of_the_interval():
    # 9 quality - 1.2 latency - 1 privacy - 5 x 125/500
    assert reward(V1, WINDOW, 500.0) == pytest.approx(9.0 - 1.2 - 1.0 - 1.25)
    assert reward(V1, WINDOW, 50.0) == pytest.approx(9.0 - 1.2 - 1.0 - 5.0)  # more than all of a core is all of it
    assert reward(V2, WINDOW._replace(busy_ms=0.0)) == reward(V2, WINDOW)


def test_a_window_the_server_never_sees_costs_by_its_doubt():
    unseen = [reward(V2, WINDOW._replace(seen=False, doubt=doubt)) for doubt in (0.0, 0.5, 1.0)]
    assert [reward(V2, WINDOW) - value for value in unseen] == pytest.approx([0.6, 1.8, 3.0])
    assert reward(V2, WINDOW._replace(doubt=1.0)) == reward(V2, WINDOW)


def test_past_the_deadline_later_costs_nothing_more():
    at, later, never = (reward(V2, WINDOW._replace(latency_ms=ms)) for ms in (1000.0, 5000.0, math.inf))
    assert at == later == never == pytest.approx(9.0 - 25.0 - 0.75 - 8.0 - 1.0)
    assert reward(V2, WINDOW._replace(latency_ms=999.0)) > at


def test_doubt_is_a_share_of_the_largest_entropy_and_one_half_when_unknown():
    assert [V2.doubt(u) for u in (0.0, math.log(8), math.log(64), 99.0, -1.0)] == pytest.approx(
        [0.0, 0.5, 1.0, 1.0, 0.0]
    )
    assert V2.doubt(math.nan) == V2.doubt(math.inf) == 0.5


def test_quality_is_lost_accuracy_where_all_of_it_was_measured():
    accuracy = dict.fromkeys(COSTS, 0.9) | {"0:opus24": 0.8, "2:fp16": 0.93, "4:none": 0.91}
    table = small_table(accuracy=accuracy)
    losses = dict(zip(map(str, table.cuts), quality_losses(table), strict=True))
    assert losses["0:opus24"] == pytest.approx(0.11)  # against the best of the whole encoder's
    assert losses["4:embedding-fp16"] == pytest.approx(0.01) and losses["4:none"] == 0.0
    assert losses["2:fp16"] == 0.0  # better than the whole encoder by chance


def test_quality_is_disagreement_where_accuracy_was_not_measured_everywhere():
    expected = [1.0 - COSTS[str(row.cut)][4] for row in small_table().rows]
    assert quality_losses(small_table()) == pytest.approx(expected)
    assert quality_losses(small_table(accuracy={"4:none": 0.5})) == pytest.approx(expected)


def test_a_part_of_a_table_without_its_full_path_is_still_ranked_by_accuracy():
    accuracy = dict.fromkeys(COSTS, 0.9) | {"0:opus24": 0.8, "2:int8": 0.85}
    part = small_table(accuracy=accuracy).only([Cut.parse(text) for text in ("0:pcm16", "0:opus24", "2:int8")])
    assert quality_losses(part) == pytest.approx([0.0, 0.1, 0.05])


def test_an_unmeasured_risk_counts_as_none():
    table = small_table(privacy_risk={"0:pcm16": 0.75})
    assert [risk_of(row) for row in table.rows[:2]] == [0.75, 0.0]
    assert CutArrays.of(table).privacy_risk[:2].tolist() == [0.75, 0.0]


def test_columns_say_what_crosses():
    arrays = CutArrays.of(small_table())
    assert arrays.audio.tolist() == [True, True] + [False] * 7
    assert arrays.overlap.tolist() == [2, 2, 1] + [0] * 6
    assert dict(zip(map(str, small_table().cuts), arrays.sends.tolist(), strict=True))["4:none"] is False
    assert int(arrays.sends.sum()) == 8


def slow_costs(s: GreedySettings, o: Observation, table: CutTable) -> list[tuple[float, float, float]]:
    """(latency, delay that builds up, cost) by row: the class's documentation in plain Python."""
    cpu = 0.0 if math.isnan(o.cpu) else min(max(o.cpu, 0.0), 1.0)
    free = max(1.0 - cpu, s.least_free_cpu)
    bps = s.assumed_bps
    if math.isfinite(o.bandwidth_bps) and o.bandwidth_bps > 0 and not math.isnan(o.bandwidth_age_ms):
        measured = max(o.bandwidth_bps, 1e-3)
        known = 0.5 ** (max(o.bandwidth_age_ms - s.fresh_ms, 0.0) / s.half_life_ms)
        bps = measured**known * s.assumed_bps ** (1.0 - known)
    rtt = s.assumed_rtt_ms
    if not math.isnan(o.rtt_ms) and 0.0 <= o.rtt_ms <= 1e9 and not math.isnan(o.rtt_age_ms):
        known = 0.5 ** (max(o.rtt_age_ms - s.fresh_ms, 0.0) / s.half_life_ms)
        rtt = known * o.rtt_ms + (1.0 - known) * s.assumed_rtt_ms
    doubt = min(max(o.uncertainty / s.full_uncertainty, 0.0), 1.0) if math.isfinite(o.uncertainty) else 0.5
    stuck = o.waiting_ms - s.overdue_rtts * rtt if 0.0 < o.waiting_ms <= 1e9 else 0.0
    waiting = max(o.backlog_bytes * 8000.0 / bps, stuck)
    costs = []
    for row in table.rows:
        edge, send = row.edge_ms / free, row.payload_bytes * 8000.0 / bps
        behind = s.horizon_windows * (max(edge - s.interval_ms, 0.0) + max(send - s.interval_ms, 0.0))
        latency = edge + send + 0.5 * behind
        if row.cut.sends:
            latency += waiting + rtt + row.server_ms
            latency += 0.5 * max(waiting - s.horizon_windows * max(s.interval_ms - send, 0.0), 0.0)
        total = s.latency * min(latency, s.deadline_ms) / s.latency_ms + s.energy * row.energy_mj / s.energy_mj
        total += s.traffic * row.payload_bytes / s.traffic_bytes + s.quality * max(1.0 - row.agreement, 0.0)
        total += s.privacy * (0.0 if math.isnan(row.privacy_risk) else row.privacy_risk)
        if not row.cut.sends:
            total += s.local * (s.local_certain + (1.0 - s.local_certain) * doubt)
        costs.append((latency, behind, total))
    return costs


@settings(deadline=None)
@given(observations, st.sampled_from([1e9, 1000.0, 1.0]), st.floats(0.0, 20.0), st.integers(1, 20))
def test_the_expected_costs_equal_a_slow_loop_over_rows(observation, deadline_ms, privacy, horizon):
    settings = GreedySettings(deadline_ms=deadline_ms, privacy=privacy, horizon_windows=horizon)
    table = small_table(privacy_risk={"0:pcm16": 0.9, "2:int8": 0.25})
    expected = slow_costs(settings, observation, table)
    got = CostModel(settings, table).expect(GreedyPolicy(settings).conditions(observation))
    for column, part in enumerate(got):
        assert part.tolist() == pytest.approx([row[column] for row in expected], rel=1e-9, abs=1e-9)


def test_the_greedy_weights_of_an_objective_expect_what_it_rewards():
    """With nothing waiting and everything known, cost + reward is the same for every row: the best quality."""
    settings = GreedySettings.from_objective(V2, 500.0)
    table = small_table(privacy_risk={"0:pcm16": 0.9})
    seen = Observation(uncertainty=V2.full_uncertainty / 4, bandwidth_bps=2e6, bandwidth_age_ms=0.0, rtt_ms=40.0)
    expected = GreedyPolicy(settings).expectation(seen, table)
    for row, latency_ms, total in zip(table.rows, expected.latency_ms, expected.total, strict=True):
        what = Consequence(
            1.0 - row.agreement, latency_ms, row.energy_mj, row.payload_bytes, row.edge_ms, risk_of(row), row.cut.sends,
            0.25,
        )  # fmt: skip
        assert reward(V2, what) + total == pytest.approx(10.0)
