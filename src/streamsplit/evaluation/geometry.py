"""How embeddings lie on the unit sphere: alignment of positives and uniformity of all (Wang and Isola 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from streamsplit.errors import ConfigError
from streamsplit.evaluation.retrieval import unit_rows

_ROWS_AT_ONCE = 1024


def alignment(vectors: np.ndarray, positives: Sequence[Any]) -> float:
    """Mean squared distance between unit-norm rows that share their entry in `positives`, in [0, 4]; 0 is best.

    Over all pairs of different rows; every pair counts the same. Raises ConfigError where no two rows share one.
    """
    unit, names = unit_rows(vectors), np.array([str(name) for name in positives])
    if len(names) != len(unit):
        raise ConfigError(f"got {len(names)} positives for {len(unit)} rows, expected one a row")
    index = np.unique(names, return_inverse=True)[1]
    sizes = np.bincount(index)
    pairs = float((sizes * (sizes - 1)).sum()) / 2
    if not pairs:
        raise ConfigError("got no two rows that are positives of each other, expected a group or label of at least two")
    sums = np.zeros((len(sizes), unit.shape[1]))
    np.add.at(sums, index, unit)
    # The squared distances of all pairs of m rows add up to m sum ||z||^2 - ||sum z||^2.
    within = float((sizes[index] * (unit**2).sum(axis=1)).sum()) - float((sums**2).sum())
    return max(0.0, within / pairs)


def uniformity(vectors: np.ndarray, *, sharpness: float = 2.0, most: int = 5000, seed: int = 0) -> float:
    """log of the mean of exp(-sharpness ||z_i - z_j||^2) over different unit-norm rows, in [-4 sharpness, 0].

    Lower is more uniform; 0 is one point. Over `most` rows drawn at random if there are more. Raises ConfigError.
    """
    unit = unit_rows(vectors)
    if len(unit) > most:
        unit = unit[np.random.default_rng(seed).choice(len(unit), size=most, replace=False)]
    norm2 = (unit**2).sum(axis=1)
    total = -float(len(unit))  # every row with itself, which does not count
    for start in range(0, len(unit), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        distance2 = np.maximum(norm2[rows, None] + norm2[None, :] - 2 * unit[rows] @ unit.T, 0.0)
        distance2[np.arange(len(distance2)), np.arange(start, start + len(distance2))] = 0.0
        total += float(np.exp(-sharpness * distance2).sum())
    return float(np.log(total / (len(unit) * (len(unit) - 1))))
