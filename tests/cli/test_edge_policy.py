"""`streamsplit edge`: policies by name and by file, and what the summary says of them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from streamsplit.cli import edge
from streamsplit.cli.main import main
from streamsplit.edge.settings import EdgeSettings
from streamsplit.errors import ConfigError
from streamsplit.splitting.policy import DEFAULT_POLICY, POLICIES


def overridden(*words: str, **agent: object) -> EdgeSettings:
    parser = argparse.ArgumentParser()
    edge.add_arguments(parser)
    settings = EdgeSettings.from_mapping({"splitting": {"agent": agent}})
    return edge.overridden(settings, parser.parse_args(words))


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "fixed"])
def test_every_policy_can_be_named(name: str) -> None:
    assert overridden("--policy", name).policy.name == name


def test_without_options_the_default_policy_decides() -> None:
    assert overridden().policy.name == DEFAULT_POLICY


def test_a_policy_file_means_a_trained_policy() -> None:
    assert overridden("--policy-file", "p.npz").policy.name == "ppo"
    assert overridden("--policy-file", "p.npz").policy.policy_file == "p.npz"
    assert overridden("--policy-file", "p.npz", policy="ppo-corrected").policy.name == "ppo-corrected"
    assert overridden("--policy-file", "p.npz", "--policy", "ppo-corrected").policy.name == "ppo-corrected"


@pytest.mark.parametrize("words", [("--policy", "greedy"), ("--cut", "6:int8"), ("--no-splitting",)])
def test_a_policy_file_with_another_policy_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="--policy-file"):
        overridden("--policy-file", "p.npz", *words)


def test_a_policy_file_named_on_the_command_line_that_cannot_be_used_is_one_error(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.npz").write_bytes(b"no policy")
    for name, why in (("p.npz", "not a policy file"), ("none.npz", "cannot be read")):
        assert main(["edge", "--source", "synthetic:2", "--speed", "0", "--policy-file", name]) != 0
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and name in lines[0] and why in lines[0]


def test_the_summary_says_what_decided_and_how_well(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["edge", "--source", "synthetic:3", "--speed", "0", "--no-splitting", "--log-level", "ERROR"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "policy keep-local: 5 decisions, 0 changes, 0 fallbacks, mean regret " in said
    assert main([*words, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["policy"], summary["decisions"], summary["fallbacks"]) == ("keep-local", 5, 0)
    assert summary["regret"] >= 0 and summary["cut_changes"] == 0
