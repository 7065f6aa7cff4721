"""What computes on the device: the learner with the shared encoder, or nothing but a memory of what the server says."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from streamsplit.edge.settings import EdgeSettings
from streamsplit.errors import CutError, MissingExtraError, ProtocolError, RevisionError
from streamsplit.learning.mixture import GaussianMixture
from streamsplit.splitting.cut import Cut
from streamsplit.weights.delta import Packed, apply_delta, make_delta
from streamsplit.weights.revision import Weights, revision_of
from streamsplit.wire.media import Encoding
from streamsplit.wire.messages import Gmm, Prototypes

if TYPE_CHECKING:
    from streamsplit.encoders.bottleneck import Bottleneck
    from streamsplit.encoders.crossing import Crossing
    from streamsplit.learning.learner import EdgeLearner


log = logging.getLogger(__name__)
FLEET_WEIGHT = 0.3  # of the server's mixture in the device's memory, at each synchronisation


class Forward(NamedTuple):
    """A window after block k on the device."""

    crossing: Crossing | None  # None without an encoder
    z: np.ndarray | None  # [d], at k = L only
    uncertainty: float  # nats, from the embedding or the early exit; nan where the device cannot know
    early: np.ndarray | None = None  # [d], the early exit's embedding, at k < L with an encoder


class Learned(NamedTuple):
    """One mini-batch."""

    loss: float
    steps: int  # optimiser steps so far
    effective_rank: float
    sigma2: float  # variance of the mini-batch gradient; nan before the first step


class DeviceModel(Protocol):
    """What the pipeline asks of a model; every method may be called from any thread."""

    name: str  # of the encoder; "" without one
    bottlenecks: tuple[int, ...]  # blocks that carry one

    @property
    def revision(self) -> str: ...
    @property
    def held_blocks(self) -> int: ...  # blocks 1..n whose weights are here; -1: all there are
    @property
    def room_blocks(self) -> int: ...  # blocks 1..n whose weights there is room for; -1: for all
    @property
    def received_bytes(self) -> int: ...  # on sockets of its own
    def reach(self, k: int) -> int: ...  # the deepest block up to k that a window can be run to now
    def ready_for(self, cut: Cut) -> bool: ...
    def bottleneck(self, k: int) -> Bottleneck: ...
    def forward_to(self, features: np.ndarray, k: int) -> Forward: ...
    def finish(self, crossing: Crossing, k: int, features: np.ndarray) -> Forward: ...
    def remember(self, features: np.ndarray, z: np.ndarray | None, index: int, *, continuous: bool) -> None: ...
    def result(self, z: np.ndarray, index: int) -> None: ...
    def adopt_mixture(self, message: Gmm) -> None: ...
    def adopt_prototypes(self, message: Prototypes) -> bool: ...
    def fit_memory(self, free_bytes: float) -> None: ...
    def base_weights(self) -> Weights: ...
    def adopt(self, weights: Weights, revision: str, *, breaks_space: bool) -> None: ...
    def close(self) -> None: ...


class NoEncoder:
    """A device without an encoder: windows cross before the first block, results feed a mixture memory."""

    name = ""
    revision = ""
    bottlenecks: tuple[int, ...] = ()
    held_blocks = room_blocks = -1
    received_bytes = 0

    def __init__(self, settings: EdgeSettings) -> None:
        self._mixture = GaussianMixture(settings.learner.components, settings.encoder.embedding_dim)
        self._lock = threading.Lock()
        self._last = float("nan")

    def reach(self, k: int) -> int:
        """Nothing is missing here."""
        return k

    def ready_for(self, cut: Cut) -> bool:
        """Block 0 only."""
        return cut.block == 0

    def bottleneck(self, k: int) -> Bottleneck:
        """None here."""
        raise CutError(f"got a bottleneck cut at block {k} on a device without an encoder, expected one at block 0")

    def forward_to(self, features: np.ndarray, k: int) -> Forward:
        """Block 0 only; the uncertainty is that of the last result."""
        if k != 0:
            raise CutError(f"got block {k} on a device without an encoder, expected 0")
        return Forward(None, None, self._last)

    def finish(self, crossing: Crossing, k: int, features: np.ndarray) -> Forward:
        """Never possible here."""
        raise CutError("this device has no encoder to finish a window with")

    def remember(self, features: np.ndarray, z: np.ndarray | None, index: int, *, continuous: bool) -> None:
        """Nothing learns here."""

    def result(self, z: np.ndarray, index: int) -> None:
        """The server's embedding [d] of a window."""
        with self._lock:
            self._last = self._mixture.entropy(z) if self._mixture.ready else float("nan")
            self._mixture.observe(z)

    def base_weights(self) -> Weights:
        """Never asked for here."""
        raise RevisionError("this device has no encoder, so it has no weights")

    def adopt(self, weights: Weights, revision: str, *, breaks_space: bool) -> None:
        """Never asked for here."""
        raise RevisionError("this device has no encoder to adopt weights for")

    def adopt_mixture(self, message: Gmm) -> None:
        """Takes over the server's mixture."""
        mixture = GaussianMixture.from_bytes(message.data, message.components, message.dim)
        with self._lock:
            self._mixture = mixture

    def adopt_prototypes(self, message: Prototypes) -> bool:
        """Never asked for here: v1's uncertainty needs an encoder."""
        return False

    def fit_memory(self, free_bytes: float) -> None:
        """The mixture's size never changes."""

    def close(self) -> None:
        """Holds nothing open."""


