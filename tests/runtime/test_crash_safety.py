"""Kill the server, kill the device, cut the link: every window accepted for sending is stored exactly once.

Real processes (`streamsplit server`, `streamsplit edge`), real sockets, one run of about 30 s. The device's record is
its queue file (every sequence below `next_sequence` was accepted) and its journal (what it wrote down when it accepted
a window); the server's is its database. They are compared by plain SQL after everything has ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from streamsplit.edge.journal import read_journal
from streamsplit.network.shaper import ShapedProxy
from streamsplit.network.trace import generate_trace

CUT_S = 11.0
SPEED = 6.0  # windows come six times as fast as in real time: more of them are under way at every accident


class Process:
    """A command of the project in a process group of its own; its log is kept for the failure message."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "streamsplit.cli.main", *arguments], stdout=file, stderr=file,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def kill(self) -> None:
        """As a power switch would."""
        self._process.kill()
        self._process.wait(10)

    def finish(self, seconds: float) -> int:
        """Ctrl-C, then the exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        return self._process.wait(seconds)

    def check(self) -> None:
        """Fails with the log if the process has ended by itself."""
        code = self._process.poll()
        assert code is None, f"ended with {code}:\n{self.log.read_text()[-3000:]}"

    def stop(self) -> None:
        if self._process.poll() is None:
            self.kill()


class Site:
    """One server, one device, and the link between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        link = generate_trace(300, 3, level=0.6, rate_scale=0.5)
        self.proxy = ShapedProxy(("127.0.0.1", self.port), link, seed=1).start_in_thread()
        self.server_yaml, self.edge_yaml = folder / "server.yaml", folder / "edge.yaml"
        self.server_yaml.write_text(
            yaml.safe_dump(
                {
                    "server": {"port": self.port, "data_dir": str(folder / "server")},
                    "auth": {"shared_token": "secret"},
                    "training": {"enabled": False},
                }
            )
        )
        self.edge_yaml.write_text(
            yaml.safe_dump({
                "device": {
                    "id": "pi", "state_dir": str(folder / "device"), "journal": str(folder / "journal.jsonl"),
                },
                "server": {
                    "url": f"ws://127.0.0.1:{self.proxy.address[1]}/v1/stream", "token": "secret",
                    "first_backoff_s": 0.2, "longest_backoff_s": 1.0, "drain_s": 20.0,
                },
                "training": {"enabled": False},
                # pieces that join only if the window before is there: the cut with the most to lose
                "splitting": {"agent": {"policy": "fixed", "cut": "0:logmel-int8"}, "gate": {"enabled": False}},
            })
        )  # fmt: skip
        self.processes: list[Process] = []

    def start_server(self) -> Process:
        process = self._start(["server", "--config", str(self.server_yaml)], "server.log")
        wait_until(lambda: ready(self.port), 40, "the server's /readyz", process)
        return process

    def start_device(self) -> Process:
        return self._start(
            ["edge", "--config", str(self.edge_yaml), "--synthetic", "--speed", str(SPEED), "--json"], "edge.log"
        )

    def _start(self, arguments: list[str], log: str) -> Process:
        process = Process(arguments, self.folder / log)
        self.processes.append(process)
        return process

    def stored(self) -> int:
        """Rows in the server's database."""
        return len(self.rows())

    def rows(self) -> list[tuple[int, int, int, str, int]]:
        path = self.folder / "server" / "server.sqlite"
        if not path.exists():
            return []
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            return database.execute("SELECT epoch, sequence, window, error, block FROM windows").fetchall()

    def close(self) -> None:
        for process in self.processes:
            process.stop()
        self.proxy.stop_thread()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float, what: str, *processes: Process) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        for process in processes:
            process.check()
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def test_no_accepted_window_is_lost_or_stored_twice(site: Site) -> None:
    server = site.start_server()
    device = site.start_device()
    wait_until(lambda: site.stored() >= 20, 30, "windows to arrive", server, device)

    server.kill()  # in mid-run: windows are under way, computed, committed but not acknowledged
    time.sleep(1.5)
    device.check()
    server = site.start_server()
    count = site.stored()
    wait_until(lambda: site.stored() >= count + 20, 20, "windows after the server's restart", server, device)

    device.kill()  # in mid-run: windows are accepted, sent, acknowledged but not forgotten
    device = site.start_device()
    count = site.stored()
    wait_until(lambda: site.stored() >= count + 20, 20, "windows after the device's restart", server, device)

    site.proxy.cut(CUT_S)  # longer than any patience, shorter than the session's memory
    cut_at = time.monotonic()
    count = site.stored()
    time.sleep(2.0)
    held = site.stored()
    while time.monotonic() - cut_at < CUT_S:
        time.sleep(0.2)
        device.check()
        server.check()
    assert site.stored() == held <= count + 64, "the link was not cut"
    wait_until(lambda: site.stored() >= held + 110, 20, "what was heard during the cut", server, device)

    assert device.finish(40) == 0, site.folder.joinpath("edge.log").read_text()[-3000:]
    assert server.finish(20) == 0, site.folder.joinpath("server.log").read_text()[-3000:]

    with closing(sqlite3.connect(site.folder / "device" / "queue.sqlite")) as queue:
        meta = dict(queue.execute("SELECT name, value FROM meta"))
        left = queue.execute("SELECT count(*) FROM windows").fetchone()[0]
    rows = site.rows()
    stored = sorted(sequence for _, sequence, *_ in rows)
    assert left == 0
    assert {epoch for epoch, *_ in rows} == {meta["epoch"]}
    assert stored == list(range(1, meta["next_sequence"])), "lost or doubled windows"
    assert len({window for _, _, window, *_ in rows}) == len(rows), "one window under two sequences"

    windows = {sequence: (window, error) for _, sequence, window, error, _ in rows}
    journal = list(read_journal(site.folder / "journal.jsonl"))
    accepted = {row["sequence"]: row["window"] for row in journal if row["kind"] == "window" and row["sequence"]}
    assert len(accepted) >= len(rows) - 2  # a kill may come between accepting and writing it down
    assert {sequence: windows[sequence][0] for sequence in accepted} == accepted
    rejected = {sequence: error for sequence, (_, error) in windows.items() if error}
    assert not rejected, "pieces did not join across the accidents"

    answered = [row["sequence"] for row in journal if row["kind"] == "result"]
    assert len(answered) == len(set(answered)), "a result was counted twice"
    summary = json.loads(site.folder.joinpath("edge.log").read_text().strip().splitlines()[-1])
    assert summary["event"] == "summary" and summary["left_in_queue"] == 0 and summary["windows_dropped"] == 0
