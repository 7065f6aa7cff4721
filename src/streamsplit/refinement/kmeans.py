"""k-means over weighted points: well-spread starting centres, and Lloyd's rounds."""

from __future__ import annotations

import math

import numpy as np

from streamsplit.learning.seeding import squared_distances


def spread_centres(x: np.ndarray, weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the points x [n, d] as starting centres: greedy k-means++ (the best of a few draws each time).

    With fewer distinct points than `count`, some centres come double.
    """
    centres = x[[int(rng.choice(len(x), p=weights / weights.sum()))]]
    nearest = squared_distances(x, centres)[:, 0]
    trials = 2 + int(math.log(count))
    while len(centres) < count:
        score = weights * nearest
        law = score / score.sum() if score.sum() > 0 else weights / weights.sum()
        drawn = rng.choice(len(x), size=trials, p=law)
        remaining = np.minimum(nearest[None], squared_distances(x[drawn], x))
        best = int((remaining @ weights).argmin())
        nearest = remaining[best]
        centres = np.concatenate([centres, x[drawn[best]][None]])
    return centres


def weighted_k_means(
    x: np.ndarray, weights: np.ndarray, count: int, rng: np.random.Generator, rounds: int = 20
) -> tuple[np.ndarray, np.ndarray]:
    """Centres [count, d] and the centre of each point [n] of x [n, d]; ends early once nothing moves."""
    centres = spread_centres(x, weights, count, rng)
    group = squared_distances(x, centres).argmin(axis=1)
    for _ in range(rounds):
        member = np.zeros((count, len(x)))
        member[group, np.arange(len(x))] = weights
        mass = member.sum(axis=1)
        filled = mass > 0
        centres[filled] = (member @ x)[filled] / mass[filled, None]
        moved = squared_distances(x, centres).argmin(axis=1)
        if np.array_equal(moved, group):
            break
        group = moved
    return centres, group
