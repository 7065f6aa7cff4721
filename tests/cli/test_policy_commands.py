"""`train-policy` and `evaluate-policy`: one trains what the other compares and devices load; mistakes are one line."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("stable_baselines3")

from streamsplit.cli import evaluate_policy, train_policy
from streamsplit.cli.main import main
from streamsplit.evaluation import policy_run
from streamsplit.simulation import training
from streamsplit.splitting.device import device_profile
from streamsplit.splitting.learned import LearnedPolicy
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.policy_file import load_policy
from streamsplit.splitting.table import packaged_table

TABLE = packaged_table("mobilenet")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "new" / "mine.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_policy, "GENERATED_LINKS", 9)
        patch.setattr(train_policy, "GENERATED_S", 60.0)
        patch.setattr(training, "TrainingSettings", partial(training.TrainingSettings, rollout_steps=64))
        words = ["--steps", "1", "--lessons", "512", "--devices", "pi4", "--first-seed", "4", "--version", "3"]
        assert main(["train-policy", *words, "--json", "--output", str(path)]) == 0
    return path


def test_a_trained_policy_decides_and_says_where_it_comes_from(trained: Path) -> None:
    file = load_policy(trained)
    assert file.version == 3 and file.about["seed"] == 4 and file.about["material"] == "generated links"
    assert file.about["command"] == "streamsplit train-policy" and trained.stat().st_size < 200_000
    decision = LearnedPolicy(file).decide(Observation(), TABLE.for_device(device_profile("pi4")))
    assert decision.cut in TABLE.cuts
    with (trained.parent / "mine-curve.csv").open() as rows:
        curve = list(csv.DictReader(rows))
    assert curve[0]["seed"] == "4" and float(curve[-1]["held_out_reward"])
    assert (trained.parent / "mine-curve.png").read_bytes()[:4] == b"\x89PNG"


@pytest.fixture
def quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(evaluate_policy.QUICK, "generated", 2)
    monkeypatch.setitem(evaluate_policy.QUICK, "sensitivity_runs", 1)
    monkeypatch.setattr(policy_run, "GENERATED_S", 60.0)


@pytest.mark.usefixtures("quicker")
def test_the_policies_are_compared_and_a_report_is_left(trained: Path, tmp_path: Path, capsys) -> None:
    words = ["--quick", "--devices", "pi4", "--policies", "edge-only", "greedy", "ppo", "--policy", str(trained)]
    words += ["--processes", "1"]
    assert main(["evaluate-policy", *words, "--json", "--output-dir", str(tmp_path)]) == 0
    shown = json.loads(capsys.readouterr().out)
    reward = {row["policy"]: row["reward"]["mean"] for row in shown["summary"]}
    assert set(reward) == {"edge-only", "greedy", "ppo"} and reward["greedy"] > reward["edge-only"]
    assert shown["meta"]["traces"] == 2 and shown["verdicts"][0]["device"] == "pi4"
    assert json.loads((tmp_path / "study.json").read_text())["summary"] == shown["summary"]
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.usefixtures("quicker")
def test_a_limit_on_quality_leaves_only_cuts_within_it(tmp_path: Path, capsys) -> None:
    words = ["--quick", "--devices", "m2", "--policies", "greedy", "--max-quality-loss", "0.01", "--json"]
    words += ["--processes", "1"]
    assert main(["evaluate-policy", *words, "--output-dir", str(tmp_path)]) == 0
    (row,) = json.loads(capsys.readouterr().out)["summary"]
    accuracy = {str(cut_row.cut): cut_row.accuracy for cut_row in TABLE.rows}
    assert row["quality_loss_points"] <= 1.0 + 1e-6
    assert all(accuracy[cut] >= accuracy["13:none"] - 0.01 - 1e-6 for cut in row["cuts"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["evaluate-policy", "--policies", "gredy"], "did you mean 'greedy'"),
        (["evaluate-policy", "--devices", "pi5"], "pi5"),
        (["evaluate-policy", "--data", "no-such-folder"], "no-such-folder"),
        (["evaluate-policy", "--policy", "missing.npz"], "missing.npz"),
        (["evaluate-policy", "--encoder", "resnet18", "--policies", "ppo"], "resnet18"),
        (["evaluate-policy", "--max-quality-loss", "-1"], "max_quality_loss"),
        (["train-policy", "--data", "no-such-folder"], "no-such-folder"),
        (["train-policy", "--seeds", "0"], "--seeds 0"),
        (["train-policy", "--table", "missing.json"], "missing.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(words: list[str], text: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) in (1, 2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and text in lines[0] and lines[0].startswith("streamsplit: error:")
