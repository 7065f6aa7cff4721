"""configs/server.yaml says what the code says, and mistakes name the key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamsplit.config import load_settings
from streamsplit.errors import ConfigError
from streamsplit.server.refiner_loop import refiner_settings
from streamsplit.server.settings import ServerSettings, is_loopback

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "server.yaml"


def test_the_documented_file_shows_every_key_with_its_default() -> None:
    import yaml

    settings = load_settings(CONFIG, ServerSettings)
    assert settings == ServerSettings()
    assert yaml.safe_load(CONFIG.read_text()) == json.loads(json.dumps(settings.as_dict()))  # tuples as lists


def test_an_unknown_key_names_file_line_and_the_nearest_known_one(tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"
    path.write_text("server:\n  port: 8888\n  prot: 1\n")
    with pytest.raises(ConfigError, match=r"server\.yaml:3: unknown key 'server\.prot'.*'port'"):
        load_settings(path, ServerSettings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("server: {port: 99999}", "allowed 0..65535"),
        ("auth: {device_tokens: {pi: 1234}}", "expected text in quotes"),
        ("audio: {stride_frames: 200}", r"allowed 1\.\.100"),
        ("audio: {window_frames: 99}", "expected even numbers"),
        ("device: gpu", "allowed auto, cpu, cuda"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "server.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_settings(path, ServerSettings)


def test_an_address_that_others_can_reach_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STREAMSPLIT_TOKEN", raising=False)
    with pytest.raises(ConfigError, match=r"auth\.shared_token"):
        ServerSettings.from_mapping({"server": {"bind_address": "0.0.0.0"}})
    ServerSettings.from_mapping({"server": {"bind_address": "0.0.0.0"}, "auth": {"allow_open": True}})
    monkeypatch.setenv("STREAMSPLIT_TOKEN", "s3cret")
    assert ServerSettings.from_mapping({"server": {"bind_address": "0.0.0.0"}}).auth.token_for("pi") == "s3cret"


def test_a_device_with_its_own_token_does_not_use_the_shared_one() -> None:
    auth = ServerSettings.from_mapping({"auth": {"shared_token": "all", "device_tokens": {"pi": "own"}}}).auth
    assert (auth.token_for("pi"), auth.token_for("nano")) == ("own", "all")


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False)],
)
def test_loopback_is_told_from_the_rest(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


def test_the_loss_takes_the_values_of_its_version_where_none_are_given() -> None:
    losses = [
        refiner_settings(ServerSettings.from_mapping({"loss": given})).loss
        for given in ({}, {"version": "v1"}, {"version": "v1", "laplacian": {"weight": 0.5}})
    ]
    values = [(loss.version, *loss.weights, loss.projection_count, loss.neighbour_count) for loss in losses]
    assert values == [("v2", 0.1, 0.01, 50, 5), ("v1", 1.0, 0.1, 100, 10), ("v1", 1.0, 0.5, 100, 10)]


def test_the_refiner_gets_what_the_sections_say() -> None:
    settings = ServerSettings.from_mapping({
        "training": {"learning_rate": 1e-3, "batch_size": 32, "warm_start_windows": 9},
        "loss": {
            "sliced_wasserstein": {"num_projections": 7, "weight": 0.3},
            "laplacian": {"k_neighbors": 3, "weight": 0.2},
        },
        "aggregation": {"temporal_window": 20.0, "min_devices_per_update": 4},
    })  # fmt: skip
    refiner = refiner_settings(settings)
    assert (refiner.learning_rate, refiner.batch_windows, refiner.warm_start_windows) == (1e-3, 32, 9)
    assert refiner.loss.weights == (0.3, 0.2)
    assert (refiner.loss.projection_count, refiner.loss.neighbour_count) == (7, 3)
    assert (refiner.buffer.frames, refiner.loss.neighbour_count, refiner.min_devices) == (40, 3, 4)
