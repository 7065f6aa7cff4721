import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from streamsplit.errors import ConfigError
from streamsplit.evaluation.convex_head import ConvexHead, with_ones
from streamsplit.evaluation.theory import (
    TheorySettings,
    measure_convergence,
    theory_trace,
    through_bottleneck,
    through_codec,
)
from streamsplit.evaluation.theory_plots import convergence_figure, trace_figure
from streamsplit.learning.theorem import GradientVariance
from streamsplit.wire.media import Encoding


def problem(n=120, d=8, c=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(c, size=n)
    x = np.eye(c, d)[labels] + rng.normal(0, 0.5, (n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True), labels


def doubt(n=120):
    return np.random.default_rng(9).uniform(size=n).tolist()


SETTINGS = {
    "noise only": ({}, None, None),
    "one row at a time": ({"batch": 1}, None, None),
    "short steps": ({"rate_share": 0.1, "batch": 4}, None, None),
    "the head's own entropy selects": ({"percentile": 70.0}, None, None),
    "a given uncertainty selects": ({"percentile": 60.0, "batch": 0}, None, doubt()),
    "int8": ({"batch": 8}, through_codec(), None),
    "a narrow bottleneck": ({"batch": 0}, through_bottleneck(1), None),
    "everything": ({"percentile": 80.0, "batch": 2}, through_bottleneck(2), doubt()),
    "decreasing steps": ({"schedule": "decreasing", "batch": 4}, None, None),
    "decreasing steps and everything": (
        {"schedule": "decreasing", "percentile": 50.0, "batch": 2}, through_bottleneck(2), doubt(),
    ),
    "strong regularisation": ({"regularisation": 1.0, "batch": 1, "percentile": 50.0}, through_codec(), None),
}  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_corrected_bounds_hold(name, seed):
    changes, crossing, uncertainty = SETTINGS[name]
    settings = TheorySettings(**{"steps": 400, "seed": seed, "batch": 8, **changes})
    run = measure_convergence(*problem(seed=seed), settings, crossing=crossing, uncertainty=uncertainty)
    assert run.holds
    assert (run.smallest2 <= run.average2).all()
    assert run.bound[0] == pytest.approx(
        2 * run.start_gap * run.smoothness / settings.rate_share + settings.rate_share * run.sigma2[0] + run.bias2[0]
    )


def test_without_noise_and_bias_the_gradient_falls_to_zero():
    run = measure_convergence(*problem(), TheorySettings(batch=0, steps=4000))
    assert run.sigma2.max() == 0 and run.bias2.max() < 1e-25
    assert run.gradient2[-1] < 1e-20 < 1e-3 < run.gradient2[0]
    assert math.sqrt(run.distance2[-1]) < 1e-5 and run.holds


def test_what_is_measured_in_the_first_step_is_that_of_slow_loops():
    x, y = problem()
    u = np.array(doubt())
    settings = TheorySettings(steps=1, percentile=70.0, batch=5, seeds=2)
    narrow = through_bottleneck(2)
    run = measure_convergence(x, y, settings, crossing=narrow, uncertainty=u.tolist())
    sent = np.flatnonzero(u >= np.percentile(u, 70.0))

    def rows(vectors, which):  # at weights of zero every class has probability 1/3
        return np.array([np.outer(with_ones(vectors)[i], np.full(3, 1 / 3) - np.eye(3)[y[i]]) for i in which])

    full, exact, crossed = rows(x, range(120)), rows(x, sent), rows(narrow(x), sent)
    mean = crossed.mean(axis=0)
    assert run.gradient2[0] == pytest.approx(np.sum(full.mean(axis=0) ** 2))
    assert run.bias2[0] == pytest.approx(np.sum((mean - full.mean(axis=0)) ** 2))
    assert run.selection2[0] == pytest.approx(np.sum((exact.mean(axis=0) - full.mean(axis=0)) ** 2))
    assert run.split2[0] == pytest.approx(np.sum((mean - exact.mean(axis=0)) ** 2))
    assert run.sigma2[0] == pytest.approx(np.mean([np.sum((row - mean) ** 2) for row in crossed]) / 5)


def test_the_steps_taken_have_the_mean_and_the_variance_that_are_reported():
    x, y = problem()
    settings = TheorySettings(steps=2, batch=3, seeds=1000, regularisation=0.1)
    run = measure_convergence(x, y, settings)
    head = ConvexHead(x, y, 0.1)
    start = np.zeros((1, 9, 3))
    ahead = start - run.rate[0] * head.gradient(start) - head.optimum().weights
    assert run.distance2[1] == pytest.approx(np.sum(ahead**2) + run.rate[0] ** 2 * run.sigma2[0], rel=0.03)


def test_the_heads_own_entropy_picks_the_share_that_is_asked_for():
    x, y = problem()
    alike = measure_convergence(x, y, TheorySettings(steps=1, percentile=70.0, batch=0, seeds=1))
    assert alike.selection2[0] < 1e-25  # at weights of zero all are equally uncertain, so all are sent
    later = measure_convergence(x, y, TheorySettings(steps=50, percentile=70.0, batch=0, seeds=1))
    assert later.selection2[-1] > 1e-4 and later.split2.max() == 0.0


def test_the_papers_bound_is_exceeded_where_bias_dominates_and_the_corrected_one_is_not():
    run = measure_convergence(*problem(), TheorySettings(batch=0, steps=3000, seeds=1), crossing=through_bottleneck(1))
    assert run.smoothness < 1
    assert run.holds and run.paper_violations > 0.5
    assert run.smallest2[-1] == pytest.approx(run.bias2[-1], rel=0.01)  # descent stops where grad f = -bias


def test_noise_alone_exceeds_the_papers_bound_on_a_parabola():
    # f = L x^2 / 2 with eta = 1/L: a step leaves x = -eta noise, whatever x was before.
    smooth, sigma, steps = 2.0, 1.5, 2000
    rng = np.random.default_rng(0)
    x = np.full(1000, 3.0)
    gradient2 = np.empty(steps)
    for step in range(steps):
        gradient2[step] = np.mean((smooth * x) ** 2)
        x = x - (smooth * x + rng.normal(0, sigma, 1000)) / smooth
    descent = 2 * (smooth * 3.0**2 / 2) * smooth / steps
    assert gradient2.min() > 1.5 * (descent + sigma**2 / 2)  # as the paper writes it; L eta = 1
    assert gradient2.mean() == pytest.approx(descent + sigma**2, rel=0.01)  # the corrected one is reached


def test_decreasing_steps_reach_one_over_t():
    settings = TheorySettings(schedule="decreasing", steps=2000, batch=4, regularisation=0.1)
    run = measure_convergence(*problem(), settings, crossing=through_codec())
    horizon = np.arange(2000) + 2 * run.smoothness / run.strong_convexity
    assert (run.distance2 <= run.c1 / horizon + run.c2 * run.bias2.max()).all()
    assert (run.distance_bound <= (run.c1 / horizon + run.c2 * run.bias2.max()) * (1 + 1e-9)).all()
    assert run.distance2[-200:].mean() < 0.2 * run.distance2[100:300].mean()
    assert np.isnan(run.paper_bound).all() and math.isnan(run.paper_violations)
    assert math.isnan(measure_convergence(*problem(), TheorySettings(steps=5)).c1)


def test_embeddings_cross_as_their_bytes_do():
    x, _ = problem()
    error = np.abs(through_codec()(x) - x)
    assert 0 < error.max() <= np.abs(x).max() / 254 * 1.001
    assert np.abs(through_codec(Encoding.EMBEDDING_FP16)(x) - x).max() < 1e-3
    narrow = through_bottleneck(3)(x)
    assert np.linalg.matrix_rank(narrow - narrow.mean(axis=0), tol=1e-9) == 3
    assert through_bottleneck(8)(x) == pytest.approx(x, abs=1e-12)


def test_a_run_is_repeatable_and_saved_as_plain_values():
    settings = TheorySettings(steps=300, percentile=50.0)
    run, again = (measure_convergence(*problem(), settings) for _ in range(2))
    assert np.array_equal(run.gradient2, again.gradient2)
    saved = json.loads(json.dumps(run.as_dict(40), allow_nan=False))
    assert saved["settings"]["percentile"] == 50.0 and saved["holds"] is True and saved["c1"] is None
    assert saved["step"][0] == 0 and saved["step"][-1] == 299 and len(saved["bound"]) == len(saved["step"]) <= 40
    assert saved["gradient2"][-1] == run.gradient2[299]


def test_the_pictures_show_the_bound_beside_what_was_observed():
    run = measure_convergence(*problem(), TheorySettings(steps=100), crossing=through_codec())
    drawn = convergence_figure(run).axes[0].get_lines()
    assert any(np.array_equal(line.get_ydata(), run.bound) for line in drawn) and len(drawn) == 5
    decreasing = measure_convergence(*problem(), TheorySettings(steps=100, schedule="decreasing"))
    assert len(convergence_figure(decreasing).axes[0].get_lines()) == 4
    convergence_figure(run).canvas.draw()


def test_a_real_learners_trace_is_drawn_without_a_bound():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    from streamsplit.encoders.mobilenet import MobileNetV3Small
    from streamsplit.learning.learner import EdgeLearner, LearnerSettings

    settings = LearnerSettings(
        batch_windows=4, accumulate=2, buffer_windows=40, run_windows=5, warm_start_windows=24, components=8,
        cold_start=10, negatives=8,
    )  # fmt: skip
    learner = EdgeLearner(MobileNetV3Small(0.25, 32, np.random.default_rng(0)), settings, 0)
    rng = np.random.default_rng(1)
    for number in range(40):
        window = rng.normal(-7, 2, (128, 24)).astype(np.float32)
        learner.observe(window, number, 500.0 * number, learn=True, continuous=number % 5 != 0)
    trace = theory_trace(learner)
    assert trace.step.tolist() == list(range(1, learner.steps + 1)) and learner.steps > 3
    assert (trace.sigma2 > 0).all() and trace.noise_norm2 == pytest.approx(trace.sigma2 / 2)
    assert len(trace_figure(trace).axes[0].get_lines()) == 3
    assert len(theory_trace(SimpleNamespace(variance=GradientVariance())).step) == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"uncertainty": [0.1]}, "120 rows"),
        ({"uncertainty": [math.nan] * 120}, "one finite number"),
        ({"crossing": lambda x: x[:5]}, "crossed embeddings"),
    ],
)
def test_bad_input_is_refused(changes, reason):
    with pytest.raises(ConfigError, match=reason):
        measure_convergence(*problem(), TheorySettings(steps=1), **changes)
