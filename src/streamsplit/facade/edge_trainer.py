"""`EdgeTrainer`: the learner of one device, spectrogram by spectrogram, with the research code's names."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamsplit.config import Settings, setting
from streamsplit.encoders.base import SplitEncoder
from streamsplit.errors import CheckpointError, ConfigError
from streamsplit.facade.checkpoint import read_checkpoint, write_checkpoint
from streamsplit.facade.config import torch_device
from streamsplit.facade.edge import memory_size
from streamsplit.facade.server import as_features
from streamsplit.learning.learner import EdgeLearner, LearnerSettings

MINI_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Settings):
    """How `EdgeTrainer` learns; `batch_size` windows an optimiser step, in mini-batches of 8."""

    learning_rate: float = setting(1e-4, low=1e-7, high=1.0)
    temperature: float = setting(0.1, low=0.01, high=2.0)
    momentum: float = setting(0.999, low=0.0, high=0.99999)
    batch_size: int = setting(32, low=2, high=512)
    memory_bank_min_size: int = setting(64, low=1)
    memory_bank_max_size: int = setting(512, low=64, high=512)
    memory: str = setting("bank", choices=("bank", "mixture"))
    consistency_weight: float = setting(0.5, low=0.0)
    warm_start: bool = setting(True)  # fit the readout to the first windows: worth more than many steps
    warm_start_windows: int = setting(64, low=16, high=4096)  # learning begins after so many
    seed: int = setting(0, low=0)

    def check(self) -> None:
        """The range must not be empty."""
        if self.memory_bank_min_size > self.memory_bank_max_size:
            raise ConfigError(
                f"'memory_bank_min_size': got {self.memory_bank_min_size}, allowed <= {self.memory_bank_max_size}"
            )

    @property
    def learner(self) -> LearnerSettings:
        """The core's settings."""
        mini = min(self.batch_size, MINI_BATCH)
        return LearnerSettings(
            memory=self.memory, temperature=self.temperature, momentum=self.momentum,
            learning_rate=self.learning_rate, consistency_weight=self.consistency_weight, batch_windows=mini,
            accumulate=min(max(self.batch_size // mini, 1), 64), bank_entries=self.memory_bank_max_size,
            warm_start=self.warm_start, warm_start_windows=self.warm_start_windows,
            buffer_windows=max(256, self.warm_start_windows),
        )  # fmt: skip


class EdgeTrainer:
    """Learns from spectrograms one at a time, in bounded memory; consecutive calls are consecutive in time."""

    def __init__(self, config: TrainingConfig | None, model: SplitEncoder, device: str = "cpu") -> None:
        """Takes over `model`. Learning on a device runs on its CPU: any other `device` is answered with a warning."""
        self.config = config or TrainingConfig()
        if torch_device(device) != "cpu":
            warnings.warn("EdgeTrainer learns as a device does, on the CPU; ServerTrainer uses CUDA", stacklevel=2)
        self.device = "cpu"
        self.model = model.to(self.device)
        self.learner = EdgeLearner(self.model, self.config.learner, seed=self.config.seed)
        self._windows = 0

    def train_step(self, spectrogram: Tensor | np.ndarray) -> dict[str, Any]:
        """Embeds and remembers one spectrogram [f, t] (at most 100 frames), then learns one mini-batch.

        'loss'['total_loss'] is 0 until `warm_start_windows` spectrograms are there ('learned' is False then): without
        anything to compare with, the loss is 0. Raises EncoderError for a wrong shape or NaN, changing nothing.
        """
        features = as_features(spectrogram)
        z = self.learner.embed(features)
        uncertainty = self.learner.uncertainty(z, features)
        self.learner.remember(features, z=z, index=self._windows)
        self._windows += 1
        loss = self.learner.learn()
        last = self.learner.last_loss
        return {
            "loss": {
                "total_loss": 0.0 if loss is None else loss,
                "step_loss": math.nan if last is None else last,
            },
            "learned": loss is not None,
            "memory_bank_stats": {
                "current_size": memory_size(self.learner),
                "min_size": self.config.memory_bank_min_size,
                "max_size": self.config.memory_bank_max_size,
            },
            "embedding": torch.from_numpy(z),
            "uncertainty": uncertainty,
            "global_step": self.learner.steps,
            "effective_rank": self.learner.effective_rank,
        }

    def get_training_metrics(self) -> dict[str, Any]:
        """Windows seen, optimiser steps, the last step's loss (nan before one), effective rank, bytes held."""
        last = self.learner.last_loss
        return {
            "windows": self._windows,
            "global_step": self.learner.steps,
            "average_loss": math.nan if last is None else last,
            "effective_rank": self.learner.effective_rank,
            "state_bytes": self.learner.state_bytes(),
        }

    def save_checkpoint(self, filepath: str | Path) -> None:
        """Writes everything needed to go on exactly (safetensors, atomic); raises CheckpointError."""
        arrays = {"learner": np.frombuffer(self.learner.snapshot(), np.uint8)}
        write_checkpoint(Path(filepath), "edge-trainer", arrays, {"windows": self._windows})

    def load_checkpoint(self, filepath: str | Path) -> None:
        """Goes on from a checkpoint of the same model and config; raises CheckpointError, changing nothing."""
        arrays, record = read_checkpoint(Path(filepath), "edge-trainer")
        if "learner" not in arrays:
            raise CheckpointError(f"{filepath}: holds no learner")
        self.learner.restore(arrays["learner"].tobytes())
        self._windows = int(record["windows"])
