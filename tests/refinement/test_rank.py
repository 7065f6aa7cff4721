import numpy as np
import pytest

from streamsplit.refinement.rank import effective_rank


def test_orthogonal_rows_count_in_full():
    assert effective_rank(np.vstack([np.eye(6), -np.eye(6)])) == pytest.approx(6.0)


def test_a_point_and_its_opposite_have_rank_one_and_nothing_has_none():
    assert effective_rank(np.ones((9, 5))) == pytest.approx(1.0)
    assert effective_rank(np.outer([1, -1, 1], np.ones(5))) == pytest.approx(1.0)
    assert effective_rank(np.zeros((9, 5))) == effective_rank(np.empty((0, 5))) == 0.0


def test_a_collapse_to_a_point_with_a_little_noise_is_seen():
    z = np.eye(1, 64) + np.random.default_rng(0).normal(0, 1e-3, (200, 64))
    assert effective_rank(z) < 3.0


def test_adding_weak_dimensions_adds_little():
    x = np.random.default_rng(0).normal(size=(500, 8)) * [1, 1, 1, 1, 0.01, 0.01, 0.01, 0.01]
    assert 4.0 < effective_rank(x) < 4.6
