"""The commands without a network: settings and their mistakes, options, profiling, a device that keeps to itself."""

from __future__ import annotations

import argparse
import io
import json
import math
from pathlib import Path

import pytest
import torch

from streamsplit.cli import edge, profile, server
from streamsplit.cli.main import main
from streamsplit.edge.counters import EdgeStatus
from streamsplit.edge.settings import EdgeSettings
from streamsplit.errors import ConfigError
from streamsplit.server.settings import ServerSettings
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.table import load_table
from streamsplit.wire.media import Encoding

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def parsed(module, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args(list(words))


def text_of(renderable) -> str:
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


# ---- server ----


def test_the_shipped_settings_are_good(capsys):
    assert main(["server", "validate", str(CONFIGS / "server.yaml")]) == 0
    assert capsys.readouterr().out.strip().endswith("server.yaml: good")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("server:\n  prt: 1\n", ["bad.yaml:2:", "server.prt", "did you mean 'port'?"]),
        ("server:\n  port: 70000\n", ["bad.yaml:2:", "server.port", "70000", "0..65535"]),
        ("training:\n  batch_size: big\n", ["bad.yaml:2:", "training.batch_size", "'big'", "whole number"]),
        ("server:\n  bind_address: 0.0.0.0\n", ["0.0.0.0", "token"]),
        ("lss:\n  x: 1\n", ["bad.yaml:1:", "did you mean 'loss'?"]),
        ("server: [\n", ["not valid YAML"]),
    ],
)
def test_validate_says_in_one_line_what_is_wrong_and_where(tmp_path, capsys, monkeypatch, text, words):
    monkeypatch.delenv("STREAMSPLIT_TOKEN", raising=False)
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    for line in (["server", "validate", str(path)], ["server", "--config", str(path)]):
        assert main(line) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.count("\n") == 1
        assert all(word in shown.err for word in words), shown.err


def test_validate_answers_scripts_in_json(tmp_path, capsys):
    good = str(CONFIGS / "server.yaml")
    for line in (["server", "validate", good, "--json"], ["server", "--json", "validate", good]):
        assert main(line) == 0
        assert json.loads(capsys.readouterr().out) == {"file": good, "good": True, "problem": None}
    bad = tmp_path / "bad.yaml"
    bad.write_text("server:\n  prt: 1\n")
    assert main(["server", "validate", str(bad), "--json"]) == 2
    shown = capsys.readouterr()
    answer = json.loads(shown.out)
    assert answer["good"] is False and "bad.yaml:2: unknown key 'server.prt'" in answer["problem"]
    assert answer["problem"] in shown.err


def test_a_file_of_the_other_end_is_named_as_such(tmp_path, capsys):
    short = tmp_path / "pi.yaml"
    short.write_text("device:\n  id: pi\n")
    for path in (CONFIGS / "edge.yaml", short):
        for line in (["server", "validate", str(path)], ["server", "--config", str(path)]):
            assert main(line) == 2
            shown = capsys.readouterr().err
            assert "looks like a device's file (it has 'device')" in shown and shown.count("\n") == 1
            assert f"streamsplit edge --config {path}" in shown
    assert main(["edge", "--config", str(CONFIGS / "server.yaml")]) == 2
    shown = capsys.readouterr().err
    assert "looks like a server's file" in shown and shown.count("\n") == 1


