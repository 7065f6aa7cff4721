"""EdgeLearner: learns from a stream one window at a time, in bounded memory."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamsplit.audio.augment import Augmenter, AugmentLevel
from streamsplit.encoders.base import BANDS, SplitEncoder
from streamsplit.encoders.crossing import Crossing
from streamsplit.encoders.projection import fit_exits, fit_projection, fit_reduced
from streamsplit.errors import CheckpointError, EncoderError
from streamsplit.learning import snapshot
from streamsplit.learning.collapse import CollapseWatch
from streamsplit.learning.context import ContextUncertainty
from streamsplit.learning.copies import EncoderCopies
from streamsplit.learning.heap import trim_heap
from streamsplit.learning.loss import StreamLoss
from streamsplit.learning.memory import NegativeMemory, make_memory
from streamsplit.learning.rank import RunningRank
from streamsplit.learning.settings import LearnerSettings
from streamsplit.learning.shuffle import ShuffleBuffer
from streamsplit.learning.slots import SlotCache, readout_cache
from streamsplit.learning.target import CrossWindowTarget
from streamsplit.learning.theorem import GradientVariance
from streamsplit.learning.uncertainty import PrototypeUncertainty
from streamsplit.learning.updates import Updates
from streamsplit.weights.revision import Weights

__all__ = ["EdgeLearner", "LearnerSettings", "Observed"]

Array = NDArray[np.float32]


class Observed(NamedTuple):
    """What one window gave."""

    embedding: Array  # [d] from the key encoder
    uncertainty: float
    loss: float | None  # of the last optimiser step's mini-batches, None when no step happened now
    steps: int  # optimiser steps so far
    effective_rank: float


class EdgeLearner:
    """Streaming contrastive learning (v1, v2) around one split encoder.

    The given encoder becomes the query encoder and is moved by learning; inference and everything uplinked use the
    key encoder, its moving average. Nothing is learned before `warm_start_windows` windows are in the buffer; then
    the projection is started from them (unless a revision that broke the space came first, or warm_start is off).
    `space` counts how often embeddings stopped being comparable with earlier ones.
    """

    def __init__(self, encoder: SplitEncoder, settings: LearnerSettings | None = None, seed: int = 0) -> None:
        self.settings = settings or LearnerSettings()
        self.seed = seed
        frozen = self.settings.trained == "readouts"
        self._copies = EncoderCopies(encoder, blocks_learn=not frozen)
        self.query, self.key = encoder, self._copies.key
        self.memory: NegativeMemory = make_memory(self.settings, encoder.embedding_dim, seed)
        self.buffer = ShuffleBuffer(self.settings.buffer_windows, self.settings.run_windows)
        self.target = CrossWindowTarget(encoder.embedding_dim)
        self.rank = RunningRank(encoder.embedding_dim)
        self.heard = RunningRank(self.target.dim)  # of the fixed target: how much the sound itself varies
        self.collapse = CollapseWatch(
            self.settings.collapse
        )  # of the rank against that of what is heard, both about the origin
        self.prototypes = PrototypeUncertainty(encoder.embedding_dim)
        self.context = ContextUncertainty(encoder.embedding_dim) if self.settings.uncertainty == "context" else None
        self.space = 0
        self.started = not self.settings.warm_start
        self._rng = np.random.default_rng(seed)
        self._augmenter = Augmenter(rng=self._rng)
        self._updates = Updates(self.query, self.target, self.settings)
        capacity = self.settings.buffer_windows
        self._readouts = readout_cache(self.key, capacity) if frozen else None
        self._known: SlotCache | None = None  # what is predicted, unless it follows from the readouts
        if self.settings.target == "statistics":
            self._known = SlotCache(capacity, self.target.dim, lambda window: self.target(window[None])[0])
        elif not frozen:
            self._known = SlotCache(capacity, encoder.embedding_dim, self._anchored)
        self._loss = StreamLoss(
            self._copies, self.memory, self.target, self.prototypes, self._augmenter, self.settings,
            self._known, self._readouts,
        )  # fmt: skip

    # ---- inference (key encoder) ----

    @torch.no_grad()
    def encode_to(self, features: Array, k: int) -> Crossing:
        """What crosses after block k for one window [f, t], batch 1."""
        return self.key.forward_to(_as_batch(features), k)

    @torch.no_grad()
    def embed(self, features: Array) -> Array:
        """Embedding [d] of one window [f, t]."""
        z: Array = self.key(_as_batch(features))[0].numpy()
        return z

    @torch.no_grad()
    def uncertainty(self, z: Array, features: Array | None = None, k: int | None = None) -> float:
        """How unsure the device is about a window.

        v2: entropy in nats over the memory's components, log C while it is cold; see GaussianMixture.entropy.
        v1: see PrototypeUncertainty; its first part needs the window's features. `z` is then the early exit after block
        `k` (None: the embedding), and the augmented copy is computed as far. context: see ContextUncertainty.
        """
        if self.context is not None:
            return self.context.value(z)
        if self.settings.uncertainty == "v2":
            return self.memory.mixture.entropy(z, self.settings.entropy_temperature)
        other: Array | None = None
        if features is not None:
            k = self.key.num_blocks if k is None else k
            augmented = self._augmenter.features(features, AugmentLevel.STANDARD)
            other = self.key.exit_embedding(self.encode_to(augmented, k), k)[0].numpy()
        return self.prototypes.value(self.prototypes.components(z, other, self.memory.mixture.live_means))

    @property
    def base(self) -> Weights:
        """The weights of the revision adopted last (the encoder's own before the first); not to be changed."""
        return self._copies.base

    @property
    def effective_rank(self) -> float:
        """Directions that recent embeddings use, 1..d; a fall toward 1 is collapse. 0 before 16 windows."""
        return self.rank.value

    @property
    def steps(self) -> int:
        """Optimiser steps so far."""
        return self._updates.steps

    @property
    def windows_learned(self) -> int:
        """Anchors of all mini-batches so far."""
        return self._updates.windows

    @property
    def last_loss(self) -> float | None:
        """Mean over the last optimiser step's mini-batches, None before the first step."""
        return self._updates.last_loss

    @property
    def variance(self) -> GradientVariance:
        """The mini-batch gradient's variance, with its trace over the run."""
        return self._updates.variance

    @property
    def sigma2(self) -> float | None:
        """Variance of the mini-batch gradient (v1's theorem), None before the first step."""
        return self.variance.sigma2

    # ---- learning (query encoder) ----

    def remember(
        self, features: Array, *, z: Array | None = None, index: int, now_ms: float = 0.0, continuous: bool = True
    ) -> None:
        """Puts one window [f, t] into the shuffle buffer, and its embedding, where there is one, into the memory.

        `z` may come from the device's own forward pass or from a RESULT. continuous=False where the window does not
        follow the one before (new clip, gap). `now_ms` is not needed: distances in time are counted in windows.
        """
        slot = self.buffer.add(features, index, self._rng, continuous=continuous)
        for cache in self._caches:
            cache.forget(slot)
        if z is not None:
            self.hold(z, index)
        if not self.target.ready and len(self.buffer) >= self.settings.warm_start_windows:
            self._start()
            trim_heap()
        elif self.target.ready:
            self._watch(features, index)

    def hold(self, z: Array, index: int) -> None:
        """Takes the embedding [d] of window `index` into everything that remembers embeddings."""
        self.memory.add(z, index)
        self.rank.observe(np.asarray(z, np.float32))
        if self.context is not None:
            self.context.observe(z, index)

    def _watch(self, features: Array, index: int) -> None:
        self.heard.observe(self.target(np.asarray(features, np.float32)[None])[0])
        if self.rank.known and self.heard.known:
            self.collapse.observe(index, self.rank.about_origin, self.heard.about_origin)

    def learn(self, now_ms: float = 0.0, cpu_load: float = 0.0, memory_load: float = 0.0) -> float | None:
        """One mini-batch from the shuffle buffer; an optimiser step after every `accumulate` of them.

        Gives the mini-batch's loss, or None before learning has begun. `cpu_load` in 0..1 slows learning above 0.8;
        with augment 'auto', both loads choose the level.
        """
        if not self.target.ready:
            return None
        s = self.settings
        batch = self.buffer.draw(
            s.batch_windows, self._rng, decay=s.positive_decay, reach=s.positive_reach, gap=s.negative_gap
        )
        if batch is None:
            return None
        loss = self._loss(batch, self._loss.level(cpu_load, memory_load), self._rng)
        if self._updates.add(loss, len(batch.times), cpu_load):
            self._copies.follow(s.momentum)
        value = float(loss.detach())
        del loss, batch
        trim_heap()  # a millisecond; a mini-batch leaves ten megabytes behind
        return value

    def take_gradient(self, features: Array, k: int, gradient: Crossing, weight: float = 1.0) -> None:
        """Carries a server's gradients at the cut after block k back through blocks 1..k, for windows [n, f, t].

        They join the optimiser step under way, each with `weight` times the say of one window of its mini-batches.
        Raises EncoderError if they do not fit.
        """
        share = weight / (self.settings.batch_windows * self.settings.accumulate)
        self._updates.returned.add(self.query, self._updates.parameters, features, k, gradient, share)

    def observe(
        self,
        features: Array,
        index: int,
        now_ms: float = 0.0,
        learn: bool = True,
        cpu_load: float = 0.0,
        *,
        continuous: bool = True,
    ) -> Observed:
        """Embeds one window [f, t], remembers it and learns one mini-batch."""
        z = self.embed(features)
        uncertainty = self.uncertainty(z, features)
        self.remember(features, z=z, index=index, now_ms=now_ms, continuous=continuous)
        before, loss = self.steps, None
        if learn:
            self.learn(now_ms, cpu_load)
            loss = self.last_loss if self.steps > before else None
        return Observed(z, uncertainty, loss, self.steps, self.effective_rank)

    # ---- starting, and a server's revisions ----

    def _start(self) -> None:
        """Once enough windows are there: the projection's warm start, the frozen target and its predictor."""
        s = self.settings
        pairs = self.buffer.pairs(s.buffer_windows, self._rng, decay=s.positive_decay, reach=s.positive_reach)
        if pairs is None:
            return
        windows = pairs[0]
        if not self.started:
            fit_projection(self.query, windows, self.seed)
            fit_exits(self.query, windows)
            if windows.shape[1] == BANDS:
                fit_reduced(self.query, windows)
            self._copies.start()
            self.started = True
            self._new_space()
        self.target.fit(windows, self.seed)
        self._forget_computed()
        self._hear_anew()
        self._fit_predictor()

    def _new_space(self) -> None:
        """Embeddings do not compare with earlier ones: memories start anew, from the buffer's windows."""
        self.space += 1
        self._updates.restart()
        self.memory.clear()
        self.prototypes.forget_prototypes()
        if self.context is not None:
            self.context.clear()
        self.rank.clear()
        self.collapse.clear()
        for indices, windows in self.buffer.in_order():
            for index, z in zip(indices, self._embed_batch(windows), strict=True):
                self.hold(z, int(index))

    def _hear_anew(self) -> None:
        self.heard.clear()
        if self.target.ready:
            for _, windows in self.buffer.in_order():
                for fixed in self.target(windows):
                    self.heard.observe(fixed)

    def _fit_predictor(self) -> None:
        s = self.settings
        pairs = self.buffer.pairs(s.buffer_windows, self._rng, decay=s.positive_decay, reach=s.positive_reach)
        if pairs is not None:
            windows, others = pairs
            parts = [self._embed_batch(windows[i : i + 32]) for i in range(0, len(windows), 32)]
            self.target.fit_predictor(np.concatenate(parts), others)

    def adopt(self, weights: Weights, *, base: Weights | None = None, breaks_space: bool = False) -> None:
        """Takes over a server revision.

        Local learning since `base` (default: the last adopted revision) is added on top, unless the revision breaks
        the space: then the device starts from the revision as it is. Raises RevisionError, before any change, if the
        weights do not fit.
        """
        for given in (weights, base):
            if given is not None:
                self._copies.check(given)
        self._updates.drop()
        self._copies.adopt(weights, base, breaks_space=breaks_space)
        self._forget_computed()
        if breaks_space:
            self.started = True
            self._new_space()
            if self.target.ready:
                self._fit_predictor()
            trim_heap()

    def local_difference(self) -> Weights | None:
        """What learning changed in the query encoder since the last adopted revision; None when nothing did."""
        return self._copies.difference()

    # ---- snapshots ----

    def snapshot(self) -> bytes:
        """Everything needed to go on exactly: weights, optimiser, memory, buffer, generator, half-done accumulation."""
        arrays = {
            **self._copies.arrays(),
            **snapshot.nest("memory", self.memory.state()),
            **snapshot.nest("buffer", self.buffer.state()),
            **snapshot.nest("target", self.target.state()),
            **snapshot.nest("rank", self.rank.state()),
            **snapshot.nest("heard", self.heard.state()),
            **snapshot.nest("collapse", self.collapse.state()),
            **snapshot.nest("prototypes", self.prototypes.state()),
            **(snapshot.nest("context", self.context.state()) if self.context is not None else {}),
            **self._updates.arrays(),
        }
        record = {
            **self._updates.record(),
            "settings": self.settings.learned_with(), "encoder": self.query.name, "rng": self._rng.bit_generator.state,
            "memory_rng": self.memory.rng_state(), "space": self.space, "started": self.started,
            "changed": self._copies.changed, "seed": self.seed,
        }  # fmt: skip
        return snapshot.seal(arrays, record)

    def restore(self, data: bytes) -> None:
        """Goes on from `snapshot()` of a learner with the same encoder and settings; raises CheckpointError before any
        change if it is not one."""
        arrays, record = snapshot.unseal(data)
        if record.get("encoder") != self.query.name or record.get("settings") != self.settings.learned_with():
            raise CheckpointError(
                f"the snapshot is of a learner with encoder '{record.get('encoder')}' and other settings; "
                "start with the settings it was made with, or delete it"
            )
        self._copies.load(arrays, record["changed"])
        for name in ("memory", "buffer", "target", "rank", "prototypes"):
            getattr(self, name).load_state(snapshot.under(name, arrays))
        if self.context is not None:
            self.context.load_state(snapshot.under("context", arrays))
        if snapshot.under("heard", arrays):
            self.heard.load_state(snapshot.under("heard", arrays))
            self.collapse.load_state(snapshot.under("collapse", arrays))
        else:  # an older snapshot
            self._hear_anew()
            self.collapse.clear()
        self._forget_computed()
        self._updates.load(arrays, record)
        self._rng.bit_generator.state = record["rng"]
        self.memory.load_rng_state(record["memory_rng"])
        self.space, self.started, self.seed = record["space"], record["started"], record["seed"]

    def state_bytes(self) -> int:
        """Bytes this learner holds between two windows: weights, optimiser, memory, buffer, statistics; bounded."""
        held = (self._updates, self.memory, self.buffer, self.target, self.rank, self.heard, self.prototypes)
        context = self.context.state_bytes() if self.context is not None else 0
        caches = sum(cache.state_bytes() for cache in self._caches)
        return self._copies.state_bytes() + context + caches + sum(part.state_bytes() for part in held)

    # ---- inside ----

    @property
    def _caches(self) -> list[SlotCache]:
        return [cache for cache in (self._known, self._readouts) if cache is not None]

    def _forget_computed(self) -> None:
        """What is kept of the buffer's windows was computed with weights, or a target, that have changed."""
        for cache in self._caches:
            cache.clear()

    @torch.no_grad()
    def _anchored(self, window: Array) -> Array:
        z: Array = self._copies.anchor(_as_batch(window))[0].numpy()
        return z

    @torch.no_grad()
    def _embed_batch(self, windows: Array) -> Array:
        z: Array = self.key(torch.from_numpy(windows)).numpy()
        return z


def _as_batch(features: Array) -> Tensor:
    features = np.ascontiguousarray(features, np.float32)
    if not np.isfinite(features).all():
        raise EncoderError("got NaN or infinite features, expected finite log-mel")
    return torch.from_numpy(features).unsqueeze(0)
