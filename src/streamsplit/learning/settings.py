"""Settings of the learner on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streamsplit.config import Settings, section, setting
from streamsplit.errors import ConfigError
from streamsplit.learning.collapse import CollapseSettings


@dataclass(frozen=True, kw_only=True)
class LearnerSettings(Settings):
    """What the device learns with. Where a default is not the papers', measurements decided (docs/design.md)."""

    memory: str = setting("mixture", choices=("mixture", "bank"))  # v2, v1
    uncertainty: str = setting("v2", choices=("v2", "v1", "context"))  # context: see ContextUncertainty
    entropy_temperature: float = setting(0.1, low=0.01, high=10.0)  # v2: see GaussianMixture.entropy
    # memory
    components: int = setting(64, low=2, high=1024)
    mixture_rate: float = setting(0.01, low=1e-4, high=0.5)
    cold_start: int = setting(50, low=2, high=10_000)  # embeddings that seed the mixture
    negatives: int = setting(64, low=0, high=4096)  # virtual or remembered, per anchor
    bank_least: int = setting(64, low=64, high=512)  # entries, however short memory is
    bank_entries: int = setting(512, low=64, high=512)  # at most; see NegativeMemory.fit
    bank_gamma: float = setting(0.99, low=0.5, high=1.0)  # weight of a remembered negative per window of age
    bank_alpha: float = setting(0.5, low=0.0, high=2.0)
    # batches
    batch_windows: int = setting(8, low=2, high=256)
    accumulate: int = setting(4, low=1, high=64)  # mini-batches per optimiser step
    buffer_windows: int = setting(256, low=32, high=4096)  # 25.6 KB each
    run_windows: int = setting(10, low=2, high=64)  # neighbours that stay and leave together
    warm_start: bool = setting(True)  # start the projection from the first windows; off where a server brings it
    warm_start_windows: int = setting(192, low=16, high=4096)  # learning begins after so many
    # loss
    temperature: float = setting(0.1, low=0.01, high=2.0)
    contrast_weight: float = setting(1.0, low=0.0)
    consistency_weight: float = setting(0.0, low=0.0)  # v1: 0.5; measured: costs probe and rank
    target: str = setting("revision", choices=("revision", "statistics"))  # what a window predicts; see StreamLoss
    target_weight: float = setting(2.0, low=0.0)  # of predicting a neighbouring window's
    own_weight: float = setting(2.0, low=0.0)  # of predicting its own: keeps what the start knew
    mask_similarity: float = setting(0.5, low=-1.0, high=1.0)  # windows that the revision finds closer: no negatives
    positive_decay: float = setting(0.5, low=0.0)  # per window: density exp(-decay d) of the positive's distance
    positive_reach: int = setting(8, low=1, high=1000)  # windows
    augment: str = setting("none", choices=("none", "auto", "basic", "standard", "extended"))  # the second view
    negative_gap: int = setting(16, low=1, high=100_000)  # windows closer than this are no negatives of each other
    # optimiser
    trained: str = setting("readouts", choices=("readouts", "all"))  # all: the convolutions too, at six times the work
    learning_rate: float = setting(5e-4, low=1e-7, high=1.0)  # Adam, of the convolutions and the predictor
    readout_rate: float = setting(
        0.015, low=0.0, high=1.0
    )  # Adam, of the readouts' projections, x the RMS of their weights
    momentum: float = setting(0.9, low=0.0, high=0.99999)  # of the key encoder, per optimiser step
    gradient_clip: float = setting(1.0, low=1e-3)
    collapse: CollapseSettings = section(CollapseSettings)  # the alarm

    def check(self) -> None:
        """Refuses settings that contradict each other."""
        if self.warm_start_windows > self.buffer_windows:
            raise ConfigError(
                f"'warm_start_windows': got {self.warm_start_windows}, allowed <= buffer_windows {self.buffer_windows}"
            )
        if self.bank_least > self.bank_entries:
            raise ConfigError(f"'bank_least': got {self.bank_least}, allowed <= bank_entries {self.bank_entries}")
        if self.buffer_windows < 2 * self.run_windows:
            raise ConfigError(f"'run_windows': got {self.run_windows}, allowed <= half of {self.buffer_windows}")

    def learned_with(self) -> dict[str, Any]:
        """What a snapshot depends on: everything but the alarm, which only watches."""
        values = self.as_dict()
        del values["collapse"]
        return values
