"""Half-whitened principal directions: the starting projection, and the baseline that learning must beat (numpy)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from streamsplit.errors import EncoderError

MAX_FIT_ROWS = 1024  # rows used for a fit; keeps it to about a second
RANK_TOLERANCE = 1e-3  # singular values below this share of the largest count as zero


class HalfWhitenedPca(NamedTuple):
    """An affine map from features [n, g] to [n, d]: principal directions, each divided by the square root of its
    singular value, then turned at random so that no single component carries more than another."""

    matrix: np.ndarray  # [d, g] float32
    mean: np.ndarray  # [g] float32
    explained: float  # share of the fit rows' variance in the kept directions
    rank: int  # directions kept, at most d

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """[n, g] to [n, d] float32; over the fit rows mean 0 and component variance 1 on average."""
        projected: np.ndarray = (np.asarray(features, np.float32) - self.mean) @ self.matrix.T
        return projected


def fit_pca(features: np.ndarray, dim: int = 128, seed: int = 0, max_rows: int = MAX_FIT_ROWS) -> HalfWhitenedPca:
    """Fits on rows of features [n, g] (a seeded sample of at most `max_rows`); raises EncoderError on fewer than two
    distinct rows or non-finite values.

    Works on the smaller of the two Gram matrices. With fewer than `dim` directions the result has that lower rank.
    """
    features = np.asarray(features, np.float32)
    if features.ndim != 2 or len(features) < 2:
        raise EncoderError(f"got features of shape {features.shape}, expected at least 2 rows to find directions")
    if not np.isfinite(features).all():
        raise EncoderError("got NaN or infinite features, expected finite ones")
    rng = np.random.default_rng(seed)
    if len(features) > max_rows:
        features = features[np.sort(rng.choice(len(features), max_rows, replace=False))]
    mean = features.mean(0, dtype=np.float64).astype(np.float32)
    centred = features - mean
    values, directions = _principal_directions(centred)  # [r] descending, [r, g]
    if not len(values):
        raise EncoderError("got identical rows, expected at least 2 distinct ones to find directions")
    kept = min(dim, len(values))
    explained = float((values[:kept] ** 2).sum() / np.square(centred, dtype=np.float64).sum())
    whitened = directions[:kept] / np.sqrt(values[:kept, None])
    power = values[:kept].sum() / (len(centred) * dim)  # mean square of a component after half-whitening
    rotation, triangle = np.linalg.qr(rng.standard_normal((dim, dim)))
    rotation *= np.sign(np.diag(triangle))
    matrix = rotation[:, :kept] @ whitened / np.sqrt(power)
    return HalfWhitenedPca(matrix.astype(np.float32), mean, explained, kept)


def _principal_directions(centred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Singular values, largest first and without those that are zero, and their right vectors as rows."""
    rows, columns = centred.shape
    small = centred @ centred.T if rows < columns else centred.T @ centred
    squares, vectors = np.linalg.eigh(small.astype(np.float64))
    values = np.sqrt(np.clip(squares[::-1], 0, None))
    vectors = vectors[:, ::-1].T
    kept = values > RANK_TOLERANCE * max(values[0], np.finfo(np.float32).tiny)
    values, vectors = values[kept], vectors[kept]
    if rows < columns:  # left to right vectors: A^T u = s v
        vectors = (vectors @ centred.astype(np.float64)) / values[:, None]
    return values, vectors
