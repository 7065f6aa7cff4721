"""The commands as processes: a server and a device over loopback, Ctrl-C, a taken port, a wrong token."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
SETTINGS = """
server:
  data_dir: {folder}/server
auth:
  shared_token: secret
encoder:
  width: 0.25
  embedding_dim: 32
training:
  enabled: false
"""
DEVICE = """
device:
  id: one
encoder:
  width: 0.25
  embedding_dim: 32
splitting:
  gate:
    enabled: false
server:
  token: {token}
  drain_s: {drain_s}
"""


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "streamsplit.cli.main", *words], cwd=folder, env=ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def end(child: subprocess.Popen[str], number: int = signal.SIGINT) -> tuple[int, str, str]:
    child.send_signal(number)
    try:
        out, errors = child.communicate(timeout=60)
    finally:
        child.kill()  # one that did not heed the signal would go on measuring beside all later tests
    return child.returncode, out, errors


@contextmanager
def running_server(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    (folder / "server.yaml").write_text(SETTINGS.format(folder=folder))
    child = start(folder, "server", "--config", "server.yaml", "--port", "0", "--json", "--interval", "0.5")
    try:
        line = child.stdout.readline()
        assert line, child.stderr.read()
        ready = json.loads(line)
        assert ready["event"] == "ready"
        yield child, ready["port"]
    finally:
        if child.poll() is None:
            child.kill()
            child.communicate()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server that goes on."""
    with running_server(tmp_path_factory.mktemp("served")) as (_, port):
        yield port


def device(folder: Path, port: int, *words: str, token: str = "secret", drain_s: float = 10.0) -> subprocess.Popen[str]:
    (folder / "edge.yaml").write_text(DEVICE.format(token=token, drain_s=drain_s))
    common = ("edge", "--config", "edge.yaml", "--server", f"127.0.0.1:{port}", "--log-level", "WARNING", "--json")
    return start(folder, *common, *words)


def test_a_device_sends_its_windows_to_a_server_and_both_end_in_order(tmp_path):
    with running_server(tmp_path) as (server, port):
        edge = device(tmp_path, port, "--source", "synthetic:6", "--speed", "0", "--cut", "5:int8")
        out, errors = edge.communicate(timeout=120)
        assert edge.returncode == 0, errors
        summary = json.loads(out.splitlines()[-1])
        assert summary["windows_seen"] == summary["windows_sent"] == summary["results"] == 11
        assert summary["cuts"] == {"5:int8": 11} and summary["left_in_queue"] == 0
        assert [line for line in errors.splitlines() if "costs are those of another encoder" not in line] == []
        code, out, errors = end(server)
    assert code == 0, errors
    statuses = [json.loads(line) for line in out.splitlines()]
    assert {status["event"] for status in statuses} == {"status"}
    assert statuses[-1]["totals"]["windows"] == statuses[-1]["totals"]["stored_windows"] == 11
    assert statuses[-1]["not_ready"] == "shutting down"  # the last line is of the end, not of the last half second
    assert "Traceback" not in errors


def test_control_c_ends_a_device_in_order(tmp_path, served):
    edge = device(tmp_path, served, "--synthetic", "--interval", "0.2")
    while json.loads(edge.stdout.readline())["windows_seen"] < 2:
        pass
    code, out, errors = end(edge)
    assert code == 0, errors
    summary = json.loads(out.splitlines()[-1])
    assert summary["event"] == "summary" and summary["left_in_queue"] == 0 and summary["windows_sent"] >= 2
    assert "Traceback" not in errors


def test_control_c_during_a_measurement_gives_130_and_no_traceback(tmp_path):
    child = start(tmp_path, "profile", "--repeats", "100000", "--log-level", "INFO")
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(6)
    code, _, errors = end(child)
    assert code == 130
    assert errors.strip() == "interrupted"


def test_a_taken_port_is_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        child = start(tmp_path, "server", "--port", str(taken.getsockname()[1]), "--log-level", "ERROR")
        out, errors = child.communicate(timeout=60)
    assert child.returncode == 1 and out == ""
    assert errors.count("\n") == 1 and "is taken" in errors and "--port" in errors


def test_a_wrong_token_ends_the_device_with_one_line(tmp_path, served):
    edge = device(tmp_path, served, "--source", "synthetic:3", "--speed", "0", token="wrong")
    _, errors = edge.communicate(timeout=60)
    assert edge.returncode == 4
    last = errors.strip().splitlines()[-1]
    assert last.startswith("streamsplit: error: ") and "token" in last and "Traceback" not in errors


def test_a_server_that_is_not_there_does_not_stop_a_device_from_listening(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    edge = device(tmp_path, port, "--source", "synthetic:3", "--speed", "0", drain_s=2.0)
    out, errors = edge.communicate(timeout=120)
    assert edge.returncode == 0, errors
    summary = json.loads(out.splitlines()[-1])
    assert summary["windows_sent"] == summary["left_in_queue"] == 5 and summary["results"] == 0
