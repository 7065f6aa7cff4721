import math

import numpy as np
import pytest
from scipy import stats

from streamsplit.errors import ConfigError
from streamsplit.evaluation.statistics import compare_methods, holm, mean_interval, paired_bootstrap, paired_test


def test_the_interval_is_scipys():
    x = [0.84, 0.87, 0.86, 0.91, 0.83]
    low, high = stats.t.interval(0.95, 4, loc=np.mean(x), scale=stats.sem(x))
    got = mean_interval(x)
    assert got.mean == pytest.approx(np.mean(x)) and got.n == 5
    assert (got.low, got.high) == (pytest.approx(low), pytest.approx(high))
    assert mean_interval(x, 0.5).high < got.high


def test_the_interval_of_two_values_is_that_of_the_printed_table():
    assert mean_interval([0.0, 2.0]).high == pytest.approx(1 + 12.706, abs=1e-3)  # t(1, 97.5 %) = 12.706


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = [got.low <= 3.0 <= got.high for got in (mean_interval(rng.normal(3, 2, 5).tolist()) for _ in range(2000))]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.015)


def test_one_value_has_no_interval():
    got = mean_interval([0.5])
    assert got.mean == 0.5 and math.isnan(got.low)
    assert got.as_dict() == {"mean": 0.5, "low": None, "high": None, "n": 1}


def test_paired_tests_are_scipys():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.5, 1, 12), rng.normal(0, 1, 12)
    got = paired_test(a.tolist(), b.tolist())
    assert got.t_p == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert got.wilcoxon_p == pytest.approx(stats.wilcoxon(a, b).pvalue)
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (got.difference.low, got.difference.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_five_pairs_cannot_get_wilcoxon_below_one_sixteenth():
    assert paired_test([2, 3, 4, 5, 6.5], [1, 1, 1, 1, 1]).wilcoxon_p == pytest.approx(0.0625)


def test_equal_and_single_pairs_are_answered():
    same = paired_test([0.5, 0.6, 0.7], [0.5, 0.6, 0.7])
    assert (same.t_p, same.wilcoxon_p, same.difference.mean) == (1.0, 1.0, 0.0)
    assert math.isnan(paired_test([0.5], [0.4]).t_p)
    assert paired_test([2.0, 3.0, 4.0], [1.0, 2.0, 3.0]).t_p == 0.0


def test_holm_gives_the_textbook_answer():
    # alpha / 4, alpha / 3, ...: 4 * .01, 3 * .02, 2 * .03, 1 * .04 and never below the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    with_gap = holm([0.01, math.nan, 0.02])
    assert with_gap[0] == pytest.approx(0.02) and math.isnan(with_gap[1]) and with_gap[2] == pytest.approx(0.02)


def test_holm_rejects_what_the_step_down_rule_rejects():
    rng = np.random.default_rng(2)
    for _ in range(50):
        p = rng.uniform(0, 0.1, 6)
        rejected, order = set(), np.argsort(p)
        for step, which in enumerate(order):
            if p[which] > 0.05 / (6 - step):
                break
            rejected.add(int(which))
        assert rejected == {at for at, value in enumerate(holm(p.tolist())) if value <= 0.05}


def test_a_table_of_methods_is_compared_with_its_reference():
    rng = np.random.default_rng(3)
    reference = rng.normal(0.8, 0.01, 5)
    scores = {"ours": reference + 0.05 + rng.normal(0, 0.005, 5), "fixed": reference, "same": reference + 0.0}
    better, same = compare_methods(scores, "fixed")
    assert better.method == "ours" and better.test.difference.mean == pytest.approx(0.05, abs=0.01)
    assert better.t_holm_p == pytest.approx(2 * better.test.t_p) and better.t_holm_p < 0.01
    assert same.method == "same" and same.t_holm_p == 1.0
    with pytest.raises(ConfigError, match="'server', expected one of ours, fixed, same"):
        compare_methods(scores, "server")


def test_the_bootstrap_agrees_with_scipys():
    rng = np.random.default_rng(4)
    a, b = rng.binomial(1, 0.8, 300), rng.binomial(1, 0.7, 300)
    got = paired_bootstrap(a.tolist(), b.tolist())
    theirs = stats.bootstrap((a - b,), np.mean, n_resamples=10_000, method="percentile", rng=1).confidence_interval
    assert got.mean == pytest.approx(np.mean(a - b)) and got.n == 300
    assert (got.low, got.high) == (pytest.approx(theirs.low, abs=0.006), pytest.approx(theirs.high, abs=0.006))
    assert paired_bootstrap(a.tolist(), b.tolist()) == got


def test_rows_of_one_recording_count_as_one():
    rng = np.random.default_rng(5)
    per_clip = rng.normal(0.1, 0.3, 40)
    a, zero, clips = np.repeat(per_clip, 9), np.zeros(360), np.repeat(np.arange(40), 9)
    blind = paired_bootstrap(a.tolist(), zero.tolist())
    fair = paired_bootstrap(a.tolist(), zero.tolist(), groups=clips.tolist())
    alone = paired_bootstrap(per_clip.tolist(), np.zeros(40).tolist())
    assert fair.n == 40 and fair.high - fair.low == pytest.approx(alone.high - alone.low, rel=0.05)
    assert fair.high - fair.low == pytest.approx(3 * (blind.high - blind.low), rel=0.1)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: mean_interval([]), "at least one"),
        (lambda: mean_interval([0.1, math.nan]), "finite"),
        (lambda: mean_interval([0.1], 95), "such as 0.95"),
        (lambda: paired_test([1, 2], [1]), "got 2 and 1 values"),
        (lambda: holm([1.5]), "0..1"),
        (lambda: paired_bootstrap([1, 2], [1, 1], groups=[0, 0]), "at least 2"),
        (lambda: paired_bootstrap([1, 2], [1, 1], groups=[0]), "one a row"),
        (lambda: paired_bootstrap([1, 2], [1, 1], resamples=0), "at least 1"),
    ],
)
def test_bad_input_is_refused(call, reason):
    with pytest.raises(ConfigError, match=reason):
        call()
