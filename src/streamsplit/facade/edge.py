"""`EdgeModule`: the device's half of `StreamSplitFramework`: a learner with the shared encoder, and what it sends."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamsplit.audio.windows import Window
from streamsplit.edge.payload import Packed, PieceChain, pack_activation, pack_input, pack_result
from streamsplit.edge.readings import HostReadings
from streamsplit.encoders.base import SplitEncoder
from streamsplit.errors import CutError
from streamsplit.facade.config import StreamSplitConfig
from streamsplit.facade.encoders import MobileNetV3EdgeEncoder
from streamsplit.facade.server import as_features
from streamsplit.learning.learner import EdgeLearner, LearnerSettings
from streamsplit.refinement.refiner import Published
from streamsplit.splitting.cut import Cut
from streamsplit.weights.revision import encoder_weights, revision_of, revision_prefix
from streamsplit.wire.media import Encoding, MediaHeader, Resolution, pack_media

HOP_SAMPLES, ANALYSIS_SAMPLES = 160, 400


class EdgeModule:
    """One device: encodes to any cut, learns, and remembers. Calls may come from any task; work is serialised.

    The learner runs on the CPU, as on a device. `warm_start` fits the encoder's readout to the first windows; leave it
    off where a server does that for all devices.
    """

    def __init__(
        self,
        config: StreamSplitConfig | None = None,
        encoder: SplitEncoder | None = None,
        *,
        warm_start: bool = True,
    ) -> None:
        """Takes over `encoder`, or starts from the same weights as a ServerModule of the same config."""
        self.config = config or StreamSplitConfig()
        if encoder is None:
            encoder = MobileNetV3EdgeEncoder(
                self.config.n_mels, self.config.embedding_dim, self.config.width_multiplier, seed=self.config.seed
            )
        self.warm_start = warm_start
        self.num_blocks = encoder.num_blocks
        self.learner = EdgeLearner(encoder, learner_settings(self.config, warm_start), seed=self.config.seed)
        self.revision = revision_of(encoder_weights(encoder))
        self.chain = PieceChain(self.config.window_frames, self.config.stride_frames)
        self.next_window = 0
        self._readings = HostReadings()
        self._lock = threading.Lock()

    async def process(self, spectrogram: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Everything on the device: embedding [d] of a spectrogram [f, t] (at most 100 frames), learned from at once.

        Beside it: uncertainty, loss (nan before learning begins), steps, effective_rank, memory_size, latency (ms).
        """
        return await asyncio.to_thread(self._process, as_features(spectrogram))

    async def process_partial(self, spectrogram: Tensor, split_point: int) -> dict[str, Any]:
        """Blocks 1..split_point on the device; gives what a server goes on from with `process_continuation`.

        'payload' holds the bytes that cross, media header included (INT8; an fp16 embedding after the last block);
        'activations' [c, f, t] and 'partial_embedding' [d] are the same unpacked. The window is
        remembered to learn from.
        """
        return await asyncio.to_thread(self._process_partial, as_features(spectrogram), split_point)

    def get_resource_state(self) -> dict[str, float]:
        """Load of this machine: cpu, memory, battery, thermal, each in [0, 1]."""
        return {name: float(value) for name, value in self._readings()._asdict().items()}

    def adopt(self, published: Published) -> None:
        """Takes over a server's revision; local learning is kept unless the revision breaks the embedding space."""
        with self._lock:
            self.learner.adopt(published.weights, breaks_space=published.breaks_space)
            self.revision = published.revision

    def learn(self) -> float:
        """One mini-batch; its loss, nan before there is enough to learn from."""
        with self._lock:
            loss = self.learner.learn(cpu_load=self._readings().cpu)
        return math.nan if loss is None else loss

    def result(self, z: np.ndarray, window: int) -> None:
        """The server's embedding [d] of a window that was cut: the memory learns from it."""
        with self._lock:
            self.learner.hold(z, window)

    def cross(self, window: Window, cut: Cut, *, alone: bool = False) -> dict[str, Any]:
        """Computes `window` to `cut` and packs it; without a payload where the cut sends nothing. Raises CutError.

        `alone`: it is no part of a stream, so that all of it crosses.
        """
        cut.check(self.num_blocks)
        with self._lock:
            index = self.next_window
            self.next_window += 1
            cut = self._possible(cut)
            crossing = self.learner.encode_to(window.features, cut.block)
            finished = cut.block == self.num_blocks
            z = crossing.h if finished else self.learner.key.exit_embedding(crossing, cut.block)
            embedding = z[0].detach().numpy()
            uncertainty = self.learner.uncertainty(embedding, window.features, cut.block)
            packed: Packed | None = None
            if (finished or cut.encoding is Encoding.EXIT_FP16) and cut.sends:
                packed = pack_result(embedding, cut.encoding)
            elif cut.block == 0:
                new_frames = window.new_frames if alone else self.chain.new_frames(window, cut.encoding)
                packed = pack_input(window, cut.encoding, new_frames)
            elif cut.sends:
                narrowed = cut.encoding is Encoding.BOTTLENECK_INT8
                through = self.learner.key.bottlenecks[cut.block] if narrowed else None
                packed = pack_activation(crossing, cut.encoding, through)
            if alone:
                self.chain.break_off()
            else:
                self.chain.accepted(window, cut)
            self.learner.remember(window.features, z=embedding if finished else None, index=index)
        output: dict[str, Any] = {
            "split_point": cut.block, "encoding": cut.encoding.label, "window": index, "uncertainty": uncertainty,
            "device_id": self.config.device_id, "revision": self.revision, "alone": alone,
            "embedding": torch.from_numpy(embedding) if finished else None,
            "activations": None if finished else crossing.h[0],
            "partial_embedding": None if finished else crossing.partial[0],
        }  # fmt: skip
        if packed is not None:
            output["payload"] = pack_media(self._header(window, index, cut, packed, uncertainty), packed.payload)
            output["frame_type"] = packed.frame_type.name
        return output

    def _possible(self, cut: Cut) -> Cut:
        """The cut, or the plain one of its kind where its bottleneck or early exit is missing or not fitted yet."""
        key = self.learner.key
        if cut.encoding is Encoding.BOTTLENECK_INT8:
            bottleneck = key.bottlenecks.get(cut.block)
            if bottleneck is None or not bottleneck.fitted:
                return cut._replace(encoding=Encoding.INT8)
        if cut.encoding is Encoding.EXIT_FP16 and not key.exit_fitted(cut.block):
            return Cut(self.num_blocks, Encoding.EMBEDDING_FP16)
        return cut

    def _process(self, features: np.ndarray) -> tuple[Tensor, dict[str, Any]]:
        started = time.perf_counter()
        cut = Cut(self.num_blocks, Encoding.NONE)
        output = self.cross(whole_window(features, self.next_window), cut, alone=True)
        latency_ms = (time.perf_counter() - started) * 1000.0
        loss = self.learn()
        return output["embedding"], {
            "uncertainty": output["uncertainty"], "loss": loss, "steps": self.learner.steps,
            "effective_rank": self.learner.effective_rank, "memory_size": memory_size(self.learner),
            "latency": latency_ms,
        }  # fmt: skip

    def _process_partial(self, features: np.ndarray, split_point: int) -> dict[str, Any]:
        if not 0 <= split_point <= self.num_blocks:
            raise CutError(f"got split point {split_point}, expected 0..{self.num_blocks}")
        encoding = (
            Encoding.LOGMEL_INT8 if split_point == 0
            else Encoding.EMBEDDING_FP16 if split_point == self.num_blocks
            else Encoding.INT8
        )  # fmt: skip
        return self.cross(whole_window(features, self.next_window), Cut(split_point, encoding), alone=True)

    def _header(self, window: Window, index: int, cut: Cut, packed: Packed, uncertainty: float) -> MediaHeader:
        return MediaHeader(
            window=index, revision=revision_prefix(self.revision) if cut.block else 0, block=cut.block,
            encoding=cut.encoding, resolution=window.resolution, flags=0, uncertainty=uncertainty,
            new_frames=packed.new_frames, edge_ms=math.nan, skipped=0,
        )  # fmt: skip


