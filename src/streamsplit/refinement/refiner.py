"""Refiner: trains the server's copy of the encoder from what devices send, and publishes it as revisions."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from streamsplit.encoders.base import SplitEncoder
from streamsplit.encoders.bottleneck import fit_bottlenecks
from streamsplit.encoders.crossing import Crossing
from streamsplit.encoders.projection import fit_exits, fit_projection, fit_reduced
from streamsplit.errors import EncoderError, RevisionError
from streamsplit.learning.mixture import GaussianMixture
from streamsplit.learning.rank import effective_rank
from streamsplit.refinement.aggregation import Alignment, device_alignment
from streamsplit.refinement.batch import (
    embed_features,
    frozen_copy,
    frozen_targets,
    full_resolution,
    label_numbers,
    stored_crossing,
    stored_features,
)
from streamsplit.refinement.buffer import TemporalBuffer
from streamsplit.refinement.federated import LocalMerge
from streamsplit.refinement.hybrid import hybrid_loss
from streamsplit.refinement.lineage import Known, Lineage, Weights
from streamsplit.refinement.prototypes import Prototypes
from streamsplit.refinement.reports import Published as Published
from streamsplit.refinement.reports import RefineReport as RefineReport
from streamsplit.refinement.reservoir import Reservoir, StoredWindow
from streamsplit.refinement.settings import RefinerSettings as RefinerSettings
from streamsplit.refinement.split_step import (
    AskedWindows,
    crossing_leaf,
    embed_with_leaves,
    split_gradients,
)
from streamsplit.refinement.task import label_loss, task_loss
from streamsplit.weights.delta import make_delta, pack_full
from streamsplit.weights.revision import encoder_weights, load_weights, revision_of

ALIGNED_DEVICES = 16  # pairs grow with the square


class Refiner:
    """The server's learning: bounded memory, no clock, no thread; calls come from one thread.

    `add` collects what arrives, `warm_start` fits the readout once, `step` is one optimiser step, `publish` makes a
    revision. The master weights stay in full precision; a revision is what its receivers reconstruct from the
    quantised delta, so quantisation errors do not add up over revisions.
    """

    def __init__(self, encoder: SplitEncoder, settings: RefinerSettings | None = None, seed: int = 0) -> None:
        """Takes over `encoder` as the copy to train; its weights are the first revision."""
        self.settings = settings or RefinerSettings()
        self.encoder = encoder
        self.teacher = frozen_copy(encoder)
        self.random = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.optimiser = self._new_optimiser()
        self.buffer = TemporalBuffer(self.settings.buffer)
        self.mixture = GaussianMixture(64, encoder.embedding_dim, seed=seed)
        self.prototypes = Prototypes(self.settings.prototypes, encoder.embedding_dim, seed=seed)
        self.reservoir = Reservoir(self.settings.reservoir_bytes, seed)
        self.local = LocalMerge(self.settings.local_max_norm)
        self.lineage = Lineage(self.settings.keep_revisions)
        weights = encoder_weights(encoder)
        self.lineage.add(Known(revision_of(weights), weights, 0))
        self.space = 0
        self.warm_started = False
        self.breaks_space = False
        self.steps = 0
        self.steps_since_publish = 0
        self.samples_since_publish = 0
        self.bad_batches = 0
        self.windows_taken = self.windows_drawn = 0  # to learn from, and into optimiser steps
        self.asked = AskedWindows()
        self._ready: dict[str, SplitEncoder] = {}

    @property
    def revision(self) -> str:
        """The newest published revision."""
        return self.lineage.latest.revision

    def known_encoder(self, revision: str) -> SplitEncoder:
        """A frozen encoder of a recent revision, to complete cuts with; RevisionError where it is not held."""
        known = self.lineage.get(revision)
        for gone in [name for name in self._ready if name not in self.lineage]:
            del self._ready[gone]
        if revision not in self._ready:
            encoder = frozen_copy(self.encoder)
            load_weights(encoder, known.weights)
            self._ready[revision] = encoder
        return self._ready[revision]

    def add(
        self,
        device: str,
        window: int,
        now_ms: float = 0.0,
        *,
        features: np.ndarray | None = None,
        crossing: Crossing | None = None,
        block: int = 0,
        embedding: np.ndarray | None = None,
        revision: str = "",
        starts: bool = False,
    ) -> bool:
        """Takes what is known of one window: log-mel features [f, t], or what crossed after `block`, and the embedding.

        `now_ms` is when it arrived; `label` finds it by that. `starts` marks the first window after a gap or a new
        clip: positives are not taken across it.

        True where any of it is used. Raises RevisionError for a crossing or lone embedding of an unknown revision, and
        EncoderError for NaN or wrong shapes; nothing is kept then. What belongs to an earlier embedding space is left
        out, without an error: its sender has not yet fetched the new weights. Features outlive every revision.
        """
        if features is None and crossing is None and embedding is None:
            raise EncoderError("got neither features, crossing nor embedding, expected at least one")
        current = True
        if features is not None and crossing is None:
            current = revision in self.lineage and self.lineage.get(revision).space == self.space
        elif crossing is not None or embedding is not None:
            current = self.lineage.get(revision).space == self.space
        item = None
        if features is not None:
            item = stored_features(device, window, features, starts, now_ms)
        elif crossing is not None and current:
            item = stored_crossing(self.encoder, device, window, crossing, block, revision, starts, now_ms)
        z = None
        if embedding is not None and current:
            z = np.asarray(embedding, dtype=np.float32)
            if z.shape != (self.encoder.embedding_dim,) or not np.isfinite(z).all():
                raise EncoderError(
                    f"got an embedding of shape {z.shape} or with NaN, expected [{self.encoder.embedding_dim}] finite"
                )
        used = item is not None and bool(np.isfinite(item.h).all()) and self.reservoir.add(item)
        self.windows_taken += used
        if z is not None:
            self.buffer.add(device, window, z)
            self.mixture.observe(z)
            self.prototypes.observe(z)
        return used or z is not None

    def ask(
        self, device: str, window: int, crossing: Crossing, block: int, revision: str, *, starts: bool = False
    ) -> bool:
        """Has a coming step return the gradient at the cut of a window that crossed after `block`; see `split_step`.

        False where the crossing is of an earlier embedding space. Raises RevisionError and EncoderError as `add` does.
        """
        if self.lineage.get(revision).space != self.space:
            return False
        item = stored_crossing(self.encoder, device, window, crossing, block, revision, starts)
        if not np.isfinite(item.h).all():
            raise EncoderError("got a crossing out of half precision's range, expected what `add` can keep")
        self.asked.add(item)
        return True

    def label(self, device: str, window: int, at_ms: float, label: str) -> bool:
        """Names a collected window that arrived at `at_ms`, for the label loss; False where it is not held."""
        return self.reservoir.label(device, window, at_ms, label)

    def ready(self) -> bool:
        """Whether `step` has enough to learn from; with fewer than `min_devices` it waits for twice the windows.

        After `most_passes` over everything that came in it waits for more: going on over the same windows undoes what
        was known (docs/design.md).
        """
        if self.windows_drawn + self.settings.batch_windows > self.settings.most_passes * self.windows_taken:
            return False
        wanted = self.settings.min_windows
        count = len(self.reservoir)
        if len(self.reservoir.devices()) < self.settings.min_devices:
            wanted *= 2
        if self.settings.warm_start_windows and not self.warm_started:
            wanted = max(wanted, self.settings.warm_start_patience)
        return count >= wanted

    def step(self) -> RefineReport:
        """One optimiser step on temporal pairs of all devices.

        Features train the whole encoder, a crossing only the blocks above its cut. Up to half of the pairs are windows
        that `ask`ed, and the report carries their gradients. A batch whose loss or gradients are not finite changes
        nothing and is counted in `bad_batches`; windows that cause it are dropped.
        """
        options = self.settings
        wanted = options.batch_windows // 2
        asked = self.asked.pairs(self.reservoir, self.random, wanted // 2, options) if len(self.asked) else []
        pairs = asked + self.reservoir.pairs(
            self.random, wanted - len(asked),
            min_gap=options.positive_min_gap, max_gap=options.positive_max_gap, decay=options.positive_decay,
        )  # fmt: skip
        if len(pairs) < 2:
            return self._skip(f"got {len(pairs)} pairs of neighbouring windows, expected at least 2", 2 * len(pairs), 0)
        batch = [first for first, _ in pairs] + [second for _, second in pairs]
        devices = [item.device for item in batch]
        frames = np.array([item.window for item in batch], dtype=np.int64)
        targets = frozen_targets(self.teacher, batch) if options.needs_targets else None
        self.optimiser.zero_grad(set_to_none=True)
        leaves = {row: crossing_leaf(batch[row], next(self.encoder.parameters()).device) for row in range(len(asked))}
        z = embed_with_leaves(self.encoder, batch, leaves)
        of_pairs = task_loss(z, targets, frames, devices, options)
        task = of_pairs.total
        if options.label_weight and any(item.label for item in batch):
            task = task + options.label_weight * label_loss(z, label_numbers(batch), options.temperature)
        nearby = None
        if options.loss.version == "v2":
            nearby = self.buffer.graph(frames, devices, options.loss.neighbour_count)
        loss = hybrid_loss(task, z, frames, devices, options.loss, self.generator, nearby)
        different = len(set(devices))
        if not bool(torch.isfinite(loss.total)):
            self._drop_bad(batch, z, targets)
            return self._skip(f"got loss {loss.total.item()}, expected a finite number", len(batch), different)
        loss.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), options.gradient_norm)
        if not bool(torch.isfinite(norm)):
            return self._skip("got a gradient with NaN or infinity, expected finite numbers", len(batch), different)
        returned = split_gradients(batch, leaves)
        self.optimiser.step()
        self.steps += 1
        self.steps_since_publish += 1
        self.samples_since_publish += len(batch)
        self.windows_drawn += len(batch)
        return RefineReport(
            self.steps, loss.total.item(), loss.task.item(), of_pairs.target.item(), loss.wasserstein.item(),
            loss.laplacian.item(), effective_rank(z.detach().cpu().numpy()), len(batch), different,
            gradients=returned,
        )  # fmt: skip

    def warm_start(self) -> bool:
        """Fits the readout's projection (half-whitened PCA), exits and bottlenecks to the collected windows, once.

        False until `warm_start_windows` full-resolution windows are there, and after it was done. The next revision
        breaks the embedding space; what was collected in the old one is dropped, features stay.
        """
        wanted = self.settings.warm_start_windows
        if self.warm_started or not wanted:
            return False
        windows = full_resolution(self.reservoir.items(), max(wanted, 1024))
        if len(windows) < wanted:
            return False
        fit_projection(self.encoder, windows, int(self.random.integers(2**31)))
        fit_exits(self.encoder, windows)
        fit_reduced(self.encoder, windows)
        fit_bottlenecks(self.encoder, windows)
        self.warm_started = self.breaks_space = True
        self.space += 1
        self.teacher = frozen_copy(self.encoder)
        self.optimiser = self._new_optimiser()
        self.reservoir.drop(lambda item: item.block > 0)
        self.asked.clear()
        self._forget_targets()
        self._restart_statistics()
        return True

    def publish(self) -> Published:
        """Makes the master weights a revision: merges what devices learned, refits exits and bottlenecks, packs both.

        Without anything new, or when the embeddings have collapsed (then the master goes back to the last revision),
        the last revision comes again, with the reason in `note`.
        """
        last = self.lineage.latest
        own = encoder_weights(self.encoder)
        merged = self.local.apply(last.weights, own, self.samples_since_publish)
        if not (self.steps_since_publish or merged.devices or self.breaks_space):
            return self._again("nothing was learned since")
        if merged.devices:
            load_weights(self.encoder, merged.weights)
        windows = full_resolution(self.reservoir.items(), 256)
        rank = math.nan
        if len(windows):
            rank = effective_rank(embed_features(self.encoder, windows))
            if not self.breaks_space:
                before = effective_rank(embed_features(self.known_encoder(last.revision), windows))
                if not rank >= self.settings.collapse_share * before:
                    return self._roll_back(last, f"effective rank fell from {before:.1f} to {rank:.1f}")
            if self.warm_started and len(windows) >= 64:
                fit_exits(self.encoder, windows)
                fit_reduced(self.encoder, windows)
                fit_bottlenecks(self.encoder, windows)
        new = encoder_weights(self.encoder)
        if not all(np.isfinite(array).all() for array in new.values()):
            return self._roll_back(last, "weights became NaN or infinite")
        breaks = self.breaks_space
        delta: bytes | None = None
        if breaks:
            full, weights = pack_full(new, "fp16")
        else:
            delta, weights = make_delta(last.weights, new)
            full, weights = pack_full(weights, "fp32")
        revision = revision_of(weights)
        if revision == last.revision:
            self.steps_since_publish = self.samples_since_publish = 0
            return self._again("the change is smaller than its quantisation")
        self.lineage.add(Known(revision, weights, self.space))
        self.breaks_space = False
        self.steps_since_publish = self.samples_since_publish = 0
        aligned = self.alignment()
        if breaks:
            self._seed_statistics()
        base = None if breaks else last.revision
        return Published(revision, base, weights, delta, full, breaks, rank, merged.devices, alignment=aligned)

    def alignment(self) -> Alignment | None:
        """How far apart the last embeddings of the devices heard last are; None with fewer than two devices."""
        recent = self.buffer.devices()[-ALIGNED_DEVICES:]
        found = device_alignment({device: self.buffer.window(device).embeddings for device in recent})
        return found if len(found.devices) > 1 else None

    def merge_local(self, device: str, base: str, difference: Weights, samples: int) -> None:
        """Takes a device's local learning relative to revision `base`; it goes into the next revision.

        Raises RevisionError for an unknown base, one of an earlier space, or arrays that do not fit.
        """
        known = self.lineage.get(base)
        if known.space != self.space:
            raise RevisionError(
                f"got learning on {base[:8]}, whose embedding space was replaced; fetch the newest weights"
            )
        self.local.add(device, known.weights, difference, samples, self.lineage.staleness(base))

    def snapshot(self) -> bytes:
        """Everything, as safetensors bytes; `restore` continues exactly."""
        from streamsplit.refinement.snapshot import pack_refiner

        return pack_refiner(self)

    def restore(self, data: bytes) -> None:
        """Takes a snapshot of a refiner of the same encoder; raises CheckpointError, changing nothing, if it is bad."""
        from streamsplit.refinement.snapshot import unpack_refiner

        unpack_refiner(self, data)

    def _new_optimiser(self) -> torch.optim.Adam:
        return torch.optim.Adam(self.encoder.parameters(), lr=self.settings.learning_rate)

    def _forget_targets(self) -> None:
        for item in self.reservoir.items():
            item.target = None

    def _restart_statistics(self) -> None:
        self.buffer.clear()
        self.mixture.clear()
        self.prototypes = Prototypes(self.settings.prototypes, self.encoder.embedding_dim, seed=self.space)
        self.local.clear()

    def _seed_statistics(self) -> None:
        """Starts mixture and prototypes of a new space from the collected windows, so that they are not empty."""
        windows = full_resolution(self.reservoir.items(), 512)
        if len(windows):
            z = embed_features(self.known_encoder(self.revision), windows)
            z = z[self.random.permutation(len(z))]
            self.mixture.observe_batch(z)
            self.prototypes.observe(z)

    def _drop_bad(self, batch: list[StoredWindow], z: Tensor, targets: Tensor | None) -> None:
        """Takes windows out whose embedding is not finite: they would spoil every batch that they are drawn into."""
        finite = torch.isfinite(z).all(dim=1)
        if targets is not None:
            finite = finite & torch.isfinite(targets).all(dim=1)
        bad = {id(item) for item, good in zip(batch, finite.tolist(), strict=True) if not good}
        self.reservoir.drop(lambda item: id(item) in bad)

    def _skip(self, reason: str, samples: int, devices: int) -> RefineReport:
        self.optimiser.zero_grad(set_to_none=True)
        if samples >= 4:
            self.bad_batches += 1
        nothing = math.nan
        return RefineReport(self.steps, nothing, nothing, nothing, nothing, nothing, nothing, samples, devices, reason)

    def _again(self, note: str) -> Published:
        last = self.lineage.latest
        full, _ = pack_full(last.weights, "fp32")
        return Published(last.revision, None, last.weights, None, full, False, math.nan, 0, note)

    def _roll_back(self, last: Known, reason: str) -> Published:
        if last.space == self.space:
            load_weights(self.encoder, last.weights)
        self.optimiser = self._new_optimiser()
        self.steps_since_publish = self.samples_since_publish = 0
        return self._again(reason)
