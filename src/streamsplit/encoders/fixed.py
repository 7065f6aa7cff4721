"""Fixed statistics of log-mel windows (numpy): the baselines in every table; only what beats them was learned."""

from __future__ import annotations

import numpy as np

from streamsplit.errors import EncoderError

STATISTIC_BANDS = 64


def mean_and_deviation(features: np.ndarray) -> np.ndarray:
    """Mean and standard deviation over time of log-mel [f, t] or [n, f, t]: [2 f] (256 at full rate) or [n, 2 f]."""
    x = _checked(features)
    return np.concatenate([x.mean(-1), x.std(-1)], axis=-1)


def five_statistics(features: np.ndarray) -> np.ndarray:
    """Mean, deviation, maximum, minimum and RMS frame-to-frame change of 64 bands: [320] or [n, 320].

    128 bands are joined to 64 by pairwise means first; 64 are taken as they are.
    """
    x = _checked(features)
    if x.shape[-2] not in (STATISTIC_BANDS, 2 * STATISTIC_BANDS):
        raise EncoderError(f"got {x.shape[-2]} bands, expected {STATISTIC_BANDS} or {2 * STATISTIC_BANDS}")
    if x.shape[-2] != STATISTIC_BANDS:
        x = x.reshape(*x.shape[:-2], STATISTIC_BANDS, 2, x.shape[-1]).mean(-2)
    change = np.sqrt(np.square(np.diff(x, axis=-1)).mean(-1))
    return np.concatenate([x.mean(-1), x.std(-1), x.max(-1), x.min(-1), change], axis=-1)


def _checked(features: np.ndarray) -> np.ndarray:
    x = np.asarray(features, np.float32)
    if x.ndim not in (2, 3) or x.shape[-1] < 2:
        raise EncoderError(f"got features of shape {x.shape}, expected [f, t] or [n, f, t] with at least 2 frames")
    return x
