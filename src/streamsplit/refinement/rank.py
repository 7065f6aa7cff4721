"""Effective rank of a set of embeddings: how many dimensions it really uses."""

from __future__ import annotations

import numpy as np


def effective_rank(z: np.ndarray) -> float:
    """exp(entropy of the normalised singular values) of the rows z [n, d], not centred (Roy and Vetterli 2007).

    For unit-norm embeddings: 1 when all are one point (or its opposite), at most min(n, d). Without centring, a
    collapse to a point counts even when what is left around it is noise in every direction. 0 for no rows.
    """
    z = np.asarray(z, dtype=np.float64)
    if z.ndim != 2 or not len(z):
        return 0.0
    singular = np.linalg.svd(z, compute_uv=False)
    total = float(singular.sum())
    if not np.isfinite(total) or total <= 0.0:
        return 0.0
    share = singular / total
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))