def make_model(settings: EdgeSettings) -> DeviceModel:
    """The model that `settings` ask for; without torch one without an encoder, said in the log.

    Raises MissingExtraError where nothing else can be done without an encoder: splitting is off.
    """
    if not settings.encoder.enabled:
        return NoEncoder(settings)
    try:
        if settings.weights.streamed:
            from streamsplit.edge.streamed_model import StreamedBlocksModel

            return StreamedBlocksModel(settings)
        return EncoderModel(settings)
    except (MissingExtraError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != "torch":
            raise
        if not settings.splitting.enabled:
            raise MissingExtraError("keeping everything on the device", "learn", str(error)) from error
        log.warning("no encoder on this device (torch is not installed): windows cross before the first block")
        return NoEncoder(settings)


class EncoderModel:
    """The shared encoder with its learner, behind one lock: inference and learning take turns, a mini-batch at a time.

    Everything that crosses is computed with the momentum (key) encoder; learning moves the query encoder.
    """

    held_blocks = room_blocks = -1
    received_bytes = 0

    def __init__(self, settings: EdgeSettings) -> None:
        import torch

        from streamsplit.learning.learner import EdgeLearner
        from streamsplit.weights.pretrained import start_encoder

        torch.set_num_threads(settings.device.threads)
        encoder = start_encoder(settings.encoder)
        self.name = settings.encoder.name
        self.num_blocks = encoder.num_blocks
        self.bottlenecks = tuple(encoder.bottlenecks)
        self._learner: EdgeLearner = EdgeLearner(encoder, settings.learner, seed=settings.training.seed)
        self._revision = revision_of(self._learner.base)
        self._lock = threading.RLock()
        self._learned_before = 0  # windows learned from when the revision was adopted
        self._early_prototypes: Prototypes | None = None  # of a revision that is not adopted yet
        self._offered: tuple[str, bytes] | None = None  # learning as it was last packed: its revision, its delta
        self._taken: bytes | None = None  # the delta on the present revision that the server holds
        self._no_grad = torch.no_grad

    @property
    def revision(self) -> str:
        """Hex revision that was adopted last; local learning is on top of it."""
        return self._revision

    @property
    def learner(self) -> EdgeLearner:
        """The learner itself, for evaluation after a run."""
        return self._learner

    def reach(self, k: int) -> int:
        """All blocks are here."""
        return k

    def close(self) -> None:
        """Holds nothing open."""

    def ready_for(self, cut: Cut) -> bool:
        """Whether the present weights can do a cut: its bottleneck, or the early exit's head, must be fitted."""
        with self._lock:
            key = self._learner.key
            if cut.encoding is Encoding.BOTTLENECK_INT8:
                bottleneck = key.bottlenecks.get(cut.block)
                return bottleneck is not None and bottleneck.fitted
            return cut.encoding is not Encoding.EXIT_FP16 or key.exit_fitted(cut.block)

    def bottleneck(self, k: int) -> Bottleneck:
        """What a map after block k is narrowed by; raises CutError where the encoder has none."""
        return self._learner.key.bottlenecks[k]

    def forward_to(self, features: np.ndarray, k: int) -> Forward:
        """Blocks 1..k of the key encoder; the uncertainty comes from the embedding, before the last block from the
        early exit. v1's costs the k blocks once more, for an augmented copy."""
        with self._lock, self._no_grad():
            crossing = self._learner.encode_to(features, k)
            if k == self.num_blocks:
                return self._embedded(crossing.h, features)
            early = self._learner.key.exit_embedding(crossing, k)[0].numpy()
            return Forward(crossing, None, self._learner.uncertainty(early, features, k), early)

    def finish(self, crossing: Crossing, k: int, features: np.ndarray) -> Forward:
        """Blocks k+1..L for a window [f, t] that crosses as an embedding after all."""
        with self._lock, self._no_grad():
            return self._embedded(self._learner.key.forward_from(crossing, k), features)

    def remember(self, features: np.ndarray, z: np.ndarray | None, index: int, *, continuous: bool) -> None:
        """Puts a window into the shuffle buffer, and its embedding, if computed here, into the memory."""
        with self._lock:
            self._learner.remember(features, z=z, index=index, continuous=continuous)

    def result(self, z: np.ndarray, index: int) -> None:
        """The server's embedding [d] of a window that was not embedded here."""
        if z.shape != (self._learner.key.embedding_dim,) or not np.isfinite(z).all():
            raise CutError(f"got an embedding of shape {z.shape}, expected [{self._learner.key.embedding_dim}] finite")
        with self._lock:
            self._learner.hold(z, index)

    @property
    def space(self) -> int:
        """Number of the embedding space; another one means that earlier embeddings and gradients do not compare."""
        return self._learner.space

    @property
    def learns(self) -> bool:
        """Whether learning has begun."""
        return self._learner.target.ready

    def take_gradient(self, features: np.ndarray, k: int, gradient: Crossing, space: int, weight: float) -> bool:
        """Carries gradients at the cut after block k back through the query encoder, for windows [n, f, t].

        They go into the optimiser step that is under way. False, without doing anything, if the space is no longer
        the one they were asked for in; raises EncoderError if they do not fit.
        """
        with self._lock:
            if space != self._learner.space:
                return False
            self._learner.take_gradient(features, k, gradient, weight)
            return True

    def learn(self, cpu: float, memory: float = 0.0) -> Learned | None:
        """One mini-batch under these loads (0..1); None before learning has begun.

        Raises EncoderError when the loss is not finite.
        """
        with self._lock:
            learner = self._learner
            loss = learner.learn(cpu_load=cpu, memory_load=memory)
            sigma2 = float("nan") if learner.sigma2 is None else learner.sigma2
            return None if loss is None else Learned(loss, learner.steps, learner.effective_rank, sigma2)

    def adopt_mixture(self, message: Gmm) -> None:
        """Blends the fleet's mixture into the memory's, where both are of the same revision and kind."""
        fleet = GaussianMixture.from_bytes(message.data, message.components, message.dim)
        with self._lock:
            own = self._learner.memory.mixture
            if message.revision == self._revision and own.components == fleet.components:
                own.merge(fleet, FLEET_WEIGHT)

    def adopt_prototypes(self, message: Prototypes) -> bool:
        """The server's centres for v1's uncertainty; those of a revision to come wait for it.

        True where they are the first of their space: uncertainties before and after do not compare. Raises
        ProtocolError and ConfigError, before any change, if they do not fit.
        """
        dim = self._learner.key.embedding_dim
        expected = 2 * message.count * message.dim
        if message.dim != dim or not message.count or len(message.data) != expected:
            got = f"{message.count} prototypes of {message.dim} numbers in {len(message.data)} bytes"
            raise ProtocolError("bad_message", f"got {got}, expected at least one of {dim} as fp16")
        with self._lock:
            if message.revision != self._revision:
                self._early_prototypes = message
                return False
            self._early_prototypes = None
            measure = self._learner.prototypes
            first = not len(measure.prototypes)
            measure.set_prototypes(np.frombuffer(message.data, "<f2").astype(np.float32).reshape(-1, dim))
            return first

    def fit_memory(self, free_bytes: float) -> None:
        """Lets the memory of negatives grow or shrink with free memory (v1's bank)."""
        with self._lock:
            self._learner.memory.fit(free_bytes)

    def base_weights(self) -> Weights:
        """The weights of the adopted revision."""
        return self._learner.base

    def adopt(self, weights: Weights, revision: str, *, breaks_space: bool) -> None:
        """Takes over a server revision, local learning on top unless it breaks the space; raises RevisionError.

        What the server has taken of that learning is not put on top: it comes in revisions, averaged with others',
        and would otherwise be merged again and again.
        """
        with self._lock:
            since = None if self._taken is None or breaks_space else apply_delta(self._learner.base, self._taken)
            self._learner.adopt(weights, base=since, breaks_space=breaks_space)
            self._offered = self._taken = None
            self._revision = revision
            self._learned_before = self._learner.windows_learned
            early = self._early_prototypes
            if early is not None and early.revision == revision:
                self.adopt_prototypes(early)

    def local_learning(self) -> tuple[Packed, str, str, int] | None:
        """(delta, revision that results, base, windows learned from) since the last revision; None without any."""
        with self._lock:
            difference = self._learner.local_difference()
            base, revision = self._learner.base, self._revision
            samples = self._learner.windows_learned - self._learned_before
        if difference is None or samples < 1:
            return None
        packed = make_delta(base, {name: base[name] + change for name, change in difference.items()})
        result = revision_of(packed.result)
        with self._lock:
            if revision == self._revision:
                self._offered = result, packed.payload
        return packed, result, revision, samples

    def learning_taken(self, revision: str) -> None:
        """The server holds all of the learning that was packed as `revision`."""
        with self._lock:
            if self._offered is not None and self._offered[0] == revision:
                self._taken = self._offered[1]

    def snapshot(self) -> bytes:
        """The learner's exact state."""
        with self._lock:
            return self._learner.snapshot()

    def restore(self, data: bytes) -> None:
        """Goes on from a snapshot; raises CheckpointError, before any change, if it does not fit."""
        with self._lock:
            self._learner.restore(data)
            self._offered = self._taken = None
            self._revision = revision_of(self._learner.base)
            self._learned_before = self._learner.windows_learned

    def _embedded(self, h: Any, features: np.ndarray | None) -> Forward:
        z = h[0].numpy()
        return Forward(None, z, self._learner.uncertainty(z, features))
