import itertools
import json
import math

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from streamsplit.errors import ConfigError
from streamsplit.evaluation.transmission import (
    area_interval,
    correct,
    gate_curve,
    gate_sends,
    transmission_curve,
    uncertainty_quality,
)
from streamsplit.evaluation.transmission_plot import transmission_figure
from streamsplit.splitting.transmission import GateSettings


def stream(n=600, skill=1.0, seed=0):
    """Edge right with 70 %, server with 90 %; the uncertainty is higher on the edge's errors by `skill` deviations."""
    rng = np.random.default_rng(seed)
    edge, server = rng.uniform(size=n) < 0.7, rng.uniform(size=n) < 0.9
    return rng.normal(size=n) + skill * ~edge, edge, server


def test_correlation_and_areas_are_those_of_scipy_and_sklearn():
    u, edge, server = stream()
    u = np.round(u, 1)  # with equals
    got = uncertainty_quality(u.tolist(), edge, server)
    benefit = server.astype(int) - edge.astype(int)
    assert got.spearman_error == pytest.approx(spearmanr(u, ~edge).statistic)
    assert got.spearman_benefit == pytest.approx(spearmanr(u, benefit).statistic)
    assert got.auroc_error == pytest.approx(roc_auc_score(~edge, u))
    assert got.auroc_benefit == pytest.approx(roc_auc_score(benefit == 1, u))
    assert (got.repaired, got.spoiled) == (int((benefit == 1).sum()), int((benefit == -1).sum()))
    assert got.edge_errors == int((~edge).sum()) and got.windows == 600


def test_an_uncertainty_that_says_nothing_scores_one_half():
    u, edge, server = stream(5000, skill=0.0)
    got = uncertainty_quality(u.tolist(), edge, server)
    assert got.auroc_error == pytest.approx(0.5, abs=0.03) and abs(got.spearman_benefit) < 0.04


def test_without_errors_or_differences_the_figures_are_unknown():
    got = uncertainty_quality([0.1, 0.2], [True, True], [True, True])
    assert math.isnan(got.auroc_error) and math.isnan(got.spearman_error)
    assert got.as_dict()["auroc_error"] is None and got.as_dict()["repaired"] == 0
    assert math.isnan(uncertainty_quality([1.0, 1.0], [True, False], [True, True]).spearman_error)


def test_the_curve_is_that_of_a_slow_loop():
    u, edge, server = stream(100)
    curve = transmission_curve(u.tolist(), edge, server, orders=50)
    order, by_gain = np.argsort(-u), np.argsort(-(server.astype(int) - edge))
    for share, ours, best in zip(curve.shares, curve.by_uncertainty, curve.oracle, strict=True):
        for chosen, got in ((order, ours), (by_gain, best)):
            answer = edge.copy()
            sent = chosen[: round(share * 100)]
            answer[sent] = server[sent]
            assert got == pytest.approx(answer.mean())
    assert curve.by_uncertainty[0] == curve.edge_accuracy == edge.mean()
    assert curve.by_uncertainty[-1] == pytest.approx(curve.server_accuracy) == pytest.approx(server.mean())


def test_random_sending_is_the_mean_over_all_choices():
    u, edge, server = stream(8, seed=3)
    curve = transmission_curve(u.tolist(), edge, server, shares=[3 / 8], orders=10)
    slow = [
        np.mean([server[i] if i in chosen else edge[i] for i in range(8)])
        for chosen in itertools.combinations(range(8), 3)
    ]
    assert curve.random[0] == pytest.approx(np.mean(slow))


def test_equal_uncertainties_count_as_a_random_order_of_them():
    edge, server = np.array([1, 0, 0, 1, 0], bool), np.array([1, 1, 0, 0, 1], bool)
    u = np.array([2.0, 1.0, 1.0, 1.0, 0.0])
    curve = transmission_curve(u.tolist(), edge, server, shares=[0.4])
    slow = []
    for order in itertools.permutations(range(5)):
        ranked = sorted(order, key=lambda i: -u[i])  # stable: equals stay in this order
        slow.append(np.mean([server[i] if i in ranked[:2] else edge[i] for i in range(5)]))
    assert curve.by_uncertainty[0] == pytest.approx(np.mean(slow))


def test_the_interval_of_random_sending_is_that_of_drawing_without_replacement():
    u, edge, server = stream(400)
    curve = transmission_curve(u.tolist(), edge, server, shares=[0.25], orders=4000)
    gain = server.astype(float) - edge
    deviation = math.sqrt(gain.var() * 100 * 300 / 399) / 400
    assert curve.random_high[0] - curve.random_low[0] == pytest.approx(2 * 1.96 * deviation, rel=0.1)


def test_the_area_tells_a_good_uncertainty_from_a_useless_one():
    good, useless = (transmission_curve(*stream(skill=skill, seed=1), orders=400) for skill in (1.5, 0.0))
    assert good.p_value < 0.01 and good.area > 0.01 and 0.3 < good.area_of_oracle < 1
    assert useless.p_value > 0.05 and abs(useless.area) < 0.01
    _, edge, server = stream()
    perfect = transmission_curve((server.astype(float) - edge).tolist(), edge, server)
    assert perfect.area_of_oracle == pytest.approx(1.0)


