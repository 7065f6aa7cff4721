"""Microphone and loudspeaker as PortAudio gives them: devices of a PulseAudio server of our own, without hardware."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from server_harness import make_settings, running

pytestmark = [
    pytest.mark.realtime,
    pytest.mark.skipif(
        shutil.which("pulseaudio") is None or shutil.which("pacat") is None,
        reason="no PulseAudio: apt-get install pulseaudio pulseaudio-utils libasound2-plugins libportaudio2",
    ),
]
RATE = 16_000
ASOUNDRC = """
pcm.respeaker { type pulse
 device room.monitor }
pcm.loudspeaker { type pulse
 device speaker }
"""
RAW = ("--raw", "--rate=16000", "--channels=1", "--format=s16le", "--latency-msec=20")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which PortAudio finds a microphone 'respeaker', which hears what is played into the sink
    'room', and a 'loudspeaker'."""
    home = tmp_path_factory.mktemp("sound")
    (home / ".asoundrc").write_text(ASOUNDRC)
    environment = {**os.environ, "HOME": str(home), "XDG_RUNTIME_DIR": str(home), "OMP_NUM_THREADS": "1"}
    sinks = [word for name in ("room", "speaker") for word in ("-L", f"module-null-sink sink_name={name} rate=48000")]
    words = ["pulseaudio", "-n", "--exit-idle-time=-1", "--disallow-exit", "-L", "module-native-protocol-unix", *sinks]
    server = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while subprocess.run(["pactl", "info"], env=environment, capture_output=True).returncode:
            assert server.poll() is None and time.monotonic() < deadline, "PulseAudio did not start"
            time.sleep(0.05)
        listed = _streamsplit(environment, "devices").stdout
        if "respeaker" not in listed:
            pytest.skip(f"PortAudio does not see PulseAudio (libasound2-plugins, libportaudio2): {listed!r}")
        yield environment
    finally:
        server.terminate()
        server.wait(10)


def _streamsplit(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streamsplit.cli.main", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def buzz(seconds: float, pitch_hz: float) -> np.ndarray:
    time_s = np.arange(round(seconds * RATE)) / RATE
    return (0.2 * sum(np.sin(2 * np.pi * pitch_hz * k * time_s) / k for k in range(1, 6))).astype(np.float32)


def strength(heard: np.ndarray, pitch_hz: float) -> float:
    """Largest amplitude of a sine of this pitch in any tenth of a second."""
    pieces = heard[: len(heard) // 1_600 * 1_600].reshape(-1, 1_600)
    wave = np.exp(-2j * np.pi * pitch_hz * np.arange(1_600) / RATE)
    return float(np.abs(pieces @ wave).max(initial=0.0) * 2 / 1_600)


def test_devices_lists_what_there_is(sound: dict[str, str]) -> None:
    answer = _streamsplit(sound, "devices")
    assert answer.returncode == 0 and "respeaker" in answer.stdout and "loudspeaker" in answer.stdout


def test_what_is_said_in_the_room_comes_back_from_the_loudspeaker(sound: dict[str, str], tmp_path: Path) -> None:
    with running(make_settings(tmp_path / "server", dialogue={"responder": "echo"})) as server:
        words = ["--server", f"127.0.0.1:{server.port}", "--json", "--device-id", "pi", "--duration", "60"]
        client = subprocess.Popen(
            [sys.executable, "-m", "streamsplit.cli.main", "talk", "--source", "mic:respeaker", "--sink",
             "speaker:loudspeaker", *words],
            env=sound, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        recorder = subprocess.Popen(
            ["pacat", "--record", "--device=speaker.monitor", *RAW], env=sound, stdout=(tmp_path / "heard").open("wb")
        )
        try:
            deadline = time.monotonic() + 30
            while not server.status()["totals"]["devices_connected"] and time.monotonic() < deadline:
                time.sleep(0.05)
            said = np.concatenate([np.zeros(8_000, np.float32), buzz(1.0, 220.0), np.zeros(24_000, np.float32)])
            data = np.rint(32_767 * said).astype("<i2").tobytes()
            subprocess.run(
                ["pacat", "--playback", "--device=room", *RAW], env=sound, input=data, timeout=30, check=True
            )
            events = []
            for line in client.stdout:
                events.append(json.loads(line))
                if events[-1]["event"] == "answer":
                    break
            client.send_signal(2)
            out, errors = client.communicate(timeout=30)
        finally:
            client.kill()
            recorder.terminate()
            recorder.wait(10)
    assert client.returncode == 0, errors
    summary = json.loads(out.splitlines()[-1])
    assert summary["counts"]["questions"] >= 1 and summary["counts"]["answers"] >= 1 and summary["problem"] == ""
    heard = np.frombuffer((tmp_path / "heard").read_bytes(), "<i2") / 32_768
    assert strength(heard, 220.0) > 0.1 and strength(heard, 293.0) < 0.05  # what was said, and no other pitch
