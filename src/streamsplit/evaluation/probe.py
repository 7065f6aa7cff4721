"""Linear probe: how well a linear classifier on frozen vectors tells labels apart, on data it never saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from streamsplit.errors import ConfigError, MissingExtraError

REGULARISATION = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse strengths C of the L2 penalty that are tried
INNER_FOLDS = 3


class ProbeResult(NamedTuple):
    """Accuracy on the test rows with its standard error, the regularisation chosen, and the confusion counts."""

    accuracy: float
    standard_error: float  # binomial, over independent test rows
    regularisation: float  # C
    classes: tuple[str, ...]
    confusion: np.ndarray  # [classes, classes], rows are true labels
    predictions: np.ndarray  # [test rows] of labels


def linear_probe(
    train: np.ndarray,
    train_labels: Sequence[Any],
    test: np.ndarray,
    test_labels: Sequence[Any],
    *,
    groups: Sequence[Any] | None = None,
    seed: int = 0,
) -> ProbeResult:
    """Trains on vectors train [n, d] and tests on test [m, d].

    Columns are standardised and the regularisation is chosen by cross-validation, both from training rows only. With
    `groups` (one per training row: the source recording), no group is on both sides of an inner fold. Raises
    ConfigError on NaN, mismatched sizes, or fewer than two classes.
    """
    train, train_names = _checked(train, train_labels, "train")
    test, test_names = _checked(test, test_labels, "test")
    if train.shape[1] != test.shape[1]:
        raise ConfigError(f"got training vectors of {train.shape[1]} and test vectors of {test.shape[1]} dimensions")
    classes = sorted(set(train_names.tolist()) | set(test_names.tolist()))
    _two_classes(train_names, "in the training part")
    chosen = _choose(train, train_names, _tied(groups, len(train)), seed)
    predicted = fit_classifier(train, train_names, chosen).predict(test)
    accuracy = float(np.mean(predicted == test_names))
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (np.searchsorted(classes, test_names), np.searchsorted(classes, predicted)), 1)
    error = float(np.sqrt(accuracy * (1 - accuracy) / len(test)))
    return ProbeResult(accuracy, error, chosen, tuple(classes), confusion, predicted)


def fit_probe(
    train: np.ndarray, train_labels: Sequence[Any], *, groups: Sequence[Any] | None = None, seed: int = 0
) -> Callable[[np.ndarray], list[str]]:
    """The probe itself, chosen and trained as in `linear_probe`: vectors [m, d] to labels. Raises ConfigError."""
    answer = fit_sure_probe(train, train_labels, groups=groups, seed=seed)
    return lambda vectors: answer(vectors)[0]


def fit_sure_probe(
    train: np.ndarray, train_labels: Sequence[Any], *, groups: Sequence[Any] | None = None, seed: int = 0
) -> Callable[[np.ndarray], tuple[list[str], np.ndarray]]:
    """As `fit_probe`, with each answer's probability [m]. Raises ConfigError."""
    x, names = _checked(train, train_labels, "train")
    _two_classes(names, "in the training part")
    model = fit_classifier(x, names, _choose(x, names, _tied(groups, len(x)), seed))

    def answer(vectors: np.ndarray) -> tuple[list[str], np.ndarray]:
        shares = model.predict_proba(np.asarray(vectors, np.float64))
        return [str(label) for label in model.classes_[shares.argmax(1)]], shares.max(1)

    return answer


