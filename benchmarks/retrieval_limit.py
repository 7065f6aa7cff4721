"""What limits Precision@10 on few test clips: the most that is possible, and what a classifier with labels reaches.

`python -m benchmarks.retrieval_limit --data data` embeds the pieces of a corpus with a published encoder, trains the
linear classifier of the probe on the training pieces' labels at every strength of its penalty, and looks for
neighbours among the test pieces: by the embedding, by the classifier's logits and by its probabilities, which no
learning without labels has. `possible` is Precision@10 of a search that makes no mistake: a class with n test pieces of
other recordings fills n of ten places at most.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.record import RESULTS, record
from streamsplit.errors import StreamSplitError
from streamsplit.evaluation.baselines.base import embedder, published
from streamsplit.evaluation.corpus import Corpus, esc10_corpus, piece_vectors
from streamsplit.evaluation.probe import REGULARISATION, fit_classifier
from streamsplit.evaluation.retrieval import possible_precision, precision_at_k
from streamsplit.weights.pretrained import pretrained_encoder

K = 10


def measure(corpus: Corpus, start: str) -> dict[str, Any]:
    """Precision@10 by the embedding, and accuracy and Precision@10 of classifiers on it."""
    embed = embedder(pretrained_encoder(published(start)).eval())
    train, test = (piece_vectors(embed(part.batch(slice(None))), part) for part in (corpus.train, corpus.test))
    labels, groups = corpus.test.labels, corpus.test.recordings
    known = np.array(corpus.train.labels)
    rows = []
    for strength in REGULARISATION:
        model = fit_classifier(train, known, strength)
        rows.append(
            {
                "C": strength,
                "accuracy": float(model.score(test, labels)),
                "precision_at_10_logits": precision_at_k(model.decision_function(test), labels, K, groups=groups),
                "precision_at_10_probabilities": precision_at_k(model.predict_proba(test), labels, K, groups=groups),
            }
        )
    return {
        "possible": possible_precision(labels, K, groups=groups),
        "precision_at_10": precision_at_k(test, labels, K, groups=groups),
        "classifiers": rows,
    }


def main() -> None:
    """Prints and records the figures."""
    parser = argparse.ArgumentParser(description="What limits Precision@10 on few test clips.")
    parser.add_argument("--data", type=Path, required=True, help="folder with esc10/")
    parser.add_argument("--start", default="default", help="published encoder: a name or a file (default: default)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        corpus = esc10_corpus(args.data / "esc10")
        figures = measure(corpus, args.start)
    except StreamSplitError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"possible {figures['possible']:.3f}, by the embedding {figures['precision_at_10']:.3f}")
    for row in figures["classifiers"]:
        print(
            f"C {row['C']:<6g} accuracy {row['accuracy']:.3f}, by logits {row['precision_at_10_logits']:.3f}, "
            f"by probabilities {row['precision_at_10_probabilities']:.3f}"
        )
    settings = {"corpus": corpus.name, "held_out": corpus.held_out, "start": published(args.start).revision}
    print(record("retrieval_limit", figures, settings, folder=args.results))


if __name__ == "__main__":
    main()
