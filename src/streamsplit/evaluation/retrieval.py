"""Quality of an embedding without training a classifier: Precision@k by cosine, silhouette, effective rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from streamsplit.errors import ConfigError, MissingExtraError

_ROWS_AT_ONCE = 1024
_NO_ANSWER = "got no row with an answer outside its own group, expected at least two groups"


def precision_at_k(
    vectors: np.ndarray, labels: Sequence[Any], k: int = 10, *, groups: Sequence[Any] | None = None
) -> float:
    """Mean share of same-label rows among each row's k nearest others by cosine.

    With `groups`, rows of the query's own group (other windows of the same recording) are no answers. Queries with
    fewer than k possible answers are judged on those there are; raises ConfigError where no query has any.
    """
    unit, names = _unit(vectors, labels)
    tied = _groups(groups, len(unit))
    _check_k(k)
    shares: list[float] = []
    for start in range(0, len(unit), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        similarity = unit[rows] @ unit.T
        similarity[tied[rows, None] == tied[None, :]] = -np.inf
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        allowed = np.isfinite(np.take_along_axis(similarity, order, axis=1))
        hits = (names[order] == names[rows, None]) & allowed
        counted = allowed.sum(axis=1)
        shares += (hits.sum(axis=1)[counted > 0] / counted[counted > 0]).tolist()
    if not shares:
        raise ConfigError(_NO_ANSWER)
    return float(np.mean(shares))


def possible_precision(labels: Sequence[Any], k: int = 10, *, groups: Sequence[Any] | None = None) -> float:
    """Precision@k of a search that makes no mistake: a row with n < k possible right answers comes to n / k at most.

    Rows, groups and the queries that count are those of `precision_at_k`, whose ceiling this is. Raises ConfigError
    where no row has an answer.
    """
    names = np.array([str(label) for label in labels])
    tied = _groups(groups, len(names))
    _check_k(k)
    answers = tied[:, None] != tied[None, :]
    right = (answers & (names[:, None] == names[None, :])).sum(axis=1)
    places = np.minimum(answers.sum(axis=1), k)
    if not places.any():
        raise ConfigError(_NO_ANSWER)
    return float(np.mean(np.minimum(right, places)[places > 0] / places[places > 0]))


def silhouette(vectors: np.ndarray, labels: Sequence[Any], *, most: int = 5000, seed: int = 0) -> float:
    """Mean silhouette of the labels by cosine distance, in [-1, 1]; over `most` rows drawn at random if there are more.

    Raises ConfigError unless there are at least two classes and fewer classes than rows.
    """
    try:
        from sklearn.metrics import silhouette_score
    except ImportError as error:
        raise MissingExtraError("the silhouette", "server", str(error)) from error
    unit, names = _unit(vectors, labels)
    if len(unit) > most:
        rows = np.random.default_rng(seed).choice(len(unit), size=most, replace=False)
        unit, names = unit[rows], names[rows]
    classes = len(set(names.tolist()))
    if not 2 <= classes < len(unit):
        raise ConfigError(f"got {classes} classes in {len(unit)} rows, expected at least 2 and fewer than rows")
    return float(silhouette_score(unit, names, metric="cosine"))


def unit_rows(vectors: Any) -> np.ndarray:
    """Rows of norm 1 (a row of zeros stays zero) of vectors [n, d], n >= 2; raises ConfigError on others and on NaN."""
    x = np.asarray(vectors, dtype=np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ConfigError(f"got vectors {x.shape}, expected [n, d] with n >= 2")
    if not np.isfinite(x).all():
        raise ConfigError("got NaN or infinity in the vectors, expected finite numbers")
    unit: np.ndarray = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return unit


def _unit(vectors: np.ndarray, labels: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    unit, names = unit_rows(vectors), np.array([str(label) for label in labels])
    if len(unit) != len(names):
        raise ConfigError(f"got {len(names)} labels for {len(unit)} rows, expected one a row")
    return unit, names


def _groups(groups: Sequence[Any] | None, rows: int) -> np.ndarray:
    """A number for each row's group [rows]; without groups, every row is its own."""
    tied: np.ndarray = np.arange(rows)
    if groups is not None:
        tied = np.unique(np.asarray(list(groups)), return_inverse=True)[1]
    if len(tied) != rows:
        raise ConfigError(f"got {len(tied)} groups for {rows} rows, expected one a row")
    return tied


def _check_k(k: int) -> None:
    if k < 1:
        raise ConfigError(f"got k = {k}, expected at least 1")