def cross_validated_probe(
    vectors: np.ndarray,
    labels: Sequence[Any],
    *,
    groups: Sequence[Any] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> ProbeResult:
    """The probe where there is no held-out part: every row is tested once, by a classifier trained on other folds.

    Folds are stratified, and keep groups together where given. Raises ConfigError where a class is too small.
    """
    vectors, names = _checked(vectors, labels, "probe")
    _two_classes(names, "among the labels")
    tied = _tied(groups, len(vectors))
    splits = list(_splits(names, tied, folds, seed))
    predictions = np.empty(len(names), dtype=object)
    strengths = []
    for rows, held_out in splits:
        result = linear_probe(
            vectors[rows], names[rows], vectors[held_out], names[held_out],
            groups=None if tied is None else tied[rows], seed=seed,
        )  # fmt: skip
        predictions[held_out] = result.predictions
        strengths.append(result.regularisation)
    predicted = predictions.astype(str)
    classes = sorted(set(names.tolist()))
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (np.searchsorted(classes, names), np.searchsorted(classes, predicted)), 1)
    accuracy = float(np.mean(predicted == names))
    error = float(np.sqrt(accuracy * (1 - accuracy) / len(names)))
    return ProbeResult(accuracy, error, float(np.median(strengths)), tuple(classes), confusion, predicted)


def _choose(x: np.ndarray, names: np.ndarray, groups: np.ndarray | None, seed: int) -> float:
    """The C with the best inner accuracy; the strongest regularisation of those that tie."""
    smallest = min(np.unique(names, return_counts=True)[1])
    if smallest < 2 or (groups is not None and len(set(groups.tolist())) < 2):
        return 0.1  # nothing to validate on
    splits = list(_splits(names, groups, min(INNER_FOLDS, int(smallest)), seed))
    scores = []
    for strength in REGULARISATION:
        hits = sum(
            int(np.sum(fit_classifier(x[rows], names[rows], strength).predict(x[held_out]) == names[held_out]))
            for rows, held_out in splits
            if len(set(names[rows].tolist())) > 1
        )
        scores.append(hits)
    return REGULARISATION[int(np.argmax(scores))]


def _splits(names: np.ndarray, groups: np.ndarray | None, folds: int, seed: int) -> Any:
    try:
        from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
    except ImportError as error:
        raise MissingExtraError("the linear probe", "server", str(error)) from error
    smallest = int(min(np.unique(names, return_counts=True)[1]))
    if groups is not None:
        folds = min(folds, len(set(groups.tolist())))
        for name in np.unique(names):
            if len(set(groups[names == name].tolist())) < 2:
                raise ConfigError(f"got one group in class '{name}', expected every class in two groups or more")
    if smallest < folds or folds < 2:
        raise ConfigError(f"got {smallest} rows in the smallest class, expected at least {max(2, folds)}, one per fold")
    if groups is None:
        return StratifiedKFold(folds, shuffle=True, random_state=seed).split(names, names)
    return StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(names, names, groups)


def fit_classifier(x: np.ndarray, names: np.ndarray, strength: float) -> Any:
    """The probe's classifier, a fitted scikit-learn pipeline, on vectors x [n, d] with inverse penalty C = strength."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise MissingExtraError("the linear probe", "server", str(error)) from error
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000, tol=1e-3)).fit(x, names)


def _tied(groups: Sequence[Any] | None, rows: int) -> np.ndarray | None:
    tied = None if groups is None else np.asarray(list(groups))
    if tied is not None and len(tied) != rows:
        raise ConfigError(f"got {len(tied)} groups for {rows} rows, expected one a row")
    return tied


def _two_classes(names: np.ndarray, where: str) -> None:
    found = sorted(set(names.tolist()))
    if len(found) < 2:
        raise ConfigError(f"got 1 class ('{found[0]}') {where}, expected at least 2")


def _checked(vectors: np.ndarray, labels: Sequence[Any], what: str) -> tuple[np.ndarray, np.ndarray]:
    x = np.asarray(vectors, dtype=np.float64)
    names = np.array([str(label) for label in labels])
    if x.ndim != 2 or len(x) != len(names) or not len(x):
        raise ConfigError(f"got {what} vectors {x.shape} and {len(names)} labels, expected [n, d] and n >= 1 labels")
    if not np.isfinite(x).all():
        raise ConfigError(f"got NaN or infinity in the {what} vectors, expected finite numbers")
    return x, names
