"""`ServerTrainer`: the server's learning, from embeddings through the refinement head and from spectrograms through
the encoder."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streamsplit.config import Settings, setting
from streamsplit.errors import EncoderError
from streamsplit.facade.checkpoint import read_checkpoint, write_checkpoint
from streamsplit.facade.config import torch_device
from streamsplit.facade.encoders import MobileNetV3ServerEncoder
from streamsplit.facade.server import as_features
from streamsplit.learning.contrastive import prediction_loss
from streamsplit.learning.rank import effective_rank
from streamsplit.refinement.buffer import BufferSettings, TemporalBuffer
from streamsplit.refinement.hybrid import HybridSettings, hybrid_loss
from streamsplit.refinement.refiner import Refiner
from streamsplit.refinement.settings import RefinerSettings
from streamsplit.refinement.task import pair_info_nce
from streamsplit.weights.revision import encoder_weights, load_weights


@dataclass(frozen=True, kw_only=True)
class ServerTrainingConfig(Settings):
    """How `ServerTrainer` learns."""

    learning_rate: float = setting(5e-4, low=1e-7, high=1.0)
    batch_size: int = setting(256, low=4, high=4096)
    sw_projections: int = setting(100, low=1, high=10_000)
    sw_weight: float = setting(0.1, low=0.0)
    laplacian_k_neighbors: int = setting(5, low=1, high=1000)
    laplacian_weight: float = setting(0.01, low=0.0)
    temperature: float = setting(0.2, low=1e-3, high=10.0)
    anchor_weight: float = setting(4.0, low=0.0)  # refined embeddings predict their neighbours' unrefined ones
    temporal_window: int = setting(100, low=2, high=100_000)  # embeddings kept of each device
    warm_start_windows: int = setting(256, low=16, high=4096)  # spectrograms before the encoder's readout is fitted
    min_devices_per_update: int = setting(2, low=1)  # the encoder's; one device alone learns after twice the windows
    seed: int = setting(0, low=0)

    @property
    def loss(self) -> HybridSettings:
        """The hybrid loss that the seeds' names describe."""
        return HybridSettings(
            wasserstein_weight=self.sw_weight, laplacian_weight=self.laplacian_weight,
            projections=self.sw_projections, neighbours=self.laplacian_k_neighbors,
        )  # fmt: skip


