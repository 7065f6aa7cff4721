"""The server's policy: what is offered to whom, what is refused, and what a restart finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamsplit.config import load_settings
from streamsplit.errors import ConfigError, CutError
from streamsplit.server.policy_shelf import PolicyShelf, check_policy_settings
from streamsplit.server.settings import POLICY_KEY_VARIABLE, PolicyPushSettings, ServerSettings
from streamsplit.splitting.features import STATE_FEATURES
from streamsplit.splitting.greedy import GreedySettings
from streamsplit.splitting.policy_file import Layer, PolicyFile, architecture_of
from streamsplit.splitting.policy_push import PushedPolicy, open_policy
from streamsplit.splitting.table import packaged_table
from streamsplit.wire.messages import Hello

TABLE = packaged_table("mobilenet")
KEY = "k"


def policy(encoder: str = "mobilenet", seed: int = 0) -> bytes:
    """A small untrained policy for the packaged table."""
    rng = np.random.default_rng(seed)
    width, n = len(STATE_FEATURES) + len(TABLE.cuts), len(TABLE.cuts)
    layer = Layer(0.01 * rng.standard_normal((width, n)).astype(np.float32), np.zeros(n, np.float32))
    bound = np.full(len(STATE_FEATURES), 100.0, np.float32)
    about = {"command": "by hand"}
    return PolicyFile(
        encoder, architecture_of(TABLE), TABLE.num_blocks, TABLE.cuts, GreedySettings(), (layer,), 2.0, -bound, bound,
        about,
    ).to_bytes()  # fmt: skip


def hello(**changes) -> Hello:
    values = {"encoder": "mobilenet", "want_policy": True, "policy_version": 0, **changes}
    return Hello(protocol=1, device_id="d", token="", epoch=1, oldest_sequence=1, next_sequence=1, **values)


def shelf(folder: Path, **changes) -> PolicyShelf:
    made = PolicyShelf(PolicyPushSettings(key=KEY, **changes), folder, "mobilenet")
    made.load()
    return made


def test_a_policy_of_the_settings_is_signed_so_that_a_device_opens_it(tmp_path: Path):
    path = tmp_path / "p.npz"
    path.write_bytes(policy())
    message = shelf(tmp_path, file=str(path), version=4).current
    pushed = PushedPolicy(message.version, message.data, message.signature)
    assert open_policy(pushed, key=KEY, held_version=3, table=TABLE).version == 4
    assert message.encoder == "mobilenet"


def test_it_is_offered_to_those_that_want_it_and_hold_less(tmp_path: Path):
    held = shelf(tmp_path / "kept")
    assert held.offer(hello(), 0) is None and held.version == 0
    message = held.put(4, policy())
    assert held.offer(hello(), 0) is message and held.offer(hello(policy_version=3), 3) is message
    for said, told in (
        (hello(policy_version=4), 0), (hello(policy_version=9), 0), (hello(), 4), (hello(want_policy=False), 0),
        (hello(encoder="resnet18"), 0), (hello(encoder=""), 0), (None, 0),
    ):  # fmt: skip
        assert held.offer(said, told) is None


def test_what_came_by_the_api_is_found_after_a_restart_and_only_the_newest_is_kept(tmp_path: Path):
    held = shelf(tmp_path / "kept")
    held.put(2, policy(seed=2))
    held.put(10, policy(seed=10))
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["policy-v10.npz"]
    assert shelf(tmp_path / "kept").current == held.current
    path = tmp_path / "p.npz"
    path.write_bytes(policy())
    assert shelf(tmp_path / "kept", file=str(path), version=9).version == 10
    assert shelf(tmp_path / "kept", file=str(path), version=11).version == 11


def test_versions_go_up_and_another_encoder_or_a_damaged_file_is_refused(tmp_path: Path):
    held = shelf(tmp_path / "kept")
    first = held.put(4, policy())
    for version, data, why in (
        (4, policy(), "newer than v4"), (3, policy(), "newer"), (5, policy("resnet18"), "encoder 'resnet18'"),
        (5, policy()[:-9], "not a policy file"), (5, b"", "not a policy file"), (5, bytes(40_000), "at most"),
        (1 << 33, policy(), "version"),
    ):  # fmt: skip
        with pytest.raises(CutError, match=why):
            held.put(version, data)
    assert held.current is first


def test_a_file_that_cannot_be_offered_is_an_error_that_names_the_setting(tmp_path: Path, monkeypatch):
    with pytest.raises(ConfigError, match=r"policy\.file.*cannot be read"):
        check_policy_settings(PolicyPushSettings(file=str(tmp_path / "none.npz"), key=KEY), "mobilenet")
    path = tmp_path / "p.npz"
    path.write_bytes(policy("resnet18"))
    with pytest.raises(ConfigError, match=r"policy\.file.*resnet18"):
        check_policy_settings(PolicyPushSettings(file=str(path), key=KEY), "mobilenet")
    monkeypatch.delenv(POLICY_KEY_VARIABLE, raising=False)
    settings = tmp_path / "server.yaml"
    settings.write_text(f"policy:\n  file: {path}\n")
    with pytest.raises(ConfigError, match="without a key"):
        load_settings(settings, ServerSettings)
    monkeypatch.setenv(POLICY_KEY_VARIABLE, "from outside")
    assert load_settings(settings, ServerSettings).policy.secret == "from outside"