def test_a_missing_settings_file_is_one_line(tmp_path, capsys):
    assert main(["server", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: cannot be read" in capsys.readouterr().err


def test_the_server_command_line_goes_over_the_file():
    settings = ServerSettings()
    changed = server.overridden(settings, parsed(server, "--port", "9000", "--log-level", "DEBUG", "--cpu-only"))
    assert (changed.server.port, changed.server.log_level, changed.device) == (9000, "DEBUG", "cpu")
    assert server.overridden(settings, parsed(server)) == settings
    assert server.overridden(settings, parsed(server, "--gpu")).device == "cuda"
    with pytest.raises(ConfigError, match="port"):
        server.overridden(settings, parsed(server, "--port", "99999"))
    with pytest.raises(SystemExit):
        parsed(server, "--gpu", "--cpu-only")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_gpu_that_is_not_there_is_an_error_when_it_is_forced(capsys):
    assert main(["server", "--gpu", "--port", "0"]) == 2
    assert "CUDA is not available" in capsys.readouterr().err


def test_the_servers_table_shows_devices_and_what_is_not_known_yet():
    device = {
        "device": "pi", "connected": True, "cut": "6:int8", "windows": 12, "skipped": 3, "uplink_bytes": 45_600,
        "latency_ms": {"p50": 31.4, "p95": 80.2}, "uncertainty": None, "label": "rain",
    }  # fmt: skip
    status = {
        "totals": {"devices_connected": 1, "devices": 30, "windows": 12}, "revision": "abcdef0123", "uptime_s": 61.0,
        "refiner": {"state": "learning", "steps": 4, "loss": 1.23456},
        "devices": [device, *({**device, "device": f"d{i}"} for i in range(29))],
    }  # fmt: skip
    shown = text_of(server.status_table(status))
    for part in ("1 of 30 devices", "6:int8", "45.6 kB", "31/80", "rain", "abcdef01", "loss 1.235", "... 10 more"):
        assert part in shown


# ---- edge ----


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("localhost", "ws://localhost:8888/v1/stream"),
        ("10.0.0.1:9000", "ws://10.0.0.1:9000/v1/stream"),
        ("ws://h:1", "ws://h:1/v1/stream"),
        ("wss://h/", "wss://h/v1/stream"),
        ("http://h:8888/", "ws://h:8888/v1/stream"),
        ("wss://h/other/path", "wss://h/other/path"),
    ],
)
def test_a_server_may_be_named_in_short(given, url):
    assert edge.server_url(given) == url


def test_the_edge_command_line_goes_over_the_file():
    settings = EdgeSettings()
    assert edge.overridden(settings, parsed(edge)) == settings
    words = ["--device-id", "a", "--server", "h:1", "--synthetic", "--journal", "j.jsonl", "--policy", "heuristic"]
    changed = edge.overridden(settings, parsed(edge, *words))
    assert changed.device.id == "a" and changed.device.journal == "j.jsonl"
    assert changed.server.url == "ws://h:1/v1/stream" and changed.audio.source == "synthetic"
    assert changed.policy.name == "heuristic"
    fixed = edge.overridden(settings, parsed(edge, "--cut", "6:int8", "--source", "x.wav"))
    assert (fixed.policy.name, fixed.policy.cut, fixed.audio.source) == ("fixed", "6:int8", "x.wav")
    assert edge.overridden(settings, parsed(edge, "--no-splitting")).policy.name == "keep-local"


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--cut", "6:int9"], 2, "BLOCK:ENCODING"),
        (["--cut", "6:int8", "--policy", "greedy"], 2, "--policy fixed"),
        (["--policy", "fixed"], 2, "6:int8"),
        (["--cut", "6:int8", "--no-splitting"], 2, "together with --no-splitting"),
        (["--policy", "greedy", "--no-splitting"], 2, "together with --no-splitting"),
        (["--device-id", "no spaces"], 2, "no spaces"),
        (["--speed", "-1"], 2, "--speed"),
        (["--server", "ftp://x"], 2, "ftp://x"),
        (["--source", "/no/such/file.wav"], 1, "/no/such/file.wav"),
    ],
)
def test_edge_mistakes_are_one_line(tmp_path, monkeypatch, capsys, words, code, text):
    monkeypatch.chdir(tmp_path)
    assert main(["edge", "--log-level", "ERROR", *words]) == code
    shown = capsys.readouterr()
    assert text in shown.err and shown.err.count("\n") == 1 and shown.out == ""


def test_the_shipped_edge_settings_are_good():
    from streamsplit.config import load_settings

    assert load_settings(CONFIGS / "edge.yaml", EdgeSettings).policy.name == "greedy"


def test_a_bad_edge_file_names_line_and_nearest_key(tmp_path, capsys):
    path = tmp_path / "edge.yaml"
    path.write_text("splitting:\n  agent:\n    polcy: greedy\n")
    assert main(["edge", "--config", str(path)]) == 2
    assert "edge.yaml:3: unknown key 'splitting.agent.polcy'; did you mean 'policy'?" in capsys.readouterr().err


