"""The commands that start from, judge or export a published encoder: their options and their mistakes in one line."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import numpy as np
import pytest

from streamsplit.cli import edge, evaluate, server
from streamsplit.cli.export_onnx import output_paths
from streamsplit.cli.main import main
from streamsplit.config import load_settings
from streamsplit.edge.settings import EdgeSettings
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.errors import CheckpointError
from streamsplit.evaluation import fleet
from streamsplit.server.settings import ServerSettings
from streamsplit.weights import pretrained
from streamsplit.weights.pretrained import pack_pretrained, read_pretrained, start_encoder
from streamsplit.weights.revision import encoder_weights, revision_of

SETTINGS = EncoderSettings(width=0.25, seed=3)
CARD = {
    "name": "small", "licence": "none", "data": "none", "hours": 0.0, "command": "none", "commit": "0" * 7,
    "metrics": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("published") / "default.safetensors"
    path.write_bytes(pack_pretrained(encoder_weights(make_encoder(SETTINGS)), SETTINGS, CARD)[0])
    return path


def parsed(module, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args(list(words))


def test_server_and_device_started_with_pretrained_agree_on_the_revision(published: Path, monkeypatch) -> None:
    monkeypatch.setattr(pretrained, "PACKAGED", published.parent)
    ends = [
        server.overridden(ServerSettings(), parsed(server, "--pretrained")),
        edge.overridden(EdgeSettings(), parsed(edge, "--pretrained", str(published))),
    ]
    assert [end.encoder.pretrained for end in ends] == ["default", str(published)]
    revisions = {revision_of(encoder_weights(start_encoder(end.encoder))) for end in ends}
    assert revisions == {read_pretrained("default").revision}


def test_without_the_option_what_the_file_says_stands() -> None:
    settings = ServerSettings()
    assert server.overridden(settings, parsed(server)).encoder == settings.encoder
    assert edge.overridden(EdgeSettings(), parsed(edge)).encoder == EdgeSettings().encoder


def test_the_demos_settings_files_start_both_ends_from_the_published_encoder(published: Path, tmp_path: Path) -> None:
    device = fleet.device_settings(
        fleet.FLEET[0], folder=tmp_path, url="ws://127.0.0.1:1/v1/stream", token="t", source="synthetic", seed=1,
        encoder="mobilenet", journal=tmp_path / "j", loop=False, pretrained=str(published),
    )  # fmt: skip
    served = fleet.server_settings(
        folder=tmp_path, port=1, token="t", encoder="mobilenet", seed=0, pretrained=str(published)
    )
    ends = [
        load_settings(fleet.write_yaml(tmp_path / "device.yaml", device), EdgeSettings).encoder,
        load_settings(fleet.write_yaml(tmp_path / "server.yaml", served), ServerSettings).encoder,
    ]
    assert all(end.width == 0.25 and end.bottlenecks == (2, 5, 8, 10) for end in ends)
    revisions = {revision_of(encoder_weights(start_encoder(end))) for end in ends}
    assert revisions == {read_pretrained(published).revision}


def test_evaluate_judges_a_published_encoder_of_any_width_by_name(published: Path, monkeypatch) -> None:
    monkeypatch.setattr(pretrained, "PACKAGED", published.parent)
    (given,) = evaluate._given(parsed(evaluate, "--model-path", "default").model_path)
    assert given.name.startswith("default@")
    weights = encoder_weights(given._encoder)
    assert revision_of(weights) == read_pretrained(published).revision
    assert evaluate._given(None) == []


def test_evaluate_still_takes_bare_weights(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "bare.safetensors"
    save_file({name: np.ascontiguousarray(array) for name, array in encoder_weights(make_encoder()).items()}, path)
    (given,) = evaluate._given(str(path))
    assert given.name.startswith("bare@") and given.about == "given mobilenet"
    with pytest.raises(CheckpointError, match="expected a packaged encoder"):
        evaluate._given("nosuchencoder")


@pytest.mark.parametrize("command", ["export-onnx", "server", "edge", "demo"])
def test_an_unknown_encoder_is_one_line(command: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    option = "--model" if command == "export-onnx" else "--pretrained"
    words = [command, option, "nosuchencoder"]
    assert main([*words, "--output", "x.onnx"] if command == "export-onnx" else words) == 1
    shown = capsys.readouterr().err
    assert "got 'nosuchencoder', expected a packaged encoder" in shown and shown.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_seeds_encoder_and_a_published_one_cannot_both_start_the_demo() -> None:
    with pytest.raises(SystemExit):
        parsed(importlib.import_module("streamsplit.cli.demo"), "--encoder", "resnet18", "--pretrained")


def test_a_cut_model_is_two_files_named_after_their_sides() -> None:
    assert output_paths(Path("a/b.onnx"), None) == (Path("a/b.onnx"),)
    assert output_paths(Path("a/b.onnx"), 6) == (Path("a/b-to-6.onnx"), Path("a/b-from-6.onnx"))
    assert output_paths(Path("b.v2"), 6) == (Path("b.v2-to-6.onnx"), Path("b.v2-from-6.onnx"))
