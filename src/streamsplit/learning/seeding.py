"""Clusters to start a mixture from: k-means with a spread start."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
_ROUNDS = 5


def k_means(points: Array, count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """The cluster [n] of each point [n, d] among `count`, after a k-means++ start and a few rounds."""
    centres = _spread_centres(points, count, rng)
    for _ in range(_ROUNDS):
        owner = squared_distances(points, centres).argmin(1)
        for c in range(count):
            if (owner == c).any():
                centres[c] = points[owner == c].mean(0)
    nearest: NDArray[np.intp] = squared_distances(points, centres).argmin(1)
    return nearest


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances [n, m] of a [n, d] to b [m, d]."""
    cross = a @ b.T
    distances: np.ndarray = np.maximum((a * a).sum(1)[:, None] - 2.0 * cross + (b * b).sum(1)[None], 0.0)
    return distances


def _spread_centres(points: Array, count: int, rng: np.random.Generator) -> Array:
    """k-means++: centres far apart, each drawn with probability ~ squared distance to those chosen."""
    chosen = [int(rng.integers(len(points)))]
    nearest = squared_distances(points, points[chosen])[:, 0].astype(np.float64)
    while len(chosen) < count:
        total = nearest.sum()
        pick = int(rng.choice(len(points), p=nearest / total)) if total > 0 else int(rng.integers(len(points)))
        chosen.append(pick)
        nearest = np.minimum(nearest, squared_distances(points, points[pick : pick + 1])[:, 0])
    return points[chosen].copy()
