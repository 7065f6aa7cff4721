"""Child processes of a run: started with a log file, watched, ended in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamsplit.errors import StreamSplitError


class Child:
    """`streamsplit ARGUMENTS` as its own process, output to `log`."""

    def __init__(self, name: str, arguments: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "streamsplit.cli.main", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """False once it has ended, well or not."""
        return self._process.poll() is None

    def check(self) -> None:
        """Raises StreamSplitError with the log's last line if it ended with an error."""
        code = self._process.poll()
        if code:
            raise StreamSplitError(f"{self.name} ended with exit code {code}: {self.last_line()} (log: {self.log})")

    def stop(self, timeout_s: float = 30.0) -> None:
        """Asks it to end (SIGINT), waits, and kills it if it does not."""
        if self.running:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        self._process.kill()
        self._process.wait()

    def last_line(self) -> str:
        """What it said last."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def read_json_url(url: str, timeout_s: float = 2.0) -> dict[str, Any] | None:
    """The JSON object at an HTTP address, or None while nobody answers there."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            values: dict[str, Any] = json.load(answer)
            return values
    except (urllib.error.URLError, TimeoutError, ConnectionError, json.JSONDecodeError):
        return None


def wait_until_ready(server: Child, url: str, timeout_s: float = 60.0) -> None:
    """Returns when the server answers at `url`; raises StreamSplitError if it ends or takes too long."""
    deadline = time.monotonic() + timeout_s
    while read_json_url(url) is None:
        server.check()
        if not server.running or time.monotonic() > deadline:
            raise StreamSplitError(f"{server.name} does not answer at {url}: {server.last_line()} (log: {server.log})")
        time.sleep(0.1)
