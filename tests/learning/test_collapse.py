"""The alarm for collapse: against known courses of the rank, and through a learner that is forced to a point."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamsplit.errors import ConfigError
from streamsplit.learning.collapse import CollapseSettings, CollapseWatch
from streamsplit.learning.rank import RunningRank, effective_rank

DAY = range(0, 172_800, 16)


def starts(watch: CollapseWatch, ranks: np.ndarray, positions: range = DAY) -> list[int]:
    """Positions at which the alarm starts."""
    found, before = [], watch.collapsed
    for position, rank in zip(positions, ranks, strict=True):
        now = watch.observe(position, float(rank))
        found += [position] if now and not before else []
        before = now
    return found


def test_a_healthy_day_that_swings_with_its_sounds_never_alarms() -> None:
    rng = np.random.default_rng(0)
    hours = np.array(DAY) / 7_200
    ranks = np.maximum(
        40 + 8 * np.sin(hours) + rng.normal(0, 10, len(hours)), 1
    )  # single values fall below half of hour 1's
    watch = CollapseWatch()
    assert starts(watch, ranks) == [] and watch.alarms == 0
    assert ranks.min() < 0.5 * watch.reference and 30 < watch.reference < 60


def test_a_day_that_collapses_alarms_once_and_soon() -> None:
    positions = np.array(DAY)
    ranks = np.where(positions < 72_000, 40.0, 40.0 * np.exp(-(positions - 72_000) / 7_200)) + 1
    watch = CollapseWatch()
    (start,) = starts(watch, ranks)
    assert watch.alarms == 1 and watch.collapsed
    # The rank itself passes half of 41 at 72,000 + 7,200 ln(40 / 19.5); its average follows within two time constants.
    crossing = 72_000 + 7_200 * math.log(40 / 19.5)
    assert crossing < start < crossing + 1_200


def test_ranks_between_the_two_shares_neither_start_nor_end_the_alarm() -> None:
    watch = CollapseWatch(CollapseSettings(smoothing=1, first_at=10, reference_at=20))
    course = [(30, 40.0, False), (60, 22.0, False), (90, 19.0, True), (120, 23.0, True), (150, 25.0, False)]
    course += [(180, 23.0, False), (210, 10.0, True)]
    position = 0
    for until, rank, expected in course:
        while position < until:
            collapsed = watch.observe(position, rank)
            position += 1
        assert collapsed is expected, (until, rank)
    assert watch.alarms == 2 and watch.reference == pytest.approx(40)


def test_a_collapse_in_the_first_hour_is_seen_and_its_low_rank_is_no_reference() -> None:
    watch = CollapseWatch()
    positions = range(0, 14_400, 16)
    (start,) = starts(watch, np.where(np.array(positions) < 3_000, 40.0, 1.0), positions)
    assert 3_000 < start < 3_600
    assert watch.collapsed and watch.reference == pytest.approx(40.0)


def test_the_unit_of_positions_is_the_callers() -> None:
    watch = CollapseWatch(CollapseSettings(smoothing=1 / 12, first_at=1 / 6, reference_at=1.0))
    hours = np.linspace(0, 24, 10_801)
    for hour in hours:
        if watch.observe(hour, 40.0 if hour < 12 else 5.0):
            break
    assert 12 < hour < 12.2


def test_an_hour_of_one_sound_is_no_collapse_where_the_sounds_own_rank_is_given() -> None:
    alone, beside = CollapseWatch(), CollapseWatch()
    for position in DAY:
        rank, heard = (2.0, 2.4) if 72_000 < position < 86_400 else (40.0, 60.0)
        alone.observe(position, rank)
        beside.observe(position, rank, heard)
    assert alone.alarms == 1 and not alone.collapsed
    assert beside.alarms == 0


def test_its_state_goes_on_exactly_and_a_restart_at_zero_adds_no_time() -> None:
    rng = np.random.default_rng(1)
    ranks = np.concatenate([rng.uniform(30, 50, 500), rng.uniform(1, 50, 1_500)])
    whole, first = CollapseWatch(), CollapseWatch()
    flags = [whole.observe(16 * i, rank) for i, rank in enumerate(ranks)]
    for i, rank in enumerate(ranks[:700]):
        first.observe(16 * i, rank)
    second = CollapseWatch()
    second.load_state(first.state())
    again = [second.observe(16 * i, rank) for i, rank in enumerate(ranks) if i >= 700]
    assert again == flags[700:]
    assert np.array_equal(second.state()["scalars"], whole.state()["scalars"], equal_nan=True)
    level = second.level
    second.observe(0, 1000.0)
    assert second.level == level


@pytest.mark.parametrize("rank", [math.nan, math.inf, -1.0])
def test_a_rank_that_is_none_is_refused(rank: float) -> None:
    with pytest.raises(ConfigError, match="expected finite"):
        CollapseWatch().observe(0, rank)
    with pytest.raises(ConfigError, match="expected finite"):
        CollapseWatch().observe(0, 3.0, rank)


def test_contradicting_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="clear_share"):
        CollapseSettings(share=0.5, clear_share=0.4)
    with pytest.raises(ConfigError, match="reference_at"):
        CollapseSettings(first_at=10.0, reference_at=5.0)


def test_the_rank_about_the_origin_sees_a_point_in_noise_that_the_centred_one_does_not() -> None:
    rng = np.random.default_rng(0)
    z = np.eye(16)[0] + 1e-3 * rng.standard_normal((256, 16))
    rank = RunningRank(16)
    assert not rank.known
    for row in z.astype(np.float32):
        rank.observe(row)
    assert rank.known and rank.value > 15
    assert (
        rank.about_origin == pytest.approx(effective_rank(z.astype(np.float32)), rel=1e-3) and rank.about_origin < 1.2
    )
    copy = RunningRank(16)
    copy.load_state(rank.state())
    assert copy.about_origin == rank.about_origin
    old = rank.state() | {"scalars": rank.state()["scalars"][:2]}
    copy.load_state(old)
    assert copy.about_origin == pytest.approx(rank.about_origin)
    rank.clear()
    assert rank.about_origin == 0.0 and not rank.known


def test_a_learner_whose_encoder_is_forced_to_a_point_alarms_and_its_snapshot_remembers() -> None:
    torch = pytest.importorskip("torch")
    from streamsplit.encoders.mobilenet import MobileNetV3Small
    from streamsplit.learning import snapshot
    from streamsplit.learning.learner import EdgeLearner, LearnerSettings
    from streamsplit.weights.revision import encoder_weights

    torch.set_num_threads(1)
    settings = LearnerSettings(
        batch_windows=4, accumulate=2, buffer_windows=80, run_windows=5, warm_start_windows=60, components=8,
        cold_start=10, negatives=8,
    )  # fmt: skip
    made = [EdgeLearner(MobileNetV3Small(0.25, 32, np.random.default_rng(0)), settings) for _ in range(2)]
    learner = made[0]
    learner.collapse = CollapseWatch(CollapseSettings(smoothing=20, first_at=30, reference_at=60))
    learner.rank.window = learner.heard.window = 32  # so that the old embeddings are forgotten soon
    rng = np.random.default_rng(0)

    def hear(start: int, stop: int, every: int) -> None:
        for index in range(start, stop):
            window = (-7 + 2 * rng.standard_normal((128, 1)) + rng.standard_normal((128, 16))).astype(np.float32)
            learner.observe(window, index, learn=index % every == 0, continuous=index % 5 != 0)

    hear(0, 110, 4)
    assert learner.steps > 5 and learner.collapse.alarms == 0 and learner.collapse.reference > 0
    with torch.no_grad():
        for encoder in (learner.query, learner.key):
            for project in encoder.readout_projections():
                project.weight.zero_()
                project.bias.fill_(1.0)
    hear(110, 300, 8)
    assert learner.collapse.collapsed and learner.collapse.alarms == 1
    assert learner.rank.about_origin < 5 < learner.heard.about_origin
    made[1].restore(learner.snapshot())
    assert made[1].collapse.state()["scalars"].tolist() == learner.collapse.state()["scalars"].tolist()
    assert made[1].heard.about_origin == learner.heard.about_origin
    arrays, record = snapshot.unseal(learner.snapshot())
    older = {name: array for name, array in arrays.items() if not name.startswith(("heard/", "collapse/"))}
    made[1].restore(snapshot.seal(older, record))
    assert made[1].heard.known and not made[1].collapse.collapsed
    learner.adopt(encoder_weights(MobileNetV3Small(0.25, 32, np.random.default_rng(1))), breaks_space=True)
    assert not learner.collapse.collapsed and math.isnan(learner.collapse.reference)
