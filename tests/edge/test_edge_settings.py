"""Settings of a device: the shipped file is the defaults, the seed's file still reads, mistakes are named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from streamsplit.config import load_settings
from streamsplit.edge.settings import EdgeSettings
from streamsplit.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]

SEED_YAML = """
device:
  id: "edge_device_1"
  type: "raspberry_pi_4b"
audio:
  sample_rate: 16000
  n_mels: 128
  window_duration: 0.025
training:
  learning_rate: 1e-4
  temperature: 0.1
  batch_size: 32
memory_bank:
  min_size: 64
  max_size: 512
splitting:
  enabled: true
  agent:
    learning_rate: 1e-3
    reward_weights:
      accuracy: 1.0
      resource_usage: -0.5
      latency: -0.3
      privacy_risk: -0.2
"""


def read(tmp_path: Path, text: str) -> EdgeSettings:
    path = tmp_path / "edge.yaml"
    path.write_text(text)
    return load_settings(path, EdgeSettings)


def test_the_shipped_file_says_the_defaults() -> None:
    assert load_settings(ROOT / "configs" / "edge.yaml", EdgeSettings) == EdgeSettings()


def test_the_seeds_file_reads_and_takes_effect(tmp_path: Path) -> None:
    settings = read(tmp_path, SEED_YAML)
    assert settings.device.profile.name == "pi4" and settings.device.profile.factor == 11.7
    assert settings.learner.learning_rate == 1e-4
    assert settings.learner.batch_windows * settings.learner.accumulate == 32
    greedy = settings.policy.greedy
    assert (greedy.quality, greedy.energy, greedy.latency, greedy.privacy) == (10.0, 5.0, 3.0, 2.0)


def test_splitting_off_keeps_everything_local_and_starts_the_projection_on_the_device() -> None:
    off = EdgeSettings.from_mapping({"splitting": {"enabled": False}})
    assert off.policy.name == "keep-local" and off.learner.warm_start
    assert EdgeSettings().policy.name == "greedy" and not EdgeSettings().learner.warm_start


def test_the_policy_knows_how_often_windows_come() -> None:
    settings = EdgeSettings.from_mapping({"audio": {"stride_frames": 100}})
    assert settings.policy.greedy.interval_ms == 1000.0


def test_the_bank_keeps_to_the_bounds_given() -> None:
    settings = EdgeSettings.from_mapping({"memory_bank": {"kind": "bank", "min_size": 100, "max_size": 300}})
    assert (settings.learner.memory, settings.learner.bank_least, settings.learner.bank_entries) == ("bank", 100, 300)


def test_a_devices_memory_is_this_machines_unless_told() -> None:
    assert EdgeSettings().device.memory_bytes > 1e8
    assert EdgeSettings.from_mapping({"device": {"memory_mb": 0.5}}).device.memory_bytes == 500_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("device:\n  id: a b\n", "letters, digits"),
        ("device:\n  type: pie4\n", "pi4"),
        ("server:\n  url: http://host\n", "expected ws://"),
        ("audio:\n  window_frames: 99\n", "even"),
        ("splitting:\n  agnt: {}\n", r"edge.yaml:2: unknown key 'splitting.agnt'; did you mean 'agent'"),
        ("queue:\n  max_bytes: lots\n", "edge.yaml:2"),
        ("splitting:\n  agent:\n    policy: fixed\n", "expected a cut"),
        ("memory_bank:\n  min_size: 200\n  max_size: 100\n", "max_size"),
        ("emulation:\n  bursts:\n    share: 1.5\n", r"edge.yaml:3.*0.98"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


def test_the_token_comes_from_the_environment_where_the_file_has_none(monkeypatch) -> None:
    monkeypatch.setenv("STREAMSPLIT_TOKEN", "from-env")
    assert EdgeSettings().server.secret == "from-env"
    assert EdgeSettings.from_mapping({"server": {"token": "own"}}).server.secret == "own"


def test_the_device_imports_without_torch() -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import streamsplit.edge.runtime, streamsplit.edge.model as m, streamsplit.edge.settings as s\n"
        "assert type(m.make_model(s.EdgeSettings())).__name__ == 'NoEncoder'"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_torch_nothing_can_stay_on_the_device_and_it_says_so() -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import streamsplit.edge.model as m, streamsplit.edge.settings as s\n"
        "m.make_model(s.EdgeSettings.from_mapping({'splitting': {'enabled': False}}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "MissingExtraError" in done.stderr and "'.[learn]'" in done.stderr
