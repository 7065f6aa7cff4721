"""`StreamSplitConfig` and `StreamSplitMode`, with the names that users of the research code know."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from enum import Enum

from streamsplit.config import Settings, nearest, setting
from streamsplit.errors import ConfigError
from streamsplit.splitting.device import device_profile
from streamsplit.splitting.greedy import GreedySettings
from streamsplit.splitting.policy import DEFAULT_POLICY, POLICIES

REWARDS = {"accuracy": 1.0, "resource_usage": -0.5, "latency": -0.3, "privacy_risk": -0.2}  # v1
log = logging.getLogger(__name__)


class StreamSplitMode(Enum):
    """Where the work is done."""

    EDGE_ONLY = "edge_only"
    SERVER_ONLY = "server_only"
    DYNAMIC_SPLIT = "dynamic_split"


@dataclass(frozen=True, kw_only=True)
class StreamSplitConfig(Settings):
    """Everything `StreamSplitFramework` needs; unknown names and impossible values raise ConfigError."""

    device_id: str = setting("edge_device_1")
    device_type: str = setting("raspberry_pi_4b")  # a row of splitting/device.py or one of its longer names
    sample_rate: int = setting(16_000, choices=(16_000,))
    n_mels: int = setting(128, choices=(128,))
    embedding_dim: int = setting(128, low=8, high=1024)
    width_multiplier: float = setting(0.75, low=0.25, high=2.0)
    window_frames: int = setting(98, low=4, high=1_000)  # 10 ms each; 98 fit into one second of samples
    stride_frames: int = setting(50, low=2, high=1_000)
    learning_rate: float = setting(1e-4, low=0.0)
    server_learning_rate: float = setting(5e-4, low=0.0)
    temperature: float = setting(0.1, low=1e-3)
    momentum: float = setting(0.999, low=0.0, high=1.0)
    memory: str = setting("mixture", choices=("mixture", "bank"))  # v2's statistics or v1's memory bank
    memory_bank_size_min: int = setting(64, low=1)
    memory_bank_size_max: int = setting(512, low=1)
    bandwidth_range: tuple[float, float] = setting((0.5, 8.0))  # Mbit/s, poor and good
    latency_range: tuple[float, float] = setting((50.0, 200.0))  # ms, good and poor
    policy: str = setting(DEFAULT_POLICY, choices=tuple(name for name in POLICIES if name != "fixed"))
    policy_file: str = setting("")  # of `streamsplit train-policy`, for 'ppo'; "" = the one that ships
    split_agent_lr: float = setting(1e-3, low=0.0)  # v1's key; policies are trained by `streamsplit train-policy`
    split_reward_weights: dict[str, float] = setting(dict(REWARDS))
    warm_start_windows: int = setting(192, low=16, high=4096)  # before the readout is fitted and learning begins
    publish_steps: int = setting(20, low=1)  # server steps from one revision to the next
    device: str = setting("cpu")  # 'cuda' falls back to the CPU with a warning
    seed: int = setting(0, low=0)

    def check(self) -> None:
        """What one value asks of another."""
        device_profile(self.device_type)
        reward_weights(self.split_reward_weights)
        if self.memory_bank_size_min > self.memory_bank_size_max:
            raise ConfigError(
                f"'memory_bank_size_min': got {self.memory_bank_size_min}, allowed <= {self.memory_bank_size_max}"
            )
        if self.stride_frames > self.window_frames or self.window_frames % 2 or self.stride_frames % 2:
            raise ConfigError(
                f"'window_frames', 'stride_frames': got {self.window_frames}, {self.stride_frames}; "
                "expected even numbers, the stride at most the window"
            )


def reward_weights(weights: dict[str, float]) -> dict[str, float]:
    """v1's four weights, missing ones at their defaults; raises ConfigError for an unknown name."""
    for name, value in weights.items():
        if name not in REWARDS:
            raise ConfigError(f"'split_reward_weights.{name}': unknown; {nearest(name, REWARDS)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"'split_reward_weights.{name}': got {value!r}, expected a number")
    return {**REWARDS, **{name: float(value) for name, value in weights.items()}}


def greedy_settings(weights: dict[str, float], latency_ms: float, interval_ms: float) -> GreedySettings:
    """The greedy policy's weights from v1's reward."""
    return GreedySettings.from_reward(**reward_weights(weights), latency_ms=latency_ms, interval_ms=interval_ms)


def torch_device(name: str) -> str:
    """`name`, or 'cpu' with a warning when it asks for CUDA and there is none."""
    import torch

    if name != "cpu" and not name.startswith("cuda"):
        raise ConfigError(f"'device': got '{name}', expected 'cpu' or 'cuda'")
    if name.startswith("cuda") and not torch.cuda.is_available():
        warnings.warn(f"device '{name}' was asked for, but CUDA is not available: using the CPU", stacklevel=3)
        return "cpu"
    return name
