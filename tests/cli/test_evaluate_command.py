"""`streamsplit evaluate`: a quick comparison from command to report, gone on with, and mistakes in one line."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from streamsplit.cli import evaluate
from streamsplit.cli.main import main
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.evaluation import theory_study
from streamsplit.evaluation.corpus import synthetic_corpus
from streamsplit.evaluation.speakers import speaker_folds
from streamsplit.evaluation.theory import TheorySettings
from streamsplit.learning.settings import LearnerSettings
from streamsplit.weights.pretrained import pack_pretrained
from streamsplit.weights.revision import encoder_weights

FAST = ["--methods", "mean_std,five_statistics_pca,untrained_pca", "--quick"]
SOUND = {"scenes": 20, "stream_s": 40.0}


def make_theory_small(monkeypatch: pytest.MonkeyPatch) -> None:
    for place, name in ((evaluate, "QUICK_THEORY_WINDOWS"), (theory_study, "HEARD_WINDOWS")):
        monkeypatch.setattr(place, name, 64)
    monkeypatch.setattr(theory_study, "SETTINGS", TheorySettings(steps=20, seeds=1))
    monkeypatch.setattr(theory_study.kept_study, "__kwdefaults__", {"settings": theory_study.SETTINGS, "heard": 64})
    soon = partial(LearnerSettings, warm_start_windows=56, buffer_windows=64)
    monkeypatch.setattr(theory_study, "LearnerSettings", soon)


@pytest.fixture(scope="module")
def study() -> theory_study.TheoryStudy:
    """One for all tests that are about something else."""
    with pytest.MonkeyPatch.context() as patch:
        make_theory_small(patch)
        return theory_study.study_theory(synthetic_corpus(10, 40.0), settings=theory_study.SETTINGS, heard=64)


@pytest.fixture
def one_study(study: theory_study.TheoryStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theory_study, "kept_study", lambda corpus, folder, **options: study)


def test_a_quick_comparison_leaves_results_and_a_report_and_goes_on(tmp_path: Path, capsys, monkeypatch) -> None:
    make_theory_small(monkeypatch)
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
    page = (tmp_path / "out" / "results.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| five_statistics_pca |"))
    assert f"| {shown['summary'][1]['probe']['mean']:.3f} |" in row and results["meta"]["command"] in page
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}
    assert main([word for word in words if word != "--plot"] + ["--seeds", "2"]) == 0
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


@pytest.mark.usefixtures("one_study")
def test_a_labelled_folder_of_ones_own_is_compared_on(tmp_path: Path, capsys) -> None:
    words = ["evaluate", "--data", str(tones(tmp_path / "tones")), "--methods", "mean_std", "--seeds", "1"]
    assert main([*words, "--json", "--output-dir", str(tmp_path / "out")]) == 0
    (row,) = json.loads(capsys.readouterr().out)["summary"]
    assert row["data"] == "tones" and row["probe"]["mean"] == 1.0


@pytest.mark.usefixtures("one_study")
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
        (["--start", "nobody"], "got 'nobody', expected a packaged encoder"),
        (["--start", "missing.safetensors", "--methods", "mean_std"], "missing.safetensors"),
        (["--speakers", "all"], "expected --data with spoken digits"),
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


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.usefixtures("one_study")
def test_a_common_start_is_a_row_of_its_own_and_stands_in_the_heading(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(evaluate, "QUICK_SOUND", SOUND)
    settings = EncoderSettings(seed=2)
    card = {
        "name": "tiny",
        "licence": "CC0",
        "data": "none",
        "hours": 0.0,
        "command": "-",
        "commit": "-",
        "metrics": {},
    }
    start = tmp_path / "tiny.safetensors"
    start.write_bytes(pack_pretrained(encoder_weights(make_encoder(settings)), settings, card)[0])
    config = tmp_path / "grid.yaml"
    config.write_text(f"methods: [mean_std]\nseeds: 1\nbudget: {{start: '{start}'}}\n")
    assert evaluate.grid_settings(parsed("--config", str(config))).budget.start == str(start)
    words = ["evaluate", "--quick", "--methods", "mean_std", "--start", str(start)]
    assert main([*words, "--output-dir", str(tmp_path / "out")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["method"] for row in results["summary"]] == ["mean_std", "start"]
    assert results["start"].startswith("tiny (mobilenet, ") and "from tiny (mobilenet, " in printed
    assert f"what learns begins with {results['start']}" in (tmp_path / "out" / "report.html").read_text()


def spoken(root: Path, speakers: tuple[str, ...] = ("ann", "bob", "eve")) -> Path:
    """Tones in place of digits: two pitches, which every speaker says a little higher than the one before."""
    root.mkdir(parents=True)
    time = np.arange(8_000) / 16_000
    for number, speaker in enumerate(speakers):
        for digit, pitch in ((0, 300.0), (1, 2500.0)):
            for take in range(12):
                sound = 0.3 * np.sin(2 * np.pi * pitch * (1 + 0.05 * number + 0.003 * take) * time)
                soundfile.write(root / f"{digit}_{speaker}_{take}.wav", sound, 16_000)
    return root


@pytest.mark.usefixtures("one_study")
def test_asked_for_speakers_are_left_out_one_by_one_and_the_mean_over_them_is_reported(tmp_path: Path, capsys) -> None:
    spoken(tmp_path / "sound" / "fsdd")
    words = ["evaluate", "--data", str(tmp_path / "sound"), "--methods", "mean_std", "--seeds", "1"]
    for asked, names in (("all", "ann bob eve"), ("bob, ann", "bob ann"), ("", "")):
        corpora = evaluate.load_corpora(parsed("--data", str(tmp_path / "sound"), "--speakers", asked))
        expected = [f"digits-{name}" for name in names.split()] or ["digits"]
        assert [corpus.name for corpus in corpora] == expected
        assert all(corpus.held_out == f"speaker {name}" for corpus, name in zip(corpora, names.split(), strict=False))
    assert main([*words, "--speakers", "ann,eve", "--json", "--output-dir", str(tmp_path / "out")]) == 0
    shown = json.loads(capsys.readouterr().out)
    own = [row["probe"]["mean"] for row in shown["summary"]]
    (row,) = shown["speakers"]["digits"]
    assert row["probe_by_data"] == pytest.approx(dict(zip(("digits-ann", "digits-eve"), own, strict=True)))
    assert row["seeds"] == 1 and row["probe"]["mean"] == pytest.approx(np.mean(own))
    assert "digits: mean over the speakers left out" in (tmp_path / "out" / "report.html").read_text()
    assert main([*words, "--speakers", "bop", "--output-dir", str(tmp_path / "no")]) == 2
    assert "did you mean 'bob'" in capsys.readouterr().err


def test_prepared_digits_leave_out_the_speakers_that_are_asked_for(tmp_path: Path, capsys) -> None:
    spoken(tmp_path / "raw")
    prepared = tmp_path / "said"
    assert main(["data", "prepare", str(tmp_path / "raw"), "--kind", "digits", "--output", str(prepared)]) == 0
    assert list(speaker_folds(prepared)) == ["ann", "bob", "eve"]
    capsys.readouterr()
    (corpus,) = evaluate.load_corpora(parsed("--data", str(prepared), "--speakers", "ann"))
    assert (corpus.name, corpus.held_out, set(corpus.test.sources)) == ("said-ann", "fold 1 of 1, 2, 3", {"ann"})
    assert "ann" not in corpus.learn.sources and len(corpus.test.labels) == 24


def test_one_class_is_refused_in_one_line(tmp_path: Path, capsys) -> None:
    root = tones(tmp_path / "tones")
    for path in (root / "low").iterdir():
        path.unlink()
    assert main(["evaluate", "--data", str(root), "--output-dir", str(tmp_path / "out")]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "got one label ('high')" in lines[0]
