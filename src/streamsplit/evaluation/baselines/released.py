"""The later paper's released algorithm, as it is: the negative control that a harness must put below a random encoder.

What it does differently from everything else here: global average pooling and one linear layer; a mixture that starts
from random means, whose per-sample EM moves every component toward every sample with no variance of its own; virtual
negatives at the absolute boundary temperature 0.1 in place of in-batch ones; augmented copies as positives; small
batches in the order of the stream. (Its mel filterbank, 12 of whose 128 filters are empty, is left out: all methods
hear the same features.)
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from streamsplit.audio.augment import Augmenter, AugmentLevel
from streamsplit.audio.logmel import LOGMEL_MEAN, LOGMEL_STD
from streamsplit.encoders.base import SplitEncoder
from streamsplit.evaluation.baselines.base import (
    Budget,
    Effort,
    Outcome,
    Progress,
    Ranks,
    Stopwatch,
    embedder,
    encoder_of,
    heard_by,
)  # fmt: skip
from streamsplit.evaluation.corpus import Corpus
from streamsplit.learning.contrastive import streaming_info_nce
from streamsplit.learning.rank import RunningRank

BATCH, ACCUMULATE, NEGATIVES = 8, 4, 256
COMPONENTS, EM_RATE, BOUNDARY_TEMPERATURE, VARIANCE_FLOOR = 64, 0.01, 0.1, 1e-6
LEARNING_RATE, TEMPERATURE = 1e-3, 0.1


class PooledEncoder(nn.Module):
    """The maps of a split encoder, averaged over frequency and time, and one linear layer: [b, f, t] to [b, d]."""

    def __init__(self, encoder: SplitEncoder, seed: int) -> None:
        super().__init__()
        self.blocks = encoder.blocks
        channels = encoder.sites[-1].channels
        weight = np.random.default_rng([seed, 3]).standard_normal((encoder.embedding_dim, channels)) / channels**0.5
        self.project = nn.Linear(channels, encoder.embedding_dim)
        with torch.no_grad():
            self.project.weight.copy_(torch.from_numpy(weight))
            self.project.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Unit-norm embeddings of log-mel windows."""
        h = ((x - LOGMEL_MEAN) / LOGMEL_STD).unsqueeze(1)
        for block in self.blocks:
            h = block(h)
        return functional.normalize(self.project(h.mean((2, 3))), dim=1)


class ReleasedMixture:
    """Diagonal Gaussians updated one sample at a time, as released.

    The M-step of one sample gives every component the mean sum(r x) / sum(r) = x and the variance 0, whatever its
    responsibility r; the moving average with rate 0.01 then takes all of them there.
    """

    def __init__(self, dim: int, seed: int) -> None:
        self.random = np.random.default_rng([seed, 5])
        means = self.random.standard_normal((COMPONENTS, dim))
        self.means = means / np.linalg.norm(means, axis=1, keepdims=True)
        self.variances = np.ones((COMPONENTS, dim))
        self.weights = np.full(COMPONENTS, 1.0 / COMPONENTS)

    def responsibilities(self, z: np.ndarray) -> np.ndarray:
        """p(c | z) [C] of an embedding [d]."""
        score = -0.5 * (((z - self.means) ** 2 / self.variances) + np.log(self.variances)).sum(1)
        score += np.log(self.weights + 1e-12)
        raised = np.exp(score - score.max())
        share: np.ndarray = raised / raised.sum()
        return share

    def observe(self, z: np.ndarray) -> None:
        """One step of per-sample EM."""
        share = self.responsibilities(z)
        self.weights = (1 - EM_RATE) * self.weights + EM_RATE * share
        self.means = (1 - EM_RATE) * self.means + EM_RATE * z
        self.variances = np.maximum((1 - EM_RATE) * self.variances, VARIANCE_FLOOR)

    def negatives(self, z: np.ndarray, count: int) -> np.ndarray:
        """Boundary-aware virtual negatives [count, d]: components near the anchor's own, never that one."""
        own = int(self.responsibilities(z).argmax())
        distance = ((self.means - self.means[own]) ** 2).sum(1)
        score = np.log(self.weights + 1e-12) - distance / (2 * BOUNDARY_TEMPERATURE**2)
        score[own] = -np.inf
        law = np.exp(score - score.max())
        chosen = self.random.choice(COMPONENTS, size=count, p=law / law.sum())
        drawn = self.means[chosen] + np.sqrt(self.variances[chosen]) * self.random.standard_normal((count, z.size))
        unit: np.ndarray = drawn / np.maximum(np.linalg.norm(drawn, axis=1, keepdims=True), 1e-12)
        return unit.astype(np.float32)


class Released:
    """The negative control."""

    name, about = "released", "v2's released algorithm (control)"

    def run(self, corpus: Corpus, budget: Budget, seed: int, progress: Progress) -> Outcome:
        """Batches of 8 windows as they come, over and over until the budget is spent."""
        watch, effort, ranks = Stopwatch(), Effort(), Ranks()
        encoder = PooledEncoder(encoder_of(seed), seed)
        parameters = list(encoder.parameters())
        optimiser = torch.optim.Adam(parameters, lr=LEARNING_RATE)
        mixture = ReleasedMixture(encoder.project.out_features, seed)
        augmenter = Augmenter(rng=np.random.default_rng([seed, 7]))
        rank = RunningRank(encoder.project.out_features)
        rows = [row for _, row, _ in heard_by(corpus, budget, seed)]
        effort.heard, effort.heard_s = len(rows), float(corpus.learn.seconds[rows].sum())
        batches, at = 0, 0
        while effort.windows < budget.windows and effort.updates < budget.updates:
            batch = corpus.learn.batch(np.take(rows, np.arange(at, at + BATCH), mode="wrap"))
            at = (at + BATCH) % len(rows)
            other = np.stack([augmenter.features(window, AugmentLevel.STANDARD) for window in batch])
            z = encoder(torch.from_numpy(batch))
            positive = encoder(torch.from_numpy(other))
            seen = z.detach().numpy()
            negatives = np.stack([mixture.negatives(anchor, NEGATIVES) for anchor in seen])
            loss = streaming_info_nce(
                z, positive, temperature=TEMPERATURE, negatives=torch.from_numpy(negatives), in_batch=False
            )
            torch.autograd.backward(loss / ACCUMULATE)
            for row in seen:
                mixture.observe(row)
                rank.observe(row)
            ranks.see(rank.value)
            effort.windows += BATCH
            batches += 1
            if batches % ACCUMULATE == 0:
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                effort.updates += 1
            progress(effort.updates / budget.updates, f"loss {float(loss.detach()):.3f}, rank {rank.value:.1f}")
        effort.cpu_s = watch.read()
        notes = ("begins untrained: its pooled encoder is its own",) if budget.start else ()
        return Outcome(embedder(encoder), effort, ranks.peak, ranks.last, notes)
