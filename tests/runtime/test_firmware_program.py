"""The firmware's device as a Linux program, over a real socket to a real server."""

from __future__ import annotations

import asyncio
import shutil
import socket
import sqlite3
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from server_harness import make_settings, running

from streamsplit.audio.synth import render_scene
from streamsplit.edge.runtime import EdgeRuntime
from streamsplit.edge.settings import EdgeSettings
from streamsplit.edge.sources import open_source
from streamsplit.export.c_model import c_files
from streamsplit.weights.codec_file import read_codec

FIRMWARE = Path(__file__).parents[2] / "firmware"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [tool for tool in ("make", "gcc") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    folder = tmp_path_factory.mktemp("firmware")
    for file, text in c_files(read_codec("tiny_mel").integer_encoder()).items():
        (folder / file).write_text(text)
    subprocess.run(
        ["make", "-C", FIRMWARE, "device", f"MODEL={folder}", f"BUILD={folder}/build", "CC=gcc"],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return folder / "build" / "device"


def sound(seconds: float) -> np.ndarray:
    audio = render_scene("conversation", seconds, np.random.default_rng(4)).clip(-1, 1)
    return np.rint(audio * 32_767).astype("<i2")


def run(
    program: Path, url: str, samples: np.ndarray, *words: str, token: str = "secret"
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [program, "--url", url, "--id", "porch", *words], input=samples.tobytes(), capture_output=True, timeout=60,
        env={"STREAMSPLIT_TOKEN": token}, check=False,
    )  # fmt: skip


def stored(folder: Path, device: str) -> list[tuple[int, bytes, str]]:
    with sqlite3.connect(folder / "server" / "server.sqlite") as database:
        query = "SELECT window, embedding, error FROM windows WHERE device = ? ORDER BY sequence"
        return database.execute(query, (device,)).fetchall()


class Cutter(threading.Thread):
    """Forwards to a port, and drops its first connections after so many bytes from the device."""

    def __init__(self, port: int, limits: list[int]) -> None:
        super().__init__(daemon=True)
        self.cuts = 0
        self._port, self._limits = port, limits
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def run(self) -> None:
        while True:
            try:
                device, _ = self._listener.accept()
            except OSError:  # closed: the test is over
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            back = threading.Thread(target=self._carry, args=(server, device, None), daemon=True)
            back.start()
            self._carry(device, server, self._limits.pop(0) if self._limits else None)

    def _carry(self, source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        carried = 0
        try:
            while data := source.recv(256):
                carried += len(data)
                if limit is not None and carried > limit:
                    self.cuts += 1
                    break
                sink.sendall(data)
        except OSError:  # the other direction has closed it
            pass
        for end in (source, sink):
            end.close() if limit is None else end.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        self._listener.close()


def test_its_windows_become_the_embeddings_of_the_python_devices(program: Path, tmp_path: Path) -> None:
    samples = sound(9.0)
    soundfile.write(tmp_path / "sound.wav", samples, 16_000, subtype="PCM_16")
    config = {
        "device": {"id": "python", "state_dir": str(tmp_path / "state")},
        "encoder": {"enabled": False},
        "splitting": {"agent": {"policy": "fixed", "cut": "0:tinystream"}, "gate": {"enabled": False}},
    }
    with running(make_settings(tmp_path / "server")) as server:
        url = f"ws://127.0.0.1:{server.port}/v1/stream"
        done = run(program, url, samples)
        settings = EdgeSettings.from_mapping({**config, "server": {"url": url, "token": "secret", "drain_s": 20.0}})
        asyncio.run(EdgeRuntime(settings, open_source(str(tmp_path / "sound.wav"), speed=0), speed=0).run())
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr.decode().startswith("windows: 16 heard, 16 sent, 0 dropped, 16 results; 0 not delivered")
    assert done.stdout.count(b"uncertainty") == 16
    ours, theirs = stored(tmp_path, "porch"), stored(tmp_path, "python")
    assert [window for window, _, _ in ours] == list(range(16)) and {error for *_, error in ours} == {""}
    for (_, mine, _), (_, reference, _) in zip(ours, theirs, strict=False):
        got, expected = (np.frombuffer(data, np.float16).astype(np.float32) for data in (mine, reference))
        assert got @ expected > 0.999  # 16-bit samples here and there; codes differ where rounding does


def test_a_link_that_breaks_loses_nothing_and_doubles_nothing(program: Path, tmp_path: Path) -> None:
    with running(make_settings(tmp_path / "server")) as server:
        cutter = Cutter(server.port, [900, 1_700])
        cutter.start()
        done = run(program, f"ws://127.0.0.1:{cutter.port}/v1/stream", sound(12.0))
        cutter.stop()
    assert done.returncode == 0, done.stderr.decode()
    assert cutter.cuts == 2 and "0 not delivered" in done.stderr.decode()
    rows = stored(tmp_path, "porch")
    assert [window for window, _, _ in rows] == list(range(22)) and {error for *_, error in rows} == {""}


def test_what_it_cannot_do_it_says_in_a_line(program: Path, tmp_path: Path) -> None:
    with running(make_settings(tmp_path / "server", auth={"shared_token": "secret"})) as server:
        refused = run(program, f"ws://127.0.0.1:{server.port}/v1/stream", sound(1.5), token="wrong")
    assert refused.returncode == 1 and b"the token of device 'porch' is wrong" in refused.stderr
    usage = subprocess.run([program, "--id", "porch"], capture_output=True, timeout=10, check=False)
    assert usage.returncode == 2 and usage.stderr.startswith(b"usage: ")
    wild = run(program, "http://127.0.0.1:9/", sound(0.1))
    assert wild.returncode == 2 and b"got 'http://127.0.0.1:9/', expected ws://HOST:PORT/v1/stream" in wild.stderr