def learner_settings(config: StreamSplitConfig, warm_start: bool) -> LearnerSettings:
    """The learner that a facade config describes."""
    return LearnerSettings(
        memory=config.memory, temperature=config.temperature, momentum=config.momentum,
        learning_rate=config.learning_rate, bank_entries=min(max(config.memory_bank_size_max, 64), 512),
        warm_start=warm_start, warm_start_windows=config.warm_start_windows,
        buffer_windows=max(config.warm_start_windows, 256),
    )  # fmt: skip


def memory_size(learner: EdgeLearner) -> int:
    """Embeddings that the memory knows: held (v1) or summarised in the mixture (v2)."""
    from streamsplit.learning.memory import BankMemory

    memory = learner.memory
    return len(memory.bank) if isinstance(memory, BankMemory) else memory.mixture.observations


def whole_window(features: np.ndarray, index: int) -> Window:
    """A spectrogram [f, t] as a window of its own; it has no samples, so it can cross as anything but audio."""
    resolution = Resolution.FULL if features.shape[0] == 128 else Resolution.REDUCED
    frames = features.shape[1] * (1 if resolution is Resolution.FULL else 2)
    silence = np.zeros((frames - 1) * HOP_SAMPLES + ANALYSIS_SAMPLES, np.float32)
    return Window(index, features, silence, resolution, 0.0, frames)
