"""The running effective rank, against its definition and known cases."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplit.learning.rank import RunningRank, effective_rank


def definition(z: np.ndarray) -> float:
    singular = np.linalg.svd(z - z.mean(0), compute_uv=False)
    share = singular / singular.sum()
    return float(np.exp(-(share * np.log(np.maximum(share, 1e-300))).sum()))


def test_it_is_the_definition_as_long_as_the_window_holds_all() -> None:
    z = (np.random.default_rng(0).standard_normal((192, 12)) * np.linspace(0.1, 1, 12)).astype(np.float32)
    rank = RunningRank(12, window=256)
    for row in z:
        rank.observe(row)
    assert rank.value == pytest.approx(definition(z.astype(np.float64)), rel=1e-4)


@pytest.mark.parametrize(("directions", "low", "high"), [(0, 0, 0), (1, 1, 1.01), (4, 3.8, 4.01), (16, 15, 16)])
def test_it_counts_the_directions_in_use(directions: int, low: float, high: float) -> None:
    rng = np.random.default_rng(0)
    rank = RunningRank(16)
    basis = np.linalg.qr(rng.standard_normal((16, 16)))[0]
    for _ in range(800):
        rank.observe((1 + rng.standard_normal(directions) @ basis[:directions]).astype(np.float32) * np.ones(16, "f4"))
    assert low <= rank.value <= high


def test_it_notices_a_collapse_and_forgets_on_demand() -> None:
    rng = np.random.default_rng(0)
    rank = RunningRank(16, window=64)
    for _ in range(200):
        rank.observe(rng.standard_normal(16).astype(np.float32))
    healthy = rank.value
    direction = rng.standard_normal(16)
    for _ in range(640):
        rank.observe((rng.standard_normal() * direction).astype(np.float32))
    assert rank.value < 0.3 * healthy
    copy = RunningRank(16, window=64)
    copy.load_state(rank.state())
    assert copy.value == rank.value
    rank.clear()
    assert rank.value == 0


def test_orthogonal_rows_count_in_full() -> None:
    assert effective_rank(np.vstack([np.eye(6), -np.eye(6)])) == pytest.approx(6.0)


def test_a_point_and_its_opposite_have_rank_one_and_nothing_has_none() -> None:
    assert effective_rank(np.ones((9, 5))) == pytest.approx(1.0)
    assert effective_rank(np.outer([1, -1, 1], np.ones(5))) == pytest.approx(1.0)
    assert effective_rank(np.zeros((9, 5))) == effective_rank(np.empty((0, 5))) == 0.0


def test_a_collapse_to_a_point_with_a_little_noise_is_seen() -> None:
    z = np.eye(1, 64) + np.random.default_rng(0).normal(0, 1e-3, (200, 64))
    assert effective_rank(z) < 3.0


def test_adding_weak_dimensions_adds_little() -> None:
    x = np.random.default_rng(0).normal(size=(500, 8)) * [1, 1, 1, 1, 0.01, 0.01, 0.01, 0.01]
    assert 4.0 < effective_rank(x) < 4.6
