"""Reduces a diagonal Gaussian mixture to fewer components, keeping its mean and variance (Runnalls 2007)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def reduce_components(
    weights: Floats, means: Floats, variances: Floats, counts: Floats, components: int
) -> tuple[Floats, Floats, Floats, Floats]:
    """Joins the pair with the least divergence until `components` are left: (weights [n], means [n, d], variances
    [n, d], counts [n]), n <= components. `counts` is evidence and adds up."""
    pi, mu, var, evidence = weights.copy(), means.copy(), variances.copy(), counts.copy()
    n = len(pi)
    cost = np.full((n, n), np.inf)
    for i in range(n - 1):
        cost[i, i + 1 :] = _join_cost(pi[i], mu[i], var[i], pi[i + 1 :], mu[i + 1 :], var[i + 1 :])
    alive = np.ones(n, bool)
    for _ in range(n - components):
        i, j = divmod(int(cost.argmin()), n)
        total = pi[i] + pi[j]
        share = pi[j] / total
        gap = mu[j] - mu[i]
        var[i] = (1.0 - share) * var[i] + share * var[j] + share * (1.0 - share) * gap * gap
        mu[i] += share * gap
        pi[i], evidence[i] = total, evidence[i] + evidence[j]
        alive[j] = False
        cost[j, :] = cost[:, j] = np.inf
        others = np.flatnonzero(alive & (np.arange(n) != i))
        fresh = _join_cost(pi[i], mu[i], var[i], pi[others], mu[others], var[others])
        cost[np.minimum(i, others), np.maximum(i, others)] = fresh
    return pi[alive], mu[alive], var[alive], evidence[alive]


def _join_cost(w: float, mu: Floats, var: Floats, ws: Floats, mus: Floats, vars_: Floats) -> Floats:
    """Upper bound on the divergence that joining one component with each of many costs [m]."""
    share = (ws / (w + ws))[:, None]
    joined = (1.0 - share) * var + share * vars_ + share * (1.0 - share) * (mus - mu) ** 2
    return 0.5 * ((w + ws) * np.log(joined).sum(1) - w * np.log(var).sum() - ws * np.log(vars_).sum(1))
