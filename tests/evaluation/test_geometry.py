import itertools

import numpy as np
import pytest

from streamsplit.errors import ConfigError
from streamsplit.evaluation.geometry import alignment, uniformity


def vectors(n=40, d=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)) * 3


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_alignment_is_the_mean_over_all_pairs_of_positives():
    x, groups = vectors(), np.random.default_rng(1).integers(7, size=40)
    z = unit(x)
    pairs = [(i, j) for i, j in itertools.combinations(range(40), 2) if groups[i] == groups[j]]
    slow = np.mean([np.sum((z[i] - z[j]) ** 2) for i, j in pairs])
    assert alignment(x, groups) == pytest.approx(slow, rel=1e-12)


def test_uniformity_is_the_log_mean_over_all_pairs(monkeypatch):
    x = vectors()
    z = unit(x)
    slow = np.log(np.mean([np.exp(-2 * np.sum((a - b) ** 2)) for a, b in itertools.combinations(z, 2)]))
    assert uniformity(x) == pytest.approx(slow, rel=1e-12)
    monkeypatch.setattr("streamsplit.evaluation.geometry._ROWS_AT_ONCE", 7)
    assert uniformity(x) == pytest.approx(slow, rel=1e-12)


def test_known_answers():
    assert alignment(np.tile([[1.0, 2.0]], (4, 1)), [0, 0, 1, 1]) == pytest.approx(0.0, abs=1e-12)
    assert alignment([[1.0, 0.0], [-1.0, 0.0]], ["a", "a"]) == pytest.approx(4.0)
    assert uniformity(np.ones((5, 3))) == pytest.approx(0.0, abs=1e-12)
    assert uniformity([[1.0, 0.0], [-3.0, 0.0]]) == pytest.approx(-8.0)


def test_a_sample_of_many_rows_is_close_to_all_of_them():
    x = vectors(3000)
    assert uniformity(x, most=1500) == pytest.approx(uniformity(x), abs=0.02)


def test_a_collapsed_embedding_is_aligned_and_not_uniform():
    wide, narrow = vectors(200), 1.0 + 0.01 * vectors(200)
    groups = np.arange(200) // 2
    assert alignment(narrow, groups) < 0.01 < alignment(wide, groups)
    assert uniformity(wide) < -1.5 < -0.1 < uniformity(narrow) <= 0


@pytest.mark.parametrize(
    ("x", "reason"),
    [(np.full((4, 2), np.nan), "NaN"), (np.zeros((1, 2)), "n >= 2"), (np.zeros(4), "n >= 2")],
)
def test_bad_vectors_are_refused(x, reason):
    with pytest.raises(ConfigError, match=reason):
        uniformity(x)
    with pytest.raises(ConfigError, match=reason):
        alignment(x, [0] * len(x))


def test_positives_must_be_one_a_row_and_pair_up():
    with pytest.raises(ConfigError, match="one a row"):
        alignment(np.eye(3), [0, 0])
    with pytest.raises(ConfigError, match="at least two"):
        alignment(np.eye(3), [0, 1, 2])
