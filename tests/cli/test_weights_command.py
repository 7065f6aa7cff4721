"""`streamsplit weights`: chunks a folder, and says in one line what is wrong with it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from streamsplit.cli.main import main
from streamsplit.weights.streaming.manifest import read_manifest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers reads it
transformers = pytest.importorskip("transformers", reason="needs the extra 'weights'")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=50)).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_model_is_chunked_and_the_next_command_is_named(model: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["weights", "chunk", str(model), "--output-dir", str(model.parent / "chunks")]) == 0
    shown = capsys.readouterr().out
    manifest = read_manifest(model.parent / "chunks")
    assert shown.startswith(f"tiny: {len(manifest.chunks)} chunks") and manifest.revision[:12] in shown
    assert f"streamsplit weights serve --chunks-dir {model.parent / 'chunks'}" in shown


def test_the_options_reach_the_manifest(model: Path, capsys: pytest.CaptureFixture[str]):
    line = ["weights", "chunk", str(model), "--output-dir", str(model.parent / "chunks"), "--dtype", "int8"]
    assert main([*line, "--compress", "--verbose", "--json", "--signing-key", "01" * 32]) == 0
    shown = capsys.readouterr()
    manifest = read_manifest(model.parent / "chunks")
    assert manifest.dtype == "int8" and manifest.signature is not None
    assert json.loads(shown.out)["revision"] == manifest.revision
    assert "encoder.layer.1" in shown.err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["chunk", "./nowhere", "--output-dir", "out"], ["nowhere", "no such folder"]),
        (["chunk", "nowhere", "--output-dir", "out", "--dtype", "fp8"], ["'dtype'", "fp8", "int8"]),
        (["chunk", "nowhere", "--output-dir", "out", "--signing-key", "zz"], ["--signing-key", "64 hex digits"]),
        (["serve", "--chunks-dir", "nowhere"], ["manifest.json", "streamsplit weights chunk"]),
        (["serve", "--chunks-dir", "nowhere", "--port", "99999"], ["--port", "0..65535"]),
        (["serve", "--chunks-dir", "nowhere", "--device-mb-per-s", "-1"], ["device_mb_per_s", ">= 0"]),
        (["serve", "--chunks-dir", "nowhere", "--host", "0.0.0.0"], ["0.0.0.0", "token"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, monkeypatch, capsys, line: list[str], words: list[str]):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STREAMSPLIT_TOKEN", raising=False)
    assert main(["weights", *line]) != 0
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert all(word in shown.err for word in words), shown.err
    assert not (tmp_path / "out").exists()


def test_a_new_revision_is_published_into_the_served_folder(model: Path, capsys: pytest.CaptureFixture[str]):
    served, new = model.parent / "served", model.parent / "new"
    assert main(["weights", "chunk", str(model), "--output-dir", str(served)]) == 0
    changed = transformers.BertModel.from_pretrained(model)
    changed.encoder.layer[1].output.dense.bias.data[0] += 1
    changed.save_pretrained(model)
    assert main(["weights", "chunk", str(model), "--output-dir", str(new)]) == 0
    capsys.readouterr()
    assert main(["weights", "publish", str(new), "--chunks-dir", str(served), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["changed"] == ["encoder.layer.1"] and result["revision"] == read_manifest(served).revision
    assert main(["weights", "publish", str(new), "--chunks-dir", str(served), "--delta", "all"]) == 2
    assert "allowed exact, int8" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["chunk", "encoder", "publish"])
def test_a_signed_folder_stays_signed_unless_that_is_meant(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
):
    monkeypatch.delenv("STREAMSPLIT_SIGNING_KEY", raising=False)
    served, new = model.parent / "served", model.parent / "new"
    source = ["default", "--encoder"] if command == "encoder" else [str(model)]
    line = ["weights", "chunk", *source, "--output-dir", str(served)]
    assert main([*line, "--signing-key", "01" * 32]) == 0
    if command == "publish":
        assert main(["weights", "chunk", str(model), "--output-dir", str(new)]) == 0
        line = ["weights", "publish", str(new), "--chunks-dir", str(served)]
    before, key = (served / "manifest.json").read_bytes(), read_manifest(served).signature.public_key
    capsys.readouterr()
    for options, words in (
        ([], [f"signed by key {key[:16]}", "--signing-key", "--unsigned"]),
        (["--signing-key", "02" * 32], [f"signed by key {key[:16]}", "--new-key"]),
        (["--unsigned", "--signing-key", "01" * 32], ["--unsigned", "one of them"]),
    ):
        assert main([*line, *options]) != 0
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and all(word in said for word in words), said
    assert (served / "manifest.json").read_bytes() == before
    monkeypatch.setenv("STREAMSPLIT_SIGNING_KEY", "01" * 32)
    assert main(line) == 0 and read_manifest(served).signature.public_key == key
    assert main([*line, "--signing-key", "02" * 32, "--new-key"]) == 0
    assert read_manifest(served).signature.public_key not in ("", key)
    assert main([*line, "--unsigned"]) == 0 and read_manifest(served).signature is None


def test_a_published_encoder_is_chunked_by_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    line = ["weights", "chunk", "default", "--encoder", "--output-dir", str(tmp_path / "chunks")]
    assert main([*line, "--json"]) == 0
    assert [name for name in json.loads(capsys.readouterr().out)["chunks"] if name != "resident"] == [
        f"block.{block}" for block in range(1, 14)
    ]
    assert main([*line, "--dtype", "fp8"]) == 2 and main(["weights", "chunk", "none", *line[3:]]) == 1
    assert capsys.readouterr().err.count("\n") == 2
