"""FedCL: contrastive learners on the devices, their weights averaged by a server round after round (FedAvg)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from streamsplit.evaluation.baselines.base import (
    START_WINDOWS,
    Budget,
    Effort,
    Outcome,
    Progress,
    Ranks,
    Stopwatch,
    embedder,
    first_encoder,
    fitted_encoder,
    heard_by,
    start_rows,
)  # fmt: skip
from streamsplit.evaluation.baselines.edge_only import hear
from streamsplit.evaluation.baselines.traffic import InputTraffic, weights_bytes
from streamsplit.evaluation.corpus import Corpus
from streamsplit.learning.learner import EdgeLearner
from streamsplit.learning.settings import LearnerSettings
from streamsplit.refinement.federated import LocalMerge
from streamsplit.weights.revision import Weights, encoder_weights, load_weights
from streamsplit.wire.media import Encoding

ROUNDS = 10
SETTINGS = LearnerSettings(warm_start=False, trained="all")  # the projection's start comes with the first weights


class Update(NamedTuple):
    """What a device brings to a round: its weights, and how many windows it learned from."""

    weights: Weights
    windows: int


class FedCL:
    """Federated averaging over `budget.devices` devices with `ROUNDS` rounds."""

    name, about = "fedcl", "FedAvg of contrastive learners"

    def run(self, corpus: Corpus, budget: Budget, seed: int, progress: Progress) -> Outcome:
        """Each round every device hears its share, learns, and sends its weights; the average comes back.

        Before that the start's windows go up and its weights come down, unless all begin with published ones.
        """
        watch, effort, ranks = Stopwatch(), Effort(), Ranks()
        encoder = fitted_encoder(corpus, budget, seed)
        weights = encoder_weights(encoder)
        size = weights_bytes(weights)
        learners = [
            EdgeLearner(first_encoder(budget, seed), SETTINGS, seed + device) for device in range(budget.devices)
        ]
        if not budget.start:
            start = InputTraffic(corpus.learn, Encoding.LOGMEL_INT8)
            effort.uplink_bytes += sum(start.bytes_of(row) for row in start_rows(corpus, seed, budget.devices))
            effort.sent = START_WINDOWS
            for learner in learners:
                learner.adopt(weights, breaks_space=True)
                effort.downlink_bytes += size
        stream = list(heard_by(corpus, budget, seed, budget.devices))
        edges = np.linspace(0, len(stream), ROUNDS + 1).astype(int)
        for turn, (first, last) in enumerate(pairwise(edges.tolist())):
            before = [learner.windows_learned for learner in learners]
            for number in range(first, last):
                device, row, continuous = stream[number]
                learner = learners[device]
                hear(learner, corpus, row, number // budget.devices, continuous, effort)
                if _spent(learners, budget):
                    continue
                learner.learn()
                ranks.see(learner.effective_rank)
            updates = [
                Update(encoder_weights(learner.query), learner.windows_learned - already)
                for learner, already in zip(learners, before, strict=True)
            ]
            if sum(update.windows for update in updates):
                weights = federated_average(weights, updates)
                for learner in learners:
                    learner.adopt(weights, breaks_space=True)
                effort.uplink_bytes += size * len(learners)
                effort.downlink_bytes += size * len(learners)
            progress((turn + 1) / ROUNDS, f"round {turn + 1}")
        load_weights(encoder, weights)
        effort.windows = sum(learner.windows_learned for learner in learners)
        effort.updates, effort.cpu_s = sum(learner.steps for learner in learners), watch.read()
        notes = (f"{ROUNDS} rounds, {budget.devices} devices, weights in fp32",)
        return Outcome(embedder(encoder), effort, ranks.peak, ranks.last, notes, encoder=encoder)


def federated_average(base: Weights, updates: Sequence[Update]) -> Weights:
    """FedAvg (McMahan et al. 2017): the devices' weights averaged by the windows that each learned from.

    Devices without any do not count. Raises RevisionError where weights do not fit `base`, the round's start.
    """
    merge = LocalMerge(math.inf)
    for number, update in enumerate(updates):
        if update.windows:
            difference = {name: array - base[name] for name, array in update.weights.items()}
            merge.add(f"device{number}", base, difference, update.windows, 0)
    return merge.apply(base, base, 0).weights


def _spent(learners: Sequence[EdgeLearner], budget: Budget) -> bool:
    return (
        sum(learner.windows_learned for learner in learners) >= budget.windows
        or sum(learner.steps for learner in learners) >= budget.updates
    )
