"""Settings of the server's learning."""

from __future__ import annotations

from dataclasses import dataclass

from streamsplit.config import Settings, section, setting
from streamsplit.errors import ConfigError
from streamsplit.refinement.buffer import BufferSettings
from streamsplit.refinement.hybrid import HybridSettings


@dataclass(frozen=True, kw_only=True)
class RefinerSettings(Settings):
    """How the server learns; the defaults suit a CPU (the paper's batch is 256)."""

    learning_rate: float = setting(5e-4, low=1e-7, high=1.0)
    batch_windows: int = setting(64, low=4, high=4096)  # windows per optimiser step, two per pair
    min_windows: int = setting(16, low=4)  # collected before the first step
    most_passes: float = setting(40.0, low=1.0)  # windows drawn for each that came in; then learning waits for more
    min_devices: int = setting(2, low=1)  # waited for at first; one device alone learns after twice `min_windows`
    temperature: float = setting(0.2, low=1e-3, high=10.0)
    contrast_weight: float = setting(1.0, low=0.0)
    target_weight: float = setting(2.0, low=0.0)  # predicting the other window's frozen embedding (docs/design.md)
    own_weight: float = setting(2.0, low=0.0)  # predicting its own: keeps what the start knew
    label_weight: float = setting(1.0, low=0.0)  # cross-entropy, for windows that somebody named
    positive_min_gap: int = setting(1, low=1)  # windows
    positive_max_gap: int = setting(4, low=1)
    positive_decay: float = setting(0.5, low=0.0)
    mask_windows: int = setting(16, low=0)  # same-device rows this close are no negatives
    mask_similarity: float = setting(0.5, low=-1.0, high=1.0)  # nor are rows whose frozen embeddings are closer
    gradient_norm: float = setting(1.0, low=1e-6)  # gradients are scaled down to this length
    warm_start_windows: int = setting(256, low=0)  # full-resolution windows for the PCA start; 0: never
    warm_start_patience: int = setting(1024, low=0)  # windows of any kind after which learning starts without it
    keep_revisions: int = setting(4, low=1, high=64)
    reservoir_bytes: int = setting(64 << 20, low=1 << 20)
    collapse_share: float = setting(
        0.5, low=0.0, high=1.0
    )  # of the last revision's effective rank: less is not published
    local_max_norm: float = setting(0.5, low=0.0)  # of the weights' norm, for one device's difference
    prototypes: int = setting(50, low=1)
    loss: HybridSettings = section(HybridSettings)
    buffer: BufferSettings = section(BufferSettings)

    @property
    def needs_targets(self) -> bool:
        """Whether the loss asks for frozen embeddings at all."""
        return bool(self.target_weight or self.own_weight) or self.mask_similarity < 1.0

    def check(self) -> None:
        """Gaps must make a range."""
        if self.positive_max_gap < self.positive_min_gap:
            raise ConfigError(
                f"'positive_max_gap': got {self.positive_max_gap}, expected >= positive_min_gap {self.positive_min_gap}"
            )