def test_the_area_is_the_mean_height_above_random_sending():
    u, edge, server = stream(200)
    curve = transmission_curve(u.tolist(), edge, server, shares=np.arange(201) / 200, orders=10)
    assert curve.area == pytest.approx(np.trapezoid(curve.by_uncertainty - curve.random, curve.shares))
    assert curve.oracle_area == pytest.approx(np.trapezoid(curve.oracle - curve.random, curve.shares))


def test_p_values_of_a_useless_uncertainty_are_spread_evenly():
    p = [transmission_curve(*stream(100, skill=0.0, seed=seed), orders=99).p_value for seed in range(200)]
    assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=0.06) and np.mean(p) == pytest.approx(0.5, abs=0.08)


def test_the_interval_over_recordings_counts_a_recording_once():
    u, edge, server = (np.repeat(part, 9) for part in stream(80, skill=1.0, seed=2))
    clips = np.repeat(np.arange(80), 9)
    fair = area_interval(u.tolist(), edge, server, clips.tolist(), resamples=300)
    blind = area_interval(u.tolist(), edge, server, list(range(720)), resamples=300)
    assert fair.mean == blind.mean == pytest.approx(transmission_curve(u.tolist(), edge, server, orders=1).area)
    assert fair.high - fair.low == pytest.approx(3 * (blind.high - blind.low), rel=0.25)
    assert fair.low < fair.mean < fair.high and fair.n == 80


def test_a_server_that_is_no_better_leaves_nothing_to_gain():
    u, edge, _ = stream()
    curve = transmission_curve(u.tolist(), edge, edge)
    assert math.isnan(curve.area_of_oracle) and curve.area == 0.0 and curve.p_value == 1.0
    assert json.loads(json.dumps(curve.as_dict(), allow_nan=False))["area_of_oracle"] is None


def test_the_share_needed_for_an_accuracy_is_read_off_the_curve():
    curve = transmission_curve([3.0, 2.0, 1.0, 0.0], [0, 0, 1, 1], [1, 1, 1, 1], shares=[0, 0.25, 0.5, 0.75, 1])
    assert curve.share_needed(0.75) == 0.25 and curve.share_needed(1.0) == 0.5 and curve.share_needed(0.0) == 0.0
    assert math.isnan(transmission_curve([1.0, 0.0], [0, 0], [0, 0]).share_needed(0.5))


def test_the_live_gate_sends_what_is_above_the_running_percentile():
    u = stream(500)[0]
    settings = GateSettings(warm_up_windows=20, memory_windows=64, longest_silence_windows=0)
    slow = [i < 20 or u[i] > np.percentile(u[max(0, i - 64) : i], 70) for i in range(500)]
    assert np.array_equal(gate_sends(u.tolist(), settings), slow)


def test_gate_points_are_the_accuracy_of_what_the_gate_sent():
    u, edge, server = stream(800, skill=1.5)
    settings = GateSettings(longest_silence_windows=0)
    points = gate_curve(u.tolist(), edge, server, percentiles=[50, 70, 90], settings=settings, orders=200)
    assert [point.share for point in points] == pytest.approx([0.5, 0.3, 0.1], abs=0.05)
    sent = gate_sends(u.tolist(), settings.replace(percentile=70.0))
    assert points[1].accuracy == np.where(sent, server, edge)[50:].mean()
    assert all(point.random_high < point.accuracy <= point.oracle for point in points[:2])
    whole = gate_curve(u.tolist(), edge, server, percentiles=[70], settings=settings, after_warm_up=False, orders=20)
    assert whole[0].share == sent.mean()


def test_the_picture_shows_all_curves():
    u, edge, server = stream(200)
    curve = transmission_curve(u.tolist(), edge, server, orders=50)
    figure = transmission_figure(curve, gate_curve(u.tolist(), edge, server, orders=10))
    axes = figure.axes[0]
    drawn = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    assert np.array_equal(drawn["oracle"], curve.oracle)
    assert any(label.startswith("most uncertain first (") for label in drawn)
    assert len(axes.collections) == 2  # the interval and the gate's points


def test_predictions_are_compared_as_text():
    assert correct(["1", "dog"], [1, "cat"]).tolist() == [True, False]
    with pytest.raises(ConfigError, match="one a window"):
        correct(["a"], ["a", "b"])


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: transmission_curve([0.1, math.nan], [1, 0], [1, 1]), "1 unknown uncertaint"),
        (lambda: transmission_curve([0.1, 0.2], [1], [1, 1]), "one value a window"),
        (lambda: transmission_curve([], [], []), "one value a window"),
        (lambda: transmission_curve([0.1], ["dog"], [1]), r"correct\(predictions, labels\)"),
        (lambda: transmission_curve([0.1], [1], [1], shares=[1.2]), "0..1"),
        (lambda: area_interval([0.1, 0.2], [1, 0], [1, 1], ["a", "a"]), "at least two"),
        (lambda: gate_curve([0.1] * 50, [1] * 50, [1] * 50), "more than the warm-up's 50"),
    ],
)
def test_bad_input_is_refused(call, reason):
    with pytest.raises(ConfigError, match=reason):
        call()
