"""`simulate-network`: what it writes and prints, and its one-line errors; live shaping is under tests/runtime."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from streamsplit.cli import simulate_network
from streamsplit.errors import ConfigError, MissingExtraError
from streamsplit.network import traffic_control
from streamsplit.network.drives import read_drives
from streamsplit.network.scenarios import scenario_stretches, scenario_trace
from streamsplit.network.trace import generate_trace, read_trace


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    simulate_network.add_arguments(parser)
    return simulate_network.run(parser.parse_args(list(words)))


def test_a_scenario_is_printed_and_written_and_its_trace_reads_back(tmp_path: Path, capsys) -> None:
    assert run("--duration", "120", "--scenario", "mobile", "--seed", "3", "--output-dir", str(tmp_path)) == 0
    shown = capsys.readouterr().out
    assert "rural" in shown and "dips below 0.5 Mbit/s" in shown and str(tmp_path / "trace.csv") in shown
    made, back = scenario_trace("mobile", 120, 3), read_trace(tmp_path / "trace.csv")
    assert back.duration_s == made.duration_s and np.array_equal(back.t_s, made.t_s)
    assert np.allclose(back.rate_bps, made.rate_bps, rtol=1e-5) and np.allclose(back.rtt_ms, made.rtt_ms, rtol=1e-4)
    assert np.array_equal(back.loss, made.loss)
    rows = (tmp_path / "trace.csv").read_text().splitlines()
    stretch = scenario_stretches("mobile", 120, 3)[2]
    assert rows[1 + round(stretch.start_s * 2)].endswith(stretch.environment)


def test_json_is_one_object_on_stdout_and_the_same_in_the_file(tmp_path: Path, capsys) -> None:
    assert run("--duration", "60", "--seed", "2", "--json", "--output-dir", str(tmp_path)) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["statistics"]["mean_mbps"] == pytest.approx(generate_trace(60, 2).rate_bps.mean() / 1e6)
    assert answer["files"] == [str(tmp_path / "trace.csv"), str(tmp_path / "statistics.json")]
    kept = json.loads((tmp_path / "statistics.json").read_text())
    assert kept["statistics"] == answer["statistics"] and kept["settings"]["seed"] == 2


def test_a_picture_is_drawn_where_asked(tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    assert run("--duration", "60", "--scenario", "edge", "--plot", "--output-dir", str(tmp_path)) == 0
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_extra_is_named_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"--plot needs the extra 'server'"):
        run("--plot", "--output-dir", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_file_is_read_in_place_of_a_scenario(tmp_path: Path, capsys) -> None:
    path = tmp_path / "link.csv"
    path.write_text("run,t_s,uplink_mbps\na,0,1\na,1,1\nb,0,3\nb,1,3\n")
    assert run("--trace", str(path), "--run", "b", "--json", "--output-dir", str(tmp_path / "out")) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["link"] == "b" and answer["statistics"]["mean_mbps"] == pytest.approx(3.0)
    assert answer["settings"]["duration_s"] == 2.0


def test_the_folder_of_measured_drives_gives_a_run_with_its_round_trips(data_dir: Path, tmp_path: Path, capsys) -> None:
    expected = read_drives(data_dir, (3,))[0]
    words = ("--trace", str(data_dir), "--run", expected.name, "--json", "--output-dir", str(tmp_path))
    assert run(*words) == 0
    assert json.loads(capsys.readouterr().out)["statistics"]["rtt_p95_ms"] > np.median(expected.rtt_ms)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--duration", "0"], "'--duration': got 0 s"),
        (["--duration", "nan"], "'--duration': got nan s"),
        (["--seed", "-1"], "'--seed': got -1"),
        (["--trace", "none.csv"], "none.csv: trace cannot be read"),
        (["--trace", "none.csv", "--scenario", "daily"], "leave one out"),
        (["--run", "a"], "add --trace FILE"),
        (["--target", "8888"], "'--target': got '8888', expected HOST:PORT"),
        (["--listen", "host:99999"], "'--listen': got 'host:99999'"),
        (["--method", "tc"], "add --interface NAME"),
        (["--scenario", "daily", "--duration", "3"], "expected at least 9 s"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run(*words, "--output-dir", str(tmp_path))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_address_may_be_of_either_kind() -> None:
    assert simulate_network.address("127.0.0.1:80", "--target") == ("127.0.0.1", 80)
    assert simulate_network.address("[::1]:0", "--listen") == ("::1", 0)


@pytest.mark.parametrize(
    ("path", "user", "message"), [(None, 0, "package iproute2"), ("/sbin/tc", 1000, "needs root")]
)  # fmt: skip
def test_tc_that_cannot_be_used_says_why_and_what_to_do(path, user, message, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(traffic_control.shutil, "which", lambda *_, **__: path)
    monkeypatch.setattr(traffic_control.os, "geteuid", lambda: user)
    with pytest.raises(ConfigError, match=rf"{message}.*use --method proxy"):
        run(
            "--duration",
            "5",
            "--enable-shaping",
            "--method",
            "tc",
            "--interface",
            "eth0",
            "--output-dir",
            str(tmp_path),
        )
