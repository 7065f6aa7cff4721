"""What several annotators say together: the majority's label, and how far they agree beyond chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from streamsplit.errors import ConfigError


def majority(votes: Sequence[str]) -> str | None:
    """The label that more than half of the annotators gave; "" is no vote but counts as an annotator."""
    counts = Counter(vote for vote in votes if vote)
    label, count = counts.most_common(1)[0] if counts else ("", 0)
    return label if 2 * count > len(votes) else None


def fleiss_kappa(counts: np.ndarray) -> float:
    """Agreement beyond chance, from counts [items, categories] of votes: 1 = all agree, 0 = as by chance.

    Fleiss 1971. NaN where every vote is for one category, for which chance is not defined. Raises ConfigError unless
    all items have the same number of votes, at least two.
    """
    counts = np.asarray(counts, np.float64)
    if counts.ndim != 2 or not len(counts):
        raise ConfigError(f"got counts of shape {counts.shape}, expected [items, categories]")
    votes = counts.sum(axis=1)
    if votes[0] < 2 or not np.all(votes == votes[0]):
        raise ConfigError(f"got {votes.min():g} to {votes.max():g} votes an item, expected one number, at least 2")
    observed = np.mean((np.sum(counts**2, axis=1) - votes) / (votes * (votes - 1)))
    by_chance = np.sum((counts.sum(axis=0) / counts.sum()) ** 2)
    return float((observed - by_chance) / (1 - by_chance)) if by_chance < 1 else float("nan")


def count_votes(rows: Sequence[Sequence[str]]) -> np.ndarray:
    """Counts [items, categories] of the rows in which every annotator voted; categories in alphabetical order."""
    full = [row for row in rows if all(row)]
    categories = sorted({vote for row in full for vote in row})
    return np.array([[row.count(name) for name in categories] for row in map(list, full)], dtype=np.int64)
