"""The decision log: alternatives are the cheapest rows, and hindsight counts as the objective does."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamsplit.splitting.constraints import ConstraintSettings
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.decision import Decision
from streamsplit.splitting.decision_log import DecisionLog
from streamsplit.splitting.device import device_profile
from streamsplit.splitting.greedy import GreedyPolicy, GreedySettings
from streamsplit.splitting.hindsight import Hindsight, Realised
from streamsplit.splitting.objective import Consequence, ObjectiveSettings, quality_losses, reward, risk_of
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.table import packaged_table
from streamsplit.wire.frame import HEADER_BYTES

PI4 = device_profile("pi4")
TABLE = packaged_table("mobilenet", "pi4")
FEATURES, OPUS, DEEP, NONE = (Cut.parse(text) for text in ("0:logmel-int8", "0:opus24", "13:embedding-fp16", "13:none"))
SEEN = Observation(
    uncertainty=2.0, cpu=0.2, bandwidth_bps=4e6, bandwidth_age_ms=100.0, rtt_ms=40.0, rtt_age_ms=100.0,
    last_cut=FEATURES,
)  # fmt: skip


def realised(cut: Cut, **changes) -> Realised:
    """A window that went exactly as the table, an idle device, 4 Mbit/s and 40 ms say."""
    row = TABLE.row(cut)
    size = row.payload_bytes + HEADER_BYTES if cut.sends else 0.0
    network_ms = size * 8 / 4e3 + 40.0 + row.server_ms if cut.sends else math.nan
    latency_ms = row.edge_ms + (network_ms if cut.sends else 0.0)
    server_ms = row.server_ms if cut.sends else 0.0
    what = Realised(cut, latency_ms, network_ms, row.edge_ms, size, 4e6, 40.0, server_ms, 0.0, 0.25, FEATURES)
    return what._replace(**changes)


def by_hand(objective: ObjectiveSettings, cut: Cut) -> float:
    """quality - reward of a row under those conditions, one number at a time."""
    row = TABLE.row(cut)
    size = row.payload_bytes + HEADER_BYTES if cut.sends else 0.0
    if cut in (OPUS, Cut.parse("0:pcm16"), Cut.parse("0:tinystream")):
        size += row.payload_bytes  # features before it leave no sound to continue: the window goes up whole
    latency_ms = row.edge_ms + (size * 8 / 4e3 + 40.0 + row.server_ms if cut.sends else 0.0)
    what = Consequence(
        quality_losses(TABLE)[TABLE.cuts.index(cut)], latency_ms, PI4.energy_mj(row.edge_ms, size), size, row.edge_ms,
        risk_of(row), cut.sends, 0.25,
    )  # fmt: skip
    return objective.quality - reward(objective, what, 500.0)


@pytest.mark.parametrize("taken", [FEATURES, DEEP, NONE])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_hindsight_is_the_objectives_reward_of_every_row(taken: Cut, version: str) -> None:
    objective = ObjectiveSettings(version=version, privacy=2.0)
    found = Hindsight(objective, TABLE, PI4).costs(realised(taken))
    assert found is not None
    index, costs = found
    assert TABLE.cuts[index] == taken
    expected = [by_hand(objective, cut) for cut in TABLE.cuts]
    assert costs == pytest.approx(expected, rel=1e-6)


def test_a_slow_processor_and_a_slow_link_are_charged_to_the_rows_that_use_them() -> None:
    hindsight = Hindsight(ObjectiveSettings(), TABLE, PI4)
    row, usual = TABLE.row(FEATURES), realised(FEATURES)
    pcm = TABLE.cuts.index(Cut.parse("0:pcm16"))
    deep = TABLE.cuts.index(DEEP)

    def extra(**changes) -> np.ndarray:
        calm, other = hindsight.costs(usual), hindsight.costs(usual._replace(**changes))
        assert calm is not None and other is not None
        return other[1] - calm[1]

    slow = extra(edge_ms=3 * row.edge_ms, latency_ms=usual.latency_ms + 2 * row.edge_ms)
    assert slow[deep] > 10 * slow[pcm] > 0
    rest_ms = usual.frame_bytes * 8 / 1e3  # the same frame at 1 Mbit/s instead of 4
    late = extra(
        bandwidth_bps=1e6, network_ms=rest_ms + 40.0 + row.server_ms,
        latency_ms=rest_ms + 40.0 + row.server_ms + row.edge_ms,
    )  # fmt: skip
    frame = TABLE.rows[deep].payload_bytes + HEADER_BYTES
    assert late[deep] == pytest.approx(5 * frame * 8 * (1 / 1e3 - 1 / 4e3) / 200)
    assert late[pcm] > 20 * late[deep]


def test_the_alternatives_are_the_cheapest_other_rows_in_order() -> None:
    log = DecisionLog(PI4)
    objective = GreedySettings.from_objective(ObjectiveSettings(), 500.0).replace(deadline_ms=1000.0)
    totals = {cost.row.cut: cost.total for cost in GreedyPolicy(objective).costs(SEEN, TABLE)}
    made = log.decided(SEEN, Decision(FEATURES, 1.0, "because"), TABLE)
    ranked = sorted((cut for cut in totals if cut != FEATURES), key=totals.__getitem__)
    assert [other.cut for other in made.alternatives] == ranked[:3]
    assert made.expected == pytest.approx(totals[FEATURES])
    assert made.plain()[0] == [str(ranked[0]), round(totals[ranked[0]], 4)]


def test_regret_is_zero_for_the_best_row_and_the_difference_for_another() -> None:
    log = DecisionLog(PI4)
    _, costs = Hindsight(log.objective, TABLE, PI4).costs(realised(DEEP)) or (0, np.zeros(0))
    best = TABLE.cuts[int(np.argmin(costs))]
    made = log.decided(SEEN, Decision(best, 1.0, ""), TABLE)
    judged = log.judge(made, realised(best))
    assert judged is not None and judged.regret == pytest.approx(0.0, abs=1e-9) and judged.best == best
    worse = log.decided(SEEN._replace(last_cut=best), Decision(FEATURES, 1.0, ""), TABLE)
    judged = log.judge(worse, realised(FEATURES))
    assert judged is not None and judged.best == best
    assert judged.regret == pytest.approx(by_hand(log.objective, FEATURES) - by_hand(log.objective, best), rel=1e-6)
    assert (log.decisions, log.judged, log.mean_regret) == (2, 2, pytest.approx(judged.regret / 2))


def test_changes_are_counted_and_what_was_overruled_is_not_judged() -> None:
    log = DecisionLog(PI4)
    for last, cut in ((None, FEATURES), (FEATURES, FEATURES), (FEATURES, DEEP), (DEEP, FEATURES)):
        made = log.decided(SEEN._replace(last_cut=last), Decision(cut, 1.0, ""), TABLE)
    assert (log.decisions, log.changes) == (4, 2)
    assert log.judge(made, realised(DEEP)) is None and math.isnan(log.mean_regret)


def test_what_the_constraints_forbid_is_no_alternative_in_hindsight() -> None:
    private = ConstraintSettings(raw_audio=False)
    free, held = DecisionLog(PI4), DecisionLog(PI4, constraints=private)
    small = TABLE.only([OPUS, FEATURES])
    small = small._replace(rows=tuple(row._replace(accuracy=math.nan, agreement=1.0) for row in small.rows))
    slow = realised(FEATURES, last_cut=OPUS, bandwidth_bps=2e5, network_ms=300.0, latency_ms=301.0, doubt=1.0)
    bests = []
    for log in (free, held):
        judged = log.judge(log.decided(SEEN, Decision(FEATURES, 1.0, ""), small), slow)
        assert judged is not None and judged.regret >= 0.0
        bests.append(judged.best)
    assert bests[0] == OPUS and bests[1] != OPUS


def test_regret_is_never_negative_whatever_happened() -> None:
    log = DecisionLog(PI4)
    rng = np.random.default_rng(0)
    for _ in range(300):
        cut = TABLE.cuts[int(rng.integers(len(TABLE.cuts)))]
        edge, network = float(rng.exponential(200.0)), float(rng.exponential(500.0))
        what = Realised(
            cut, edge + network, network if cut.sends else math.nan, edge, float(rng.exponential(5_000.0)),
            float(rng.choice([math.nan, 1e4, 1e6, 1e8])), float(rng.choice([math.nan, 5.0, 500.0])),
            float(rng.exponential(5.0)), 1.0, float(rng.random()), FEATURES, float(rng.exponential(1e4)),
        )  # fmt: skip
        judged = log.judge(log.decided(SEEN, Decision(cut, 1.0, ""), TABLE), what)
        assert judged is not None and judged.regret >= 0.0 and math.isfinite(judged.regret)
