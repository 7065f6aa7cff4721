"""Figures of an embedding on a corpus: probe, retrieval, geometry, on one vector a piece of sound."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from streamsplit.errors import EncoderError
from streamsplit.evaluation.baselines.base import Embed
from streamsplit.evaluation.corpus import Corpus, piece_vectors
from streamsplit.evaluation.geometry import alignment, uniformity
from streamsplit.evaluation.probe import linear_probe
from streamsplit.evaluation.retrieval import precision_at_k, silhouette
from streamsplit.learning.rank import effective_rank

FIGURES = (
    "probe", "precision_at_10", "precision_at_10_all", "silhouette", "effective_rank", "alignment", "uniformity"
)  # fmt: skip


class Judgement(NamedTuple):
    """What a method is worth: plain figures, and the test pieces' vectors [m, d] for pictures."""

    figures: dict[str, float]
    classes: tuple[str, ...]
    confusion: list[list[int]]  # rows are true classes
    predictions: list[str]  # of the test pieces
    vectors: np.ndarray


def judge(corpus: Corpus, embed: Embed, seed: int = 0) -> Judgement:
    """Trains the probe on the corpus's training pieces and measures on its test pieces.

    'precision_at_10' looks for neighbours among the test pieces, 'precision_at_10_all' among training pieces too; a
    piece of the query's own recording is never an answer. Raises EncoderError for vectors that are not finite.
    """
    train_rows, test_rows = (np.asarray(embed(part.batch(slice(None)))) for part in (corpus.train, corpus.test))
    for rows in (train_rows, test_rows):
        if not np.isfinite(rows).all():
            bad = int((~np.isfinite(rows).all(axis=1)).sum())
            raise EncoderError(f"got NaN or infinity in {bad} of {len(rows)} vectors, expected finite ones")
    train, test = piece_vectors(train_rows, corpus.train), piece_vectors(test_rows, corpus.test)
    labels = corpus.test.labels
    probe = linear_probe(train, corpus.train.labels, test, labels, groups=corpus.train.sources, seed=seed)
    unit = test_rows / np.maximum(np.linalg.norm(test_rows, axis=1, keepdims=True), 1e-12)
    figures = {
        "probe": probe.accuracy,
        "probe_standard_error": probe.standard_error,
        "precision_at_10": precision_at_k(test, labels, 10, groups=corpus.test.recordings),
        "precision_at_10_all": precision_against(test, labels, corpus.test.sources, train, corpus, 10),
        "silhouette": silhouette(test, labels, seed=seed),
        "effective_rank": effective_rank(unit),
        "alignment": alignment(test, labels),
        "uniformity": uniformity(test),
    }
    return Judgement(
        figures, probe.classes, probe.confusion.tolist(), [str(label) for label in probe.predictions],
        test.astype(np.float32),
    )  # fmt: skip


def precision_against(
    test: np.ndarray, labels: tuple[str, ...], sources: tuple[str, ...], train: np.ndarray, corpus: Corpus, k: int
) -> float:
    """Mean share of same-label pieces among each test piece's k nearest by cosine, of all pieces of other sources."""
    vectors = np.concatenate([test, train])
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    names, held = np.array([*labels, *corpus.train.labels]), np.array([*sources, *corpus.train.sources])
    similarity = unit[: len(test)] @ unit.T
    similarity[held[: len(test), None] == held[None, :]] = -np.inf
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return float((names[nearest] == names[: len(test), None]).mean())


def plain_figures(judged: Judgement) -> dict[str, Any]:
    """What goes into a cell's JSON."""
    return {
        "figures": judged.figures, "classes": list(judged.classes), "confusion": judged.confusion,
        "predictions": judged.predictions,
    }  # fmt: skip
