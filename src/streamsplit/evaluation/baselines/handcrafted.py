"""Fixed statistics of the log-mel: no network, nothing learned but a PCA; only what beats them was learned."""

from __future__ import annotations

import math

from streamsplit.encoders.fixed import five_statistics, mean_and_deviation
from streamsplit.encoders.pca import fit_pca
from streamsplit.evaluation.baselines.base import Budget, Effort, Embed, Outcome, Progress, Stopwatch
from streamsplit.evaluation.corpus import Corpus


class Handcrafted:
    """Statistics over time of a window: 'mean-std' (256), 'five' (320), or 'five-pca' (half-whitened, 128)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.name = {"mean-std": "mean_std", "five": "five_statistics", "five-pca": "five_statistics_pca"}[kind]
        self.about = {
            "mean-std": "log-mel mean + std", "five": "five fixed statistics", "five-pca": "five statistics, PCA to 128"
        }[kind]  # fmt: skip

    def run(self, corpus: Corpus, budget: Budget, seed: int, progress: Progress) -> Outcome:
        """Fits the PCA to windows of `corpus.learn`; the others need nothing."""
        watch = Stopwatch()
        embed: Embed = mean_and_deviation if self.kind == "mean-std" else five_statistics
        if self.kind == "five-pca":
            embed = _pca(corpus, seed)
        return Outcome(embed, Effort(cpu_s=watch.read()), math.nan, math.nan)


def _pca(corpus: Corpus, seed: int) -> Embed:
    pca = fit_pca(five_statistics(corpus.learn.batch(slice(None))), 128, seed)
    return lambda windows: pca(five_statistics(windows))
