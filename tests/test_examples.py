"""The examples run as they stand and print what they promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str) -> list[str]:
    done = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_an_own_policy_cuts_deeper_on_poorer_links() -> None:
    blocks = [int(line.split("Mbit/s")[1].split(":")[0]) for line in run("own_policy.py")]
    assert len(blocks) == 5
    assert blocks == sorted(blocks) and blocks[0] < blocks[-1]


def test_a_device_alone_learns_without_collapse() -> None:
    pytest.importorskip("torch")
    lines = run("learn_alone.py")
    assert "0 steps" in lines[0]
    steps = int(lines[-1].split(" nats, ")[1].split()[0])
    assert steps >= 10 and float(lines[-1].rsplit(" ", 1)[1]) > 20
