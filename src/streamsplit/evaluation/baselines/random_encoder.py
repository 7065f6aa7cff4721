"""The untrained network, as it is, with the PCA start, or pooled: what the architecture knows before any learning."""

from __future__ import annotations

import math

from streamsplit.evaluation.baselines.base import (
    Budget,
    Effort,
    Outcome,
    Progress,
    Stopwatch,
    embedder,
    encoder_of,
    pca_started,
)  # fmt: skip
from streamsplit.evaluation.baselines.released import PooledEncoder
from streamsplit.evaluation.corpus import Corpus


class RandomEncoder:
    """An encoder with random weights; `start` fits its projection to the first windows heard."""

    def __init__(self, *, start: bool) -> None:
        self.start = start
        self.name = "untrained_pca" if start else "untrained"
        self.about = "untrained encoder, PCA start" if start else "untrained encoder"

    def run(self, corpus: Corpus, budget: Budget, seed: int, progress: Progress) -> Outcome:
        """Takes no optimiser step."""
        watch = Stopwatch()
        encoder = encoder_of(seed)
        if self.start:
            pca_started(encoder, corpus, seed)
        return Outcome(embedder(encoder), Effort(cpu_s=watch.read()), math.nan, math.nan, encoder=encoder)


class PooledStart:
    """What the negative control begins with: the same blocks, averaged over frequency and time, and a random layer."""

    name, about = "untrained_pooled", "untrained encoder, average pooling"

    def run(self, corpus: Corpus, budget: Budget, seed: int, progress: Progress) -> Outcome:
        """Takes no optimiser step."""
        watch = Stopwatch()
        encoder = PooledEncoder(encoder_of(seed), seed)
        return Outcome(embedder(encoder), Effort(cpu_s=watch.read()), math.nan, math.nan)
