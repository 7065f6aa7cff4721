"""`streamsplit evaluate`: a quick comparison from command to report, gone on with, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from streamsplit.cli import evaluate
from streamsplit.cli.main import main
from streamsplit.evaluation import theory_study
from streamsplit.evaluation.theory import TheorySettings

FAST = ["--methods", "mean_std,five_statistics_pca,untrained_pca", "--quick"]
SOUND = {"scenes": 20, "stream_s": 40.0}


@pytest.fixture(autouse=True)
def small_theory(monkeypatch) -> None:
    for place, name in ((evaluate, "QUICK_THEORY_WINDOWS"), (theory_study, "HEARD_WINDOWS")):
        monkeypatch.setattr(place, name, 196)
    monkeypatch.setattr(theory_study, "SETTINGS", TheorySettings(steps=20, seeds=1))
    monkeypatch.setattr(theory_study.kept_study, "__kwdefaults__", {"settings": theory_study.SETTINGS, "heard": 196})


def test_a_quick_comparison_leaves_results_and_a_report_and_goes_on(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(evaluate, "QUICK_SOUND", SOUND)
    words = ["evaluate", *FAST, "--plot", "--json", "--output-dir", str(tmp_path / "out")]
    assert main(words) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in shown["summary"]] == ["mean_std", "five_statistics_pca", "untrained_pca"]
    assert all(0.2 < row["probe"]["mean"] <= 1.0 for row in shown["summary"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["meta"]["command"].startswith("streamsplit evaluate") and results["meta"]["machine"]["cores"]
    report = (tmp_path / "out" / "report.html").read_text()
    assert report.count("data:image/png") == 6 and "five statistics, PCA to 128" in report
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}
    assert main([*words, "--seeds", "2"]) == 0
    capsys.readouterr()
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}
    assert len(after) == 2 * len(before) and before.items() <= after.items()


def write_tone(path: Path, seconds: float = 1.2, *, level: float = 0.3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * 16_000)) / 16_000
    soundfile.write(path, level * np.sin(2 * np.pi * 440.0 * time), 16_000)


def tones(root: Path, clips: int = 6) -> Path:
    rng = np.random.default_rng(0)
    for label, pitch in (("low", 200.0), ("high", 2000.0)):
        (root / label).mkdir(parents=True)
        for number in range(clips):
            time = np.arange(16_000 * 2) / 16_000
            sound = 0.3 * np.sin(2 * np.pi * pitch * (1 + 0.6 * number / clips) * time) + rng.normal(0, 0.01, len(time))
            soundfile.write(root / label / f"{label}{number}_a.wav", sound, 16_000)
    return root


def test_a_labelled_folder_of_ones_own_is_compared_on(tmp_path: Path, capsys) -> None:
    words = ["evaluate", "--data", str(tones(tmp_path / "tones")), "--methods", "mean_std", "--seeds", "1"]
    assert main([*words, "--json", "--output-dir", str(tmp_path / "out")]) == 0
    (row,) = json.loads(capsys.readouterr().out)["summary"]
    assert row["data"] == "tones" and row["probe"]["mean"] == 1.0


def test_prepared_data_are_compared_on_and_say_what_was_left_out(tmp_path: Path, capsys) -> None:
    root = tones(tmp_path / "tones", 20)
    write_tone(root / "low" / "still_a.wav", 2.0, level=0.0)
    assert main(["data", "prepare", str(root), "--kind", "folder", "--output", str(tmp_path / "set")]) == 0
    words = ["evaluate", "--ondevice-path", str(tmp_path / "set"), "--methods", "mean_std", "--seeds", "1"]
    assert main([*words, "--output-dir", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    (data,) = json.loads((tmp_path / "out" / "results.json").read_text())["data"]
    assert data["name"] == "set" and data["notes"][0].startswith("1 left out when it was prepared: 1 silent")
    assert "1 silent" in (tmp_path / "out" / "report.html").read_text()


def test_raw_audioset_and_annotated_recordings_are_told_to_be_prepared(tmp_path: Path, capsys) -> None:
    audioset, device = tmp_path / "audio set", tmp_path / "phone"
    write_tone(audioset / "abc.wav")
    (audioset / "eval_segments.csv").write_text(
        '# YTID, start_seconds, end_seconds, positive_labels\nabc, 0, 1, "/m/1"'
    )
    write_tone(device / "r1.wav")
    (device / "labels.csv").write_text("recording,start_s,annotator_1\nr1,0,a\n")
    for words, command in (
        (["--audioset-path", str(audioset)], f"streamsplit data prepare '{audioset}' --kind audioset --output"),
        (["--ondevice-path", str(device)], f"streamsplit data prepare {device} --kind ondevice --output phone-set"),
    ):
        assert main(["evaluate", *words, "--output-dir", str(tmp_path / "out")]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and command in lines[0]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--methods", "streamspit"], "did you mean 'streamsplit'"),
        (["--data", "no-such-folder"], "no-such-folder"),
        (["--model-path", "missing.safetensors"], "missing.safetensors"),
        (["--seeds", "0"], "seeds"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--config", "missing.yaml", "--quick"], "expected one of them"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(words: list[str], text: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *words]) in (1, 2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and text in lines[0] and lines[0].startswith("streamsplit: error:")


def test_one_class_is_refused_in_one_line(tmp_path: Path, capsys) -> None:
    root = tones(tmp_path / "tones")
    for path in (root / "low").iterdir():
        path.unlink()
    assert main(["evaluate", "--data", str(root), "--output-dir", str(tmp_path / "out")]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "got one label ('high')" in lines[0]
