"""Fixed statistics of log-mel windows (numpy): the baselines in every table; only what beats them was learned."""

from __future__ import annotations

import numpy as np

from streamsplit.errors import EncoderError

STATISTIC_BANDS = 64
SEGMENTS = 6  # of a window's course in time; see `course`
COURSE_BANDS = 32
FIXED_WEIGHTS = (2.0, 1.5)  # norms of the five statistics and of the course in `fixed_vector`
QUIETEST = 1e-3  # level of a window's quietest frame, in nepers: a silent window is divided evenly
_SMALLEST = 1e-5  # keeps flat windows from dividing by zero


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


def course(features: np.ndarray) -> np.ndarray:
    """The window's course of log-mel [f, t] or [n, f, t]: mean spectra of 32 bands in 6 segments, [192] or [n, 192].

    Segments hold equal shares of the window's sound, not of its time: a frame counts by its level (half the log of its
    power) above the quietest frame, with triangular weight around the segment's middle. See encoders/readout.py.
    """
    x = _checked(features)
    if x.shape[-2] % COURSE_BANDS:
        raise EncoderError(f"got {x.shape[-2]} bands, expected a multiple of {COURSE_BANDS}")
    top = x.max(-2, keepdims=True)
    level = 0.5 * (np.log(np.exp(x - top).sum(-2)) + top[..., 0, :])  # [.., t]
    level = level - level.min(-1, keepdims=True) + QUIETEST
    place = (np.cumsum(level, -1) - 0.5 * level) / level.sum(-1, keepdims=True)
    middle = (np.arange(SEGMENTS) + 0.5) / SEGMENTS
    near = np.maximum(0.0, 1.0 - np.abs(place[..., None, :] - middle[:, None]) * SEGMENTS)
    weight = near * level[..., None, :]  # [.., q, t]
    weight /= weight.sum(-1, keepdims=True) + _SMALLEST
    joined = x.reshape(*x.shape[:-2], COURSE_BANDS, -1, x.shape[-1]).mean(-2)
    segments = np.einsum("...qt,...ft->...qf", weight, joined)
    return segments.reshape(*x.shape[:-2], -1).astype(np.float32)


def fixed_vector(features: np.ndarray) -> np.ndarray:
    """Five statistics and course of log-mel [f, t] or [n, f, t] side by side, [512] or [n, 512].

    Each of the two is centred and scaled to its norm in FIXED_WEIGHTS, so that loudness takes no part.
    """
    parts = (five_statistics(features), course(features))
    return np.concatenate(
        [scaled_to_norm(part, norm) for part, norm in zip(parts, FIXED_WEIGHTS, strict=True)], axis=-1
    )


def scaled_to_norm(group: np.ndarray, norm: float) -> np.ndarray:
    """Each row of a group [.., g] centred and scaled to the norm, float32."""
    centred = group - group.mean(-1, keepdims=True)
    deviation = np.maximum(np.sqrt(np.square(centred).mean(-1, keepdims=True)), _SMALLEST)
    scaled: np.ndarray = (centred / deviation * (norm / np.sqrt(group.shape[-1]))).astype(np.float32)
    return scaled


def _checked(features: np.ndarray) -> np.ndarray:
    x = np.asarray(features, np.float32)
    if x.ndim not in (2, 3) or x.shape[-1] < 2:
        raise EncoderError(f"got features of shape {x.shape}, expected [f, t] or [n, f, t] with at least 2 frames")
    return x
