"""`streamsplit pretrain`: from folders to a published file that loads, and one-line errors before learning."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

import streamsplit
from streamsplit.cli.main import main
from streamsplit.facade.pretrained import card_markdown

RATE = 16_000
FAST = "start_windows: 40\nbatch_windows: 8\nwarm_up_steps: 0\n"


def folders(root: Path) -> tuple[Path, Path]:
    """Clips of two kinds, and speech-like noise of two voices."""
    rng = np.random.default_rng(0)
    for number in range(8):
        noise = rng.normal(0, 0.1, 3 * RATE)
        clip = root / "clips" / ("white" if number % 2 else "brown") / f"{number}.wav"
        talk = root / "speech" / f"{number % 2}-{number}.wav"
        for path, audio in (
            (clip, noise if number % 2 else np.cumsum(noise) / 20),
            (talk, noise * np.hanning(3 * RATE)),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, audio, RATE)
    return root / "clips", root / "speech"


def test_two_folders_become_a_published_file_with_its_card(tmp_path: Path, capsys) -> None:
    clips, speech = folders(tmp_path)
    (tmp_path / "fast.yaml").write_text(FAST)
    output = tmp_path / "mine.safetensors"
    words = ["pretrain", "--clips", str(clips), "--speech", str(speech), "--config", str(tmp_path / "fast.yaml")]
    words += [
        "--width",
        "0.25",
        "--steps",
        "3",
        "--name",
        "mine",
        "--licence",
        "CC0",
        "--output",
        str(output),
        "--json",
    ]
    assert main(words) == 0
    card = json.loads(capsys.readouterr().out)
    found = streamsplit.load_pretrained(output)
    assert found.card == card and card["name"] == "mine" and card["licence"] == "CC0"
    assert card["settings"]["steps"] == 3 and card["settings"]["batch_windows"] == 8
    assert "8 clips" in card["data"] and "2 speakers" in card["data"] and card["metrics"] == {}
    assert card["hours"] == pytest.approx(48 / 3600, abs=0.01)
    assert (tmp_path / "mine.md").read_text(encoding="utf-8") == card_markdown(card)
    assert found.encoder.exit_fitted(2), "early exits are part of what is published"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--output", "x.safetensors"], "neither --clips nor --speech"),
        (["--clips", "nowhere", "--output", "x.safetensors"], "nowhere"),
        (["--clips", "clips", "--folds", "one", "--output", "x.safetensors"], "numbers separated by commas"),
        (["--speech", "speech", "--folds", "1", "--output", "x.safetensors"], "without --clips"),
        (["--speech", "speech", "--output", "x.onnx"], ".safetensors file in a folder that exists"),
        (["--speech", "speech", "--output", "missing/x.safetensors"], ".safetensors file in a folder that exists"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path: Path, capsys, monkeypatch, words, said) -> None:
    folders(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    assert main(["pretrain", *words]) != 0
    errors = capsys.readouterr().err.strip().splitlines()
    assert said in errors[-1] and not any("Traceback" in line for line in errors)
    assert set(tmp_path.rglob("*")) == before
