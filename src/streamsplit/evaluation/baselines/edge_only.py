"""Edge-Only: one device hears the whole stream and learns alone; nothing goes up."""

from __future__ import annotations

import numpy as np

from streamsplit.evaluation.baselines.base import (
    Budget,
    Effort,
    Outcome,
    Progress,
    Ranks,
    Stopwatch,
    embedder,
    encoder_of,
    first_encoder,
    heard_by,
)  # fmt: skip
from streamsplit.evaluation.corpus import Corpus
from streamsplit.learning.learner import EdgeLearner
from streamsplit.learning.settings import LearnerSettings

AS_PUBLISHED = LearnerSettings(
    memory="bank", uncertainty="v1", negatives=256, buffer_windows=32, run_windows=10, warm_start=False,
    warm_start_windows=16, contrast_weight=1.0, consistency_weight=0.5, target_weight=0.0, own_weight=0.0,
    target="statistics",
    augment="standard", trained="all", learning_rate=1e-4, readout_rate=1e-4, momentum=0.999, temperature=0.1,
)  # fmt: skip
"""v1 on a device by itself: batch 8, memory bank, consistency with the momentum encoder, Adam 1e-4, random start."""


class EdgeOnly:
    """A device by itself. It hears all the sound that other methods spread over several devices, which is kinder
    than what a device of a fleet hears."""

    def __init__(self, name: str, about: str, settings: LearnerSettings, encoder: str = "") -> None:
        """`encoder` names one of its own, which begins untrained whatever the budget's start."""
        self.name, self.about, self.settings, self.encoder = name, about, settings, encoder

    def run(self, corpus: Corpus, budget: Budget, seed: int, progress: Progress) -> Outcome:
        """One mini-batch a window heard, until the budget is spent; a published start is not fitted to the sound."""
        watch, effort, ranks = Stopwatch(), Effort(), Ranks()
        encoder = encoder_of(seed, self.encoder) if self.encoder else first_encoder(budget, seed)
        fitted = bool(budget.start and not self.encoder)
        learner = EdgeLearner(encoder, self.settings.replace(warm_start=False) if fitted else self.settings, seed)
        for number, (_, row, continuous) in enumerate(heard_by(corpus, budget, seed)):
            hear(learner, corpus, row, number, continuous, effort)
            if learner.windows_learned < budget.windows and learner.steps < budget.updates:
                learner.learn()
            ranks.see(learner.effective_rank)
            progress((number + 1) / budget.heard, f"{learner.steps} updates")
        effort.windows, effort.updates, effort.cpu_s = learner.windows_learned, learner.steps, watch.read()
        notes = ["one device hears all the sound"]
        if budget.start and not fitted:
            notes.append("begins untrained: the common start is of another architecture")
        return Outcome(embedder(learner.key), effort, ranks.peak, ranks.last, tuple(notes), encoder=learner.key)


def hear(
    learner: EdgeLearner, corpus: Corpus, row: int, number: int, continuous: bool, effort: Effort
) -> tuple[np.ndarray, np.ndarray]:
    """A device hears one window and remembers it as its window `number`; gives features [f, t] and embedding [d]."""
    features = corpus.learn.batch(slice(row, row + 1))[0]
    z = learner.embed(features)
    learner.remember(features, z=z, index=number, continuous=continuous)
    effort.heard += 1
    effort.heard_s += float(corpus.learn.seconds[row])
    return features, z
