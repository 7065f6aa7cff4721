"""The main job, end to end and shortened: a server, three devices, shaped links, learning, probe, report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")


def test_the_demo_learns_loses_nothing_and_leaves_a_report(tmp_path: Path):
    command = [sys.executable, "-m", "streamsplit.cli.main", "demo", "--quick", "--live-seconds", "10", "--json"]
    command += ["--learn-seconds", "60"]
    done = subprocess.run(
        [*command, "--output-dir", str(tmp_path)], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["integrity"]["missing"] == summary["integrity"]["duplicated"] == 0
    assert summary["integrity"]["accepted"] >= 256  # the server asked for everything until its projection was fitted
    assert all(device["windows"] >= 10 for device in summary["devices"].values())
    probe = summary["probe"]
    assert probe["encoder, learned"] > probe["encoder, untrained"]
    assert summary["share_of_pcm16"] < 0.5
    run = json.loads((Path(summary["report"]).parent / "run.json").read_text())
    assert run["meta"]["machine"]["processor"] and run["meta"]["settings"]["live_s"] == 10.0
    assert Path(summary["report"]).read_text().startswith("<!doctype html>")


def test_a_folder_without_sound_is_one_clear_line(tmp_path: Path):
    command = [sys.executable, "-m", "streamsplit.cli.main", "demo", "--data", str(tmp_path)]
    done = subprocess.run(
        [*command, "--output-dir", str(tmp_path / "runs")], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert "expected files like" in lines[-1] and "Traceback" not in done.stderr
