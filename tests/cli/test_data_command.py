"""`streamsplit data prepare` end to end; mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from streamsplit.cli.main import main
from streamsplit.evaluation.data.manifest import load_prepared


@pytest.fixture
def source(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).normal(0, 0.1, 9000)
    for label in ("dog", "rain, heavy"):
        (tmp_path / "own" / label).mkdir(parents=True)
        for number in range(4):
            soundfile.write(tmp_path / "own" / label / f"{number}-yard.wav", noise, 8000)
    return tmp_path / "own"


def test_a_folder_becomes_a_data_set_with_a_card(source, tmp_path, capsys):
    out = tmp_path / "new" / "set"
    assert main(["data", "prepare", str(source), "--output", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "8 clips" in shown and "Licence: missing" in shown and f"data set: {out}" in shown
    assert len(load_prepared(out)) == 8
    assert {path.name for path in out.iterdir()} == {"manifest.csv", "card.json", "card.md", "left_out.csv"}


def test_json_is_one_object_and_a_quoted_class_may_hold_a_comma(source, tmp_path, capsys):
    words = ["--classes", 'dog,"rain, heavy"', "--balanced", "--seed", "3", "--json"]
    assert main(["data", "prepare", str(source), "--output", str(tmp_path / "out"), *words]) == 0
    card = json.loads(capsys.readouterr().out)
    assert set(card["classes"]) == {"dog", "rain, heavy"} and card["seed"] == 3 and card["kind"] == "folder"
    assert card["command"].startswith("streamsplit data") and card["output"] == str(tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--classes", "cat,dog"], "got class 'cat', which has no clip"),
        (["--kind", "folder", "--seconds", "5"], "got --seconds for kind 'folder'"),
        (["--kind", "audioset"], "got no list of segments"),
        (["--kind", "digits"], "got 0 speakers"),
        (["--segments", "nowhere.csv"], "cannot be read"),
    ],
)
def test_mistakes_are_one_line(source, tmp_path, capsys, words, says):
    assert main(["data", "prepare", str(source), "--output", str(tmp_path / "out"), *words]) in (1, 2)
    shown = capsys.readouterr()
    assert shown.out == "" and says in shown.err
    assert [line for line in shown.err.splitlines() if "error" in line] == [shown.err.splitlines()[-1]]


def test_without_an_action_the_command_says_how(capsys):
    assert main(["data"]) == 2
    assert "streamsplit data prepare SOURCE --output DIR" in capsys.readouterr().err