def test_a_device_that_keeps_to_itself_needs_no_server(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--no-splitting", "--source", "synthetic:6", "--speed", "0", "--log-level", "ERROR", "--json"]
    assert main(["edge", "--device-id", "alone", "--journal", "j.jsonl", *words]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    summary = lines[-1]
    assert summary["event"] == "summary" and summary["device_id"] == "alone"
    assert summary["windows_seen"] == summary["windows_skipped"] == 11 and summary["windows_sent"] == 0
    assert summary["uplink_bytes"] == 0 and list(summary["cuts"]) == ["13:none"]
    assert (tmp_path / "j.jsonl").read_text().count("\n") >= 11


def test_the_end_of_a_run_is_told_in_words_without_json(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--no-splitting", "--source", "synthetic:2", "--speed", "0", "--log-level", "ERROR"]
    assert main(["edge", *words]) == 0
    assert "edge-1: 3 windows heard, 0 sent" in capsys.readouterr().out


def test_the_edge_table_shows_what_is_not_known_yet_as_a_dash():
    values = dict.fromkeys(EdgeStatus._fields, 0)
    unknown = dict.fromkeys(
        ("bandwidth_bps", "rtt_ms", "latency_ms", "edge_ms", "uncertainty", "loss", "effective_rank"), math.nan
    )
    names = {"device_id": "pi", "connection": "connecting", "cut": "", "revision": "", "problem": "disk full"}
    shown = text_of(edge.status_table(EdgeStatus(**{**values, **unknown, **names})))
    assert "pi: connecting" in shown and "nan" not in shown and "disk full" in shown


# ---- profile ----


def test_profile_writes_a_table_that_devices_read(tmp_path, capsys):
    path = tmp_path / "table.json"
    words = ["--device", "pi4", "--width", "0.25", "--embedding-dim", "32", "--windows", "3", "--repeats", "2"]
    words.append("--quick")
    assert main(["profile", *words, "--output", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    table = load_table(path)
    assert shown["rows"] == json.loads(path.read_text())["rows"] and len(shown["rows"]) == len(table.rows)
    assert table.device == "pi4" and table.factor == 11.7
    assert table.meta["command"].startswith("streamsplit profile --device pi4 --encoder mobilenet --width 0.25")
    assert table.meta["machine"]["torch"] == torch.__version__
    assert table.row(Cut.parse("13:none")).payload_bytes == 0


def test_profile_puts_a_cut_into_a_table(tmp_path, capsys):
    path, joined = tmp_path / "table.json", tmp_path / "joined.json"
    words = ["profile", "--width", "0.25", "--embedding-dim", "32", "--windows", "3", "--repeats", "1", "--quick"]
    assert main([*words, "--only", "0:pcm16", "--only", "13:none", "--output", str(path)]) == 0
    assert list(map(str, load_table(path).cuts)) == ["0:pcm16", "13:none"]
    assert main([*words, "--only", "0:tinystream", "--into", str(path), "--output", str(joined)]) == 0
    table = load_table(joined)
    assert list(map(str, table.cuts)) == ["0:pcm16", "0:tinystream", "13:none"]
    assert table.row(Cut.parse("0:tinystream")).payload_bytes == 20 + 8 + -(-25 * 45 // 8)
    assert table.meta["joined"][0]["cuts"] == ["0:tinystream"]
    assert table.meta["joined"][0]["command"].endswith("--only 0:tinystream --into table.json")
    assert table.row(Cut.parse("0:pcm16")) == load_table(path).row(Cut.parse("0:pcm16"))
    capsys.readouterr()
    for more, text in (
        (["--only", "0:mp3"], "got cut '0:mp3', expected BLOCK:ENCODING"),
        (
            ["--only", "5:bottleneck-int8", "--bottleneck", "3"],
            "got cut 5:bottleneck-int8, which this encoder does not",
        ),
        (["--only", "0:pcm16", "--into", str(path), "--device", "pi4"], "expected ('host', 1.0)"),
    ):
        assert main([*words, *more]) == 1
        shown = capsys.readouterr().err
        assert text in shown and shown.count("\n") == 1


def test_profile_measures_the_bottlenecks_that_are_asked_for_and_draws(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(profile, "FIT_WINDOWS", 60)
    path, picture = tmp_path / "table.json", tmp_path / "table.png"
    words = ["--width", "0.25", "--embedding-dim", "32", "--windows", "3", "--repeats", "1", "--quick"]
    words += ["--bottleneck", "7", "--bottleneck", "3", "--output", str(path), "--plot", str(picture)]
    assert main(["profile", *words]) == 0
    shown = capsys.readouterr().out
    assert f"written to {path}" in shown and f"written to {picture}" in shown
    assert picture.read_bytes().startswith(b"\x89PNG")
    table = load_table(path)
    assert {cut.block for cut in table.cuts if cut.encoding is Encoding.BOTTLENECK_INT8} == {3, 7}
    assert table.meta["encoder"]["bottlenecks"] == [3, 7]
    assert table.meta["command"].endswith("--quick --bottleneck 3 --bottleneck 7")
    assert all(math.isnan(row.accuracy) and math.isnan(row.privacy_risk) for row in table.rows)
    assert [row.fetch_bytes > 0 for row in table.rows] == [row.cut.block > 0 for row in table.rows]


def test_profile_measures_accuracy_and_risk_on_synthetic_sound(tmp_path, capsys, monkeypatch):
    from streamsplit.evaluation import cut_material

    monkeypatch.setattr(profile, "FIT_WINDOWS", 60)
    monkeypatch.setattr(profile, "PRIVACY_WINDOWS", 6)
    monkeypatch.setattr("streamsplit.splitting.quality.DECODER_STEPS", 2)
    monkeypatch.setattr(cut_material.synthetic_material, "__defaults__", (0, (4, 1)))
    path = tmp_path / "table.json"
    words = ["--width", "0.25", "--embedding-dim", "32", "--windows", "3", "--repeats", "1", "--json"]
    assert main(["profile", *words, "--output", str(path)]) == 0
    shown = json.loads(capsys.readouterr().out)
    quality, rows = shown["meta"]["quality"], {row["cut"]: row for row in shown["rows"]}
    assert "4 of each to learn from and 1 held out" in quality["material"] and quality["full_accuracy"] > 0.3
    assert rows["13:none"]["accuracy"] == pytest.approx(quality["full_accuracy"], abs=1e-4)
    assert rows["13:none"]["privacy_risk"] == 0 and rows["0:pcm16"]["privacy_risk"] > 0.99
    assert set(quality["epsilon"]) == set(rows) and set(quality["exits"]) == {str(k) for k in range(1, 13)}
    assert quality["full_accuracy_standard_error"] > 0 and shown["meta"]["seed"] == 0
    assert main(["profile", *words, "--device", "pi4", "--quality-from", str(path)]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [row["accuracy"] for row in again["rows"]] == [row["accuracy"] for row in shown["rows"]]
    assert again["device"] == "pi4" and again["meta"]["quality"]["command"] == shown["meta"]["command"]
    assert "--quality-from table.json" in again["meta"]["command"]
    assert main(["profile", "--width", "0.5", "--quality-from", str(path)]) == 1
    assert "table.json: the cut table was measured with width 0.25, expected 0.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--width", "0.25", "--windows", "3", "--bottleneck", "13"], 2, "got block 13, expected 1..12"),
        (["--quick", "--data", "somewhere"], 2, "--quick and --data"),
        (["--reference-ms", "0"], 2, "--reference-ms"),
        (["--data", "/no/folder"], 1, "/no/folder: there is no such folder"),
        (["--device", "pi5"], 2, "did you mean 'pi4'"),
        (["--factor", "0"], 2, "factor"),
        (["--windows", "1"], 2, "--windows 1"),
        (["--source", "/no/file.wav"], 1, "/no/file.wav"),
    ],
)
def test_profile_mistakes_are_one_line(capsys, words, code, text):
    assert main(["profile", *words]) == code
    shown = capsys.readouterr()
    assert text in shown.err and shown.err.count("\n") == 1
