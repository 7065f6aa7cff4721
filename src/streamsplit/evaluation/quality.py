"""The quality figures of an embedding, in the seed's terms: one dict of named figures with unit and method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from streamsplit.errors import ConfigError, MissingExtraError
from streamsplit.evaluation.geometry import alignment, uniformity
from streamsplit.evaluation.probe import cross_validated_probe
from streamsplit.evaluation.retrieval import precision_at_k, silhouette, unit_rows
from streamsplit.learning.rank import effective_rank

MAX_PICTURE_ROWS = 2000


class MetricResult(NamedTuple):
    """One figure: its value (a number, or an array for the picture), its unit, and how it was measured."""

    name: str
    value: Any
    unit: str
    method: str
    standard_error: float = math.nan


def evaluate_embeddings(
    embeddings: Any,
    labels: Sequence[Any],
    device: str = "cpu",
    include_visualization: bool = True,
    *,
    groups: Sequence[Any] | None = None,
    seed: int = 0,
) -> dict[str, MetricResult]:
    """Quality of embeddings [n, d] (array or tensor) with one label each.

    Keys: 'classification_accuracy' (linear probe, 5-fold), 'precision_at_10' (cosine), 'embedding_separability'
    (silhouette), 'effective_rank', 'alignment' and 'uniformity' (Wang and Isola), 'confusion_matrix' (the probe's, rows
    are true labels, in the order of 'confusion_classes'), and with `include_visualization` 'visualization', a
    t-SNE [n, 2] (at most 2000 rows, whose numbers are in 'visualization_rows'). Rows of one group (windows of one
    recording) never help each other; they are the positives of the alignment, rows of one label where there are no
    groups. `device` is where a tensor may live; figures are computed on the CPU. Raises ConfigError on bad input.
    """
    check_device(device)
    x = _as_array(embeddings)
    names = [str(label) for label in _as_array(labels).tolist()]
    probe = cross_validated_probe(x, names, groups=groups, seed=seed)
    tied, positives = names if groups is None else list(groups), "label" if groups is None else "group"
    if len(set(tied)) == len(tied):
        tied, positives = names, "label"  # a group for every row: no row has a positive in it
    results = [
        MetricResult(
            "classification_accuracy", probe.accuracy, "share",
            "linear probe, 5-fold cross-validation, regularisation chosen inside the training folds",
            probe.standard_error,
        ),
        MetricResult("precision_at_10", precision_at_k(x, names, 10, groups=groups), "share", "cosine, others only"),
        MetricResult("embedding_separability", silhouette(x, names, seed=seed), "-1..1", "silhouette, cosine distance"),
        MetricResult("effective_rank", effective_rank(unit_rows(x)), "dimensions", "entropy of the singular values"),
        MetricResult("alignment", alignment(x, tied), "0..4", f"mean squared distance of rows of one {positives}"),
        MetricResult("uniformity", uniformity(x, seed=seed), "-8..0", "log mean exp(-2 squared distance)"),
        MetricResult("confusion_matrix", probe.confusion, "rows", "the probe's, [true label, predicted label]"),
        MetricResult("confusion_classes", probe.classes, "", "order of the confusion matrix"),
    ]  # fmt: skip
    if include_visualization:
        rows = np.arange(len(x))
        if len(rows) > MAX_PICTURE_ROWS:
            rows = np.sort(np.random.default_rng(seed).choice(len(x), size=MAX_PICTURE_ROWS, replace=False))
        results.append(MetricResult("visualization", _map(x[rows], seed), "", "t-SNE"))
        results.append(MetricResult("visualization_rows", rows, "", "rows that the picture shows"))
    return {result.name: result for result in results}


def check_device(device: str) -> None:
    """Raises ConfigError unless it names a kind of compute device."""
    if str(device).partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"got device '{device}', expected 'cpu', 'cuda' or 'mps'")


def _map(x: np.ndarray, seed: int) -> np.ndarray:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise MissingExtraError("the embedding's picture", "server", str(error)) from error
    perplexity = float(min(30, max(2, (len(x) - 1) // 3)))
    points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(x)
    return np.asarray(points, dtype=np.float64)


def _as_array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # a tensor, on whatever device
        values = values.detach().cpu().numpy()
    return np.asarray(values)
