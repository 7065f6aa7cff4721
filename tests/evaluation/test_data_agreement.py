"""Majority and agreement of annotators, against published tables."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplit.errors import ConfigError
from streamsplit.evaluation.data.agreement import count_votes, fleiss_kappa, majority

WIKIPEDIA = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


def test_kappa_of_the_worked_example_of_fourteen_raters_is_as_published():
    assert fleiss_kappa(np.array(WIKIPEDIA)) == pytest.approx(0.210, abs=5e-4)


def test_kappa_equals_pairwise_counting():
    """Slow oracle: the share of agreeing pairs of votes on an item, less that of pairs drawn from all votes."""
    rng = np.random.default_rng(1)
    votes = rng.integers(4, size=(30, 3))
    pairs = [row[i] == row[j] for row in votes for i in range(3) for j in range(3) if i != j]
    flat = votes.ravel()
    chance = np.mean([a == b for a in flat for b in flat])
    counts = count_votes([[f"c{vote}" for vote in row] for row in votes])
    assert fleiss_kappa(counts) == pytest.approx((np.mean(pairs) - chance) / (1 - chance))


def test_full_agreement_is_one_and_one_category_only_is_undefined():
    assert fleiss_kappa(np.array([[3, 0], [0, 3], [3, 0]])) == 1.0
    assert np.isnan(fleiss_kappa(np.array([[3, 0], [3, 0]])))


def test_unequal_numbers_of_votes_are_refused():
    with pytest.raises(ConfigError, match="2 to 3 votes"):
        fleiss_kappa(np.array([[3, 0], [1, 1]]))


@pytest.mark.parametrize(
    ("votes", "label"),
    [
        (("a", "a", "b"), "a"), (("a", "a", "a"), "a"), (("a", "b", "c"), None), (("a", "a", ""), "a"),
        (("a", "", ""), None), (("", "", ""), None), (("a", "b"), None), (("a",), "a"), (("a", "b", "a", "b"), None),
    ],
)  # fmt: skip
def test_a_majority_is_more_than_half_of_the_annotators(votes, label):
    assert majority(votes) == label
