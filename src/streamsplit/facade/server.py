"""`ServerModule`: completes what a device cut off, remembers it, and learns from it; no network, one process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamsplit.codec.features import unpack_features
from streamsplit.encoders.base import SplitEncoder
from streamsplit.encoders.crossing import Crossing, unpack_crossing
from streamsplit.encoders.embedding_codec import unpack_embedding
from streamsplit.errors import CutError, EncoderError
from streamsplit.facade.config import StreamSplitConfig, torch_device
from streamsplit.facade.encoders import MobileNetV3EdgeEncoder
from streamsplit.learning.settings import LearnerSettings
from streamsplit.refinement.refiner import Published, Refiner, RefineReport
from streamsplit.refinement.settings import RefinerSettings
from streamsplit.server.assembler import Assembler
from streamsplit.server.settings import SignalSettings
from streamsplit.wire.media import Encoding, MediaHeader, unpack_media


class ServerModule:
    """The server's half of `StreamSplitFramework`, usable alone. Calls may come from any task; work is serialised."""

    def __init__(
        self,
        config: StreamSplitConfig | None = None,
        encoder: SplitEncoder | None = None,
        settings: RefinerSettings | None = None,
    ) -> None:
        """Takes over `encoder`, or starts from the same weights as an EdgeModule of the same config."""
        self.config = config or StreamSplitConfig()
        self.device = torch_device(self.config.device)
        if encoder is None:
            encoder = MobileNetV3EdgeEncoder(
                self.config.n_mels, self.config.embedding_dim, self.config.width_multiplier, seed=self.config.seed
            )
        learning = RefinerSettings(
            learning_rate=self.config.server_learning_rate, min_devices=1,
            warm_start_windows=self.config.warm_start_windows,
        )  # fmt: skip
        self.refiner = Refiner(encoder.to(self.device), settings or learning, seed=self.config.seed)
        self._temperature = LearnerSettings().entropy_temperature  # of the uncertainty, as on devices
        self._assemblers: dict[str, Assembler] = {}
        self._next: dict[str, int] = {}
        self._lock = threading.Lock()

    async def process(self, spectrogram: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Everything on the server: embedding [d] of a spectrogram [f, t], and uncertainty, cluster, latency (ms)."""
        return await asyncio.to_thread(self._process, as_features(spectrogram))

    async def process_continuation(self, edge_output: Mapping[str, Any], split_point: int) -> dict[str, Any]:
        """Goes on where a device stopped: what `EdgeModule.process_partial` gave, cut after block `split_point`.

        Block-0 output of a running stream holds the new frames only, and needs the window before it. Gives embedding
        [d], uncertainty, cluster, split_point, latency (ms). Raises CutError, EncoderError or
        RevisionError for what does not fit.
        """
        return await asyncio.to_thread(self.complete, edge_output, split_point)

    async def receive_edge_embedding(self, embedding_data: Mapping[str, Any]) -> bool:
        """Takes a finished embedding: 'embedding' [d], and optionally 'device_id', 'window', 'revision'.

        True where it is used, False where it belongs to an embedding space that was replaced.
        """
        z = torch.as_tensor(_required(embedding_data, "embedding")).detach().cpu().numpy()
        return await asyncio.to_thread(self._take, z, embedding_data)

    def refine(self) -> RefineReport | None:
        """Warm start when due, then one optimiser step; None while there is too little to learn from."""
        with self._lock:
            self.refiner.warm_start()
            return self.refiner.step() if self.refiner.ready() else None

    def publish(self) -> Published:
        """The learned weights as a revision for `EdgeModule.adopt`."""
        with self._lock:
            return self.refiner.publish()

    @property
    def revision(self) -> str:
        """The newest published revision."""
        return self.refiner.revision

    def _process(self, features: np.ndarray) -> tuple[Tensor, dict[str, Any]]:
        started = time.perf_counter()
        with self._lock:
            window = self._window("server", {})
            z = self._complete(features, 0, self.revision)
            self.refiner.add("server", window, features=features, embedding=z, revision=self.revision)
            return torch.from_numpy(z), self._info(z, 0, started)

    def complete(self, edge_output: Mapping[str, Any], split_point: int) -> dict[str, Any]:
        """`process_continuation`, for a thread."""
        started = time.perf_counter()
        media, payload = unpack_media(_required(edge_output, "payload"))
        if media.block != split_point:
            raise CutError(f"got split point {split_point} for a window that was cut after block {media.block}")
        device = str(edge_output.get("device_id", self.config.device_id))
        revision = str(edge_output.get("revision", self.revision))
        with self._lock:
            encoding = Encoding(media.encoding)
            if media.block == self.refiner.encoder.num_blocks or encoding is Encoding.EXIT_FP16:
                z = unpack_embedding(payload)
                z = np.asarray(z / max(float(np.linalg.norm(z)), 1e-12), np.float32)
                self.refiner.add(device, media.window, embedding=z, revision=revision)
            elif media.block == 0:
                features = self._features(device, media, payload, alone=bool(edge_output.get("alone")))
                z = self._complete(features, 0, self.revision)
                self.refiner.add(device, media.window, features=features, embedding=z, revision=self.revision)
            else:
                narrowed = encoding is Encoding.BOTTLENECK_INT8
                through = self.refiner.known_encoder(revision).bottlenecks[media.block] if narrowed else None
                crossing = unpack_crossing(payload, through)
                z = self._complete(crossing, media.block, revision)
                self.refiner.add(
                    device, media.window, crossing=crossing, block=media.block, embedding=z, revision=revision
                )
            return {"embedding": torch.from_numpy(z), "split_point": split_point, **self._info(z, split_point, started)}

    def _take(self, z: np.ndarray, data: Mapping[str, Any]) -> bool:
        z = np.asarray(z, np.float32).reshape(-1)
        norm = float(np.linalg.norm(z))
        if not norm > 0 or not np.isfinite(norm):
            raise EncoderError("got an embedding that is zero, NaN or infinite, expected a direction")
        device = str(data.get("device_id", self.config.device_id))
        with self._lock:
            window = self._window(device, data)
            return self.refiner.add(
                device, window, embedding=z / norm, revision=str(data.get("revision", self.revision))
            )

    def _complete(self, arrived: np.ndarray | Crossing, block: int, revision: str) -> np.ndarray:
        encoder = self.refiner.known_encoder(revision)
        with torch.inference_mode():
            if isinstance(arrived, Crossing):
                crossing = Crossing(arrived.h.to(self.device), arrived.partial.to(self.device))
            else:
                crossing = encoder.forward_to(torch.from_numpy(arrived)[None].to(self.device), 0)
            z: np.ndarray = encoder.forward_from(crossing, block)[0].cpu().numpy()
        return z

    def _features(self, device: str, media: MediaHeader, payload: memoryview, *, alone: bool) -> np.ndarray:
        if alone:  # a spectrogram of its own, outside of any stream
            return unpack_features(bytes(payload))
        assembler = self._assemblers.get(device)
        if assembler is None:
            signal = SignalSettings(window_frames=self.config.window_frames, stride_frames=self.config.stride_frames)
            assembler = self._assemblers[device] = Assembler(signal)
        return assembler.add(media, payload)

    def _window(self, device: str, data: Mapping[str, Any]) -> int:
        window = int(data.get("window", self._next.get(device, 0)))
        self._next[device] = window + 1
        return window

    def _info(self, z: np.ndarray, split_point: int, started: float) -> dict[str, Any]:
        posterior = self.refiner.mixture.posterior(z)
        return {
            "split_point": split_point,
            "uncertainty": self.refiner.mixture.entropy(z, self._temperature),
            "cluster": int(posterior.argmax()) if self.refiner.mixture.ready else -1,
            "revision": self.revision,
            "latency": (time.perf_counter() - started) * 1000.0,
        }


def as_features(spectrogram: Tensor | np.ndarray) -> np.ndarray:
    """Log-mel features [f, t] float32 from a tensor or array [f, t], [1, f, t] or [1, 1, f, t]; raises EncoderError."""
    features = torch.as_tensor(spectrogram).detach().cpu().float().numpy()
    while features.ndim > 2 and features.shape[0] == 1:
        features = features[0]
    if features.ndim != 2 or features.shape[0] not in (64, 128):
        raise EncoderError(f"got a spectrogram of shape {tuple(features.shape)}, expected [128, t] or [64, t]")
    if not np.isfinite(features).all():
        raise EncoderError("got NaN or infinite values in the spectrogram, expected finite ones")
    return np.ascontiguousarray(features)


def _required(data: Mapping[str, Any], name: str) -> Any:
    if name not in data:
        raise CutError(f"got keys {', '.join(map(str, data)) or 'none'}, expected '{name}' among them")
    return data[name]
