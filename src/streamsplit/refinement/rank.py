"""Effective rank of a set of embeddings: how many dimensions it really uses."""

from __future__ import annotations

import numpy as np


def effective_rank(z: np.ndarray) -> float:
    """exp(entropy of the normalised singular values) of the centred rows z [n, d] (Roy and Vetterli 2007).

    1 for points on a line, at most min(n - 1, d); 0 for fewer than two rows or identical rows.
    """
    z = np.asarray(z, dtype=np.float64)
    if z.ndim != 2 or len(z) < 2:
        return 0.0
    singular = np.linalg.svd(z - z.mean(axis=0), compute_uv=False)
    total = float(singular.sum())
    if not np.isfinite(total) or total <= 1e-9 * max(1.0, float(np.abs(z).max())):
        return 0.0
    share = singular / total
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))
