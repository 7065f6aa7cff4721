import numpy as np
import pytest

from streamsplit.refinement.rank import effective_rank


def test_equal_singular_values_count_in_full():
    assert effective_rank(np.vstack([np.eye(6), -np.eye(6)])) == pytest.approx(6.0)


def test_points_on_a_line_have_rank_one_and_a_point_zero():
    assert effective_rank(np.outer(np.arange(9), np.ones(5))) == pytest.approx(1.0)
    assert effective_rank(np.ones((9, 5))) == 0.0
    assert effective_rank(np.ones((1, 5))) == 0.0


def test_adding_weak_dimensions_adds_little():
    x = np.random.default_rng(0).normal(size=(500, 8)) * [1, 1, 1, 1, 0.01, 0.01, 0.01, 0.01]
    assert 4.0 < effective_rank(x) < 4.6