class ServerTrainer:
    """Learns while it receives: one optimiser step for each `receive_embeddings` between start and stop."""

    def __init__(
        self, config: ServerTrainingConfig | None, model: MobileNetV3ServerEncoder, device: str = "cpu"
    ) -> None:
        """Takes over `model`; device 'cuda' falls back to the CPU with a warning."""
        self.config = config or ServerTrainingConfig()
        self.device = torch_device(device)
        self.model = model.to(self.device)
        self.training = False
        self.buffer = TemporalBuffer(BufferSettings(frames=self.config.temporal_window))
        self.refiner = Refiner(
            model.encoder,
            RefinerSettings(
                learning_rate=self.config.learning_rate, batch_windows=max(self.config.batch_size // 2 * 2, 4),
                min_devices=self.config.min_devices_per_update, loss=self.config.loss,
                warm_start_windows=self.config.warm_start_windows,
            ),
            seed=self.config.seed,
        )  # fmt: skip
        self._optimiser = torch.optim.Adam(model.head.parameters(), lr=self.config.learning_rate)
        self._generator = torch.Generator().manual_seed(self.config.seed)
        self._next: dict[str, int] = {}
        self._received = 0
        self._steps = 0
        self._loss_sum = 0.0
        self._last: dict[str, float] = {}
        self._lock = threading.Lock()

    async def start_training(self) -> None:
        """From now on what arrives is learned from; what arrived before is kept."""
        self.training = True

    async def stop_training(self) -> None:
        """Arrivals are kept, but not learned from."""
        self.training = False

    async def receive_embeddings(self, device_id: str, embeddings_data: Mapping[str, Any]) -> bool:
        """Takes 'embeddings' [d] or [n, d], in time order or with 'timestamps' (n), and optionally 'spectrograms'
        [n, f, t], from which the encoder itself learns; then makes one step if training was started.

        Raises EncoderError for shapes that do not fit and for NaN; nothing is kept then.
        """
        z, spectrograms = self._checked(embeddings_data)
        return await asyncio.to_thread(self._receive, device_id, z, spectrograms)

    def get_training_metrics(self) -> dict[str, Any]:
        """Steps made, average and last losses (nan before the first step), what is held, effective rank."""
        with self._lock:
            held = [self.buffer.window(device).embeddings for device in self.buffer.devices()]
            stacked = np.concatenate(held) if held else np.zeros((0, self.model.embedding_dim), np.float32)
            return {
                "global_step": self._steps,
                "average_loss": self._loss_sum / self._steps if self._steps else math.nan,
                "loss": dict(self._last),
                "encoder_steps": self.refiner.steps,
                "received_embeddings": self._received,
                "buffered_embeddings": len(self.buffer),
                "active_devices": len(self.buffer.devices()),
                "effective_rank": effective_rank(stacked) if len(stacked) > 1 else math.nan,
                "device": self.device,
            }

    def save_checkpoint(self, filepath: str | Path) -> None:
        """Writes model and progress (safetensors, atomic); raises CheckpointError, what was there stays."""
        with self._lock:
            weights = encoder_weights(self.model)
            arrays = {f"model.{name}": array for name, array in weights.items()}
            arrays["refiner"] = np.frombuffer(self.refiner.snapshot(), np.uint8)
            progress = {
                "steps": self._steps,
                "loss_sum": self._loss_sum,
                "received": self._received,
                "next": self._next,
            }
        write_checkpoint(Path(filepath), "server-trainer", arrays, {"config": self.config.as_dict(), **progress})

    def load_checkpoint(self, filepath: str | Path) -> None:
        """Goes on from a checkpoint of a model of the same shape; raises CheckpointError or RevisionError, changing
        nothing. The temporal buffers of the devices start anew."""
        arrays, progress = read_checkpoint(Path(filepath), "server-trainer")
        with self._lock:
            prefix = "model."
            weights = {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}
            before = encoder_weights(self.model)
            load_weights(self.model, weights)
            try:
                self.refiner.restore(arrays["refiner"].tobytes())
            except Exception:
                load_weights(self.model, before)
                raise
            self._steps, self._loss_sum = int(progress["steps"]), float(progress["loss_sum"])
            self._received, self._next = int(progress["received"]), dict(progress["next"])
            self._optimiser = torch.optim.Adam(self.model.head.parameters(), lr=self.config.learning_rate)
            self.buffer.clear()

    def _checked(self, data: Mapping[str, Any]) -> tuple[np.ndarray, list[np.ndarray]]:
        if "embeddings" not in data:
            raise EncoderError(f"got keys {', '.join(map(str, data)) or 'none'}, expected 'embeddings' among them")
        z = torch.as_tensor(data["embeddings"]).detach().cpu().float().numpy()
        z = z[None] if z.ndim == 1 else z
        if z.ndim != 2 or z.shape[1] != self.model.embedding_dim or not len(z):
            raise EncoderError(f"got embeddings of shape {z.shape}, expected [n, {self.model.embedding_dim}]")
        norms = np.linalg.norm(z, axis=1, keepdims=True)
        if not np.isfinite(norms).all() or not (norms > 0).all():
            raise EncoderError("got an embedding that is zero, NaN or infinite, expected directions")
        order = np.arange(len(z))
        times = data.get("timestamps")
        if times is not None:
            if len(times) != len(z):
                raise EncoderError(f"got {len(times)} timestamps for {len(z)} embeddings, expected as many")
            order = np.argsort(np.asarray(times, float), kind="stable")
        spectrograms = data.get("spectrograms")
        features = [] if spectrograms is None else [as_features(item) for item in spectrograms]
        if features and len(features) != len(z):
            raise EncoderError(f"got {len(features)} spectrograms for {len(z)} embeddings, expected as many")
        return (z / norms)[order], [features[row] for row in order] if features else []

    def _receive(self, device: str, z: np.ndarray, spectrograms: list[np.ndarray]) -> bool:
        with self._lock:
            for row, embedding in enumerate(z):
                frame = self._next.get(device, 0)
                self._next[device] = frame + 1
                self.buffer.add(device, frame, embedding)
                if spectrograms:
                    self.refiner.add(device, frame, features=spectrograms[row])
                self._received += 1
            if self.training:
                if spectrograms:
                    self.refiner.warm_start()
                    if self.refiner.ready():
                        self.refiner.step()
                self._step()
        return True

    def _step(self) -> None:
        """One step of the head on the newest embeddings of all devices, in the hybrid loss."""
        devices = self.buffer.devices()
        share = max(self.config.batch_size // len(devices), 1)
        parts = [(device, self.buffer.window(device)) for device in devices]
        frames = np.concatenate([part.frames[-share:] for _, part in parts])
        names = [device for device, part in parts for _ in part.frames[-share:]]
        held = np.concatenate([part.embeddings[-share:] for _, part in parts])
        z = torch.from_numpy(held).to(self.device)
        refined = self.model.refine(z)
        task = refined.sum() * 0.0
        neighbours = [row for row in range(len(names) - 1) if names[row] == names[row + 1]]
        first = neighbours[::2] if len(neighbours) >= 4 else neighbours
        if first:
            rows = torch.tensor(first, device=self.device)
            one, other = refined[rows], refined[rows + 1]
            both = np.concatenate([frames[first], frames[np.array(first) + 1]])
            owners = [names[row] for row in first] * 2
            if len(first) > 1:
                task = task + pair_info_nce(one, other, both, owners, self.config.temperature, mask_frames=1)
            kept = prediction_loss(torch.cat([one, other]), torch.cat([z[rows + 1], z[rows]]))
            task = task + self.config.anchor_weight * kept
        loss = hybrid_loss(task, refined, frames, names, self.config.loss, self._generator)
        self._optimiser.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        total, of_task, wasserstein, laplacian = (float(part.detach()) for part in loss)
        self._steps += 1
        self._loss_sum += total
        self._last = {
            "total_loss": total, "task_loss": of_task, "sliced_wasserstein": wasserstein, "laplacian": laplacian,
        }  # fmt: skip
