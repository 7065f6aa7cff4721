"""What a mini-batch of the device's stream costs: contrast, consistency, and the prediction of fixed statistics."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamsplit.audio.augment import Augmenter, AugmentLevel, budget_level
from streamsplit.encoders.base import SplitEncoder
from streamsplit.learning.contrastive import consistency, prediction_loss, streaming_info_nce
from streamsplit.learning.copies import EncoderCopies
from streamsplit.learning.memory import NegativeMemory
from streamsplit.learning.settings import LearnerSettings
from streamsplit.learning.shuffle import Batch
from streamsplit.learning.slots import SlotCache
from streamsplit.learning.target import CrossWindowTarget
from streamsplit.learning.uncertainty import PrototypeUncertainty

Array = NDArray[np.float32]


class StreamLoss:
    """The loss of a batch drawn from the shuffle buffer, through the query and the key encoder it was made for.

    Beside contrast, a window predicts what is known of a neighbouring window and of itself. With target 'revision' that
    is their embedding by the last revision (or the start), as in the server's own task; windows that the revision finds
    alike are no negatives of each other then. With 'statistics' it is a projection of fixed statistics.
    """

    def __init__(
        self, copies: EncoderCopies, memory: NegativeMemory, target: CrossWindowTarget,
        prototypes: PrototypeUncertainty, augmenter: Augmenter, settings: LearnerSettings, known: SlotCache | None,
        readouts: SlotCache | None,
    ) -> None:  # fmt: skip
        """Of the buffer's windows: `known` is what is predicted; `readouts`, where blocks do not learn, their
        statistics. Without `known`, the revision's embeddings are computed from these."""
        self._query, self._key, self._anchor = copies.query, copies.key, copies.anchor
        self._known, self._readouts = known, readouts
        self._memory, self._target, self._prototypes = memory, target, prototypes
        self._augmenter, self._settings = augmenter, settings

    def level(self, cpu_load: float, memory_load: float) -> AugmentLevel | None:
        """What is done to the second view, None for nothing; 'auto' follows both loads in 0..1."""
        name = self._settings.augment
        if name == "none":
            return None
        return budget_level(1.0 - cpu_load, 1.0 - memory_load) if name == "auto" else AugmentLevel[name.upper()]

    def __call__(self, batch: Batch, level: AugmentLevel | None, rng: np.random.Generator) -> Tensor:
        """A scalar with a graph. `level` is of the second view only: the target that is predicted stays as heard."""
        s = self._settings
        query = self._embed(self._query, batch.anchor_slots, batch.anchor_features)
        with torch.no_grad():
            if level is None:
                positive = self._embed(self._key, batch.partner_slots, batch.partner_features)
            else:
                views = [self._augmenter.features(window, level) for window in batch.partner_features]
                positive = self._key(torch.from_numpy(np.stack(views)))
        total = query.new_zeros(())
        others, owns = self._predicted(batch)
        if s.target == "revision":
            alike = (owns @ others.T > s.mask_similarity).fill_diagonal_(False)
            batch = batch._replace(excluded=batch.excluded | alike.numpy())
        if s.contrast_weight:
            total = total + s.contrast_weight * self._contrast(query, positive, batch, rng)
        if s.consistency_weight:
            total = total + s.consistency_weight * consistency(query, positive)
        predicted = query if s.target == "revision" else self._target.predict(query)
        for weight, known in ((s.target_weight, others), (s.own_weight, owns)):
            if weight:
                total = total + weight * prediction_loss(predicted, known)
        return total

    @torch.no_grad()
    def _predicted(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What is predicted of the partners, and of the anchors themselves, [b, g] each."""
        parts = []
        held = ((batch.partner_slots, batch.partner_features), (batch.anchor_slots, batch.anchor_features))
        for slots, windows in held:
            if self._known is not None:
                parts.append(torch.from_numpy(self._known(slots, windows)))
            else:
                parts.append(self._embed(self._anchor, slots, windows))
        return parts[0], parts[1]

    def _embed(self, encoder: SplitEncoder, slots: NDArray[np.intp], windows: Array) -> Tensor:
        if self._readouts is None:
            embeddings: Tensor = encoder(torch.from_numpy(windows))
            return embeddings
        return encoder.embed_readouts(torch.from_numpy(self._readouts(slots, windows)), windows.shape[1])

    def _contrast(self, query: Tensor, positive: Tensor, batch: Batch, rng: np.random.Generator) -> Tensor:
        anchors = query.detach().numpy()
        negatives, weights = self._memory.negatives(anchors, batch.times, self._settings.negatives, rng)
        each = streaming_info_nce(
            query,
            positive,
            temperature=self._settings.temperature,
            negatives=torch.from_numpy(negatives),
            weights=torch.from_numpy(weights),
            excluded=torch.from_numpy(batch.excluded),
            reduce=False,
        )
        self._credit(anchors, positive.numpy(), each.detach().numpy())
        return each.mean()

    def _credit(self, query: Array, positive: Array, losses: Array) -> None:
        """v1: the parts of the uncertainty that go with a high loss gain weight; the positive is the other view."""
        if self._settings.uncertainty == "v1":
            for z, other, loss in zip(query, positive, losses, strict=True):
                parts = self._prototypes.components(z, other, self._memory.mixture.live_means)
                self._prototypes.learn(parts, float(loss))
