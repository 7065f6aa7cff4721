"""Whole clips dealt out to rows as wished: counts near the wanted mixes that use every clip exactly once."""

from __future__ import annotations

import numpy as np

_FLOOR = 1e-9  # of a wished share: a class that nobody wants must still go somewhere
_ROUNDS = 200


def allocate(mixes: np.ndarray, sizes: np.ndarray, supply: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Counts [rows, classes] with the sums `sizes` by row and `supply` by class, near sizes * mixes [rows, classes].

    The wish is scaled to both sums (iterative proportional fitting: the nearest by Kullback-Leibler divergence), then
    rounded at random without changing them. `sizes` and `supply` have equal totals.
    """
    wish = np.maximum(mixes, _FLOOR) * sizes[:, None]
    for _ in range(_ROUNDS):
        wish *= supply / np.maximum(wish.sum(axis=0), _FLOOR)
        wish *= (sizes / np.maximum(wish.sum(axis=1), _FLOOR))[:, None]
    counts = np.floor(wish + _FLOOR).astype(np.int64)
    fraction = np.clip(wish - counts, _FLOOR, None)
    _trim(counts, supply, fraction)
    _trim(counts.T, sizes, fraction.T)
    wanted, missing = sizes - counts.sum(axis=1), supply - counts.sum(axis=0)
    urgency = rng.exponential(size=wish.shape) / fraction  # sampling in proportion to the fractions
    for cell in np.argsort(urgency, axis=None):
        row, column = divmod(int(cell), wish.shape[1])
        _give(counts, wanted, missing, row, column, 1)
    for row in np.flatnonzero(wanted).tolist():
        for column in np.flatnonzero(missing).tolist():
            _give(counts, wanted, missing, row, column, int(wanted[row]))
    dealt: np.ndarray = counts
    return dealt


def _trim(counts: np.ndarray, limit: np.ndarray, fraction: np.ndarray) -> None:
    """Takes from columns that hold more than their limit, first where the fraction is smallest."""
    for column in np.flatnonzero(counts.sum(axis=0) > limit):
        for row in np.argsort(fraction[:, column]):
            excess = int(counts[:, column].sum() - limit[column])
            counts[row, column] -= min(excess, int(counts[row, column]))


def _give(counts: np.ndarray, wanted: np.ndarray, missing: np.ndarray, row: int, column: int, most: int) -> None:
    given = min(most, int(wanted[row]), int(missing[column]))
    counts[row, column] += given
    wanted[row] -= given
    missing[column] -= given
