"""Fixed statistics of the log-mel: no network, nothing learned but a PCA; only what beats them was learned."""

from __future__ import annotations

import math

from streamsplit.encoders.fixed import five_statistics, fixed_vector, mean_and_deviation
from streamsplit.encoders.pca import fit_pca
from streamsplit.evaluation.baselines.base import Budget, Effort, Embed, Outcome, Progress, Stopwatch
from streamsplit.evaluation.corpus import Corpus

KINDS: dict[str, tuple[str, str, Embed]] = {
    "mean-std": ("mean_std", "log-mel mean + std", mean_and_deviation),
    "five": ("five_statistics", "five fixed statistics", five_statistics),
    "five-pca": ("five_statistics_pca", "five statistics, PCA to 128", five_statistics),
    "course-pca": ("fixed_course_pca", "five statistics and course in time, PCA to 128", fixed_vector),
}


class Handcrafted:
    """Fixed numbers of a window: 'mean-std' (256), 'five' (320), 'five-pca' and 'course-pca' (half-whitened, 128)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.name, self.about, self._fixed = KINDS[kind]

    def run(self, corpus: Corpus, budget: Budget, seed: int, progress: Progress) -> Outcome:
        """Fits the PCA to windows of `corpus.learn`; the others need nothing."""
        watch = Stopwatch()
        embed = _pca(self._fixed, corpus, seed) if self.kind.endswith("-pca") else self._fixed
        return Outcome(embed, Effort(cpu_s=watch.read()), math.nan, math.nan)


def _pca(fixed: Embed, corpus: Corpus, seed: int) -> Embed:
    pca = fit_pca(fixed(corpus.learn.batch(slice(None))), 128, seed)
    return lambda windows: pca(fixed(windows))
