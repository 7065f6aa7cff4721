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


class Sound:
    """A PulseAudio server of our own, and the environment in which PortAudio finds its microphone 'respeaker', which
    hears what is played into the sink 'room', and its 'loudspeaker'."""

    def __init__(self, home: Path) -> None:
        (home / ".asoundrc").write_text(ASOUNDRC)
        (home / ".config" / "pulse").mkdir(parents=True)
        (home / ".config" / "pulse" / "client.conf").write_text("autospawn = no\n")
        self.environment = {**os.environ, "HOME": str(home), "XDG_RUNTIME_DIR": str(home), "OMP_NUM_THREADS": "1"}
        self.home = home
        self.start()

    def start(self) -> None:
        names = ("room", "speaker")
        sinks = [word for name in names for word in ("-L", f"module-null-sink sink_name={name} rate=48000")]
        words = ["-n", "--exit-idle-time=-1", "--disallow-exit", "-L", "module-native-protocol-unix", *sinks]
        self.server = subprocess.Popen(
            ["pulseaudio", *words], env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 20
        while subprocess.run(["pactl", "info"], env=self.environment, capture_output=True).returncode:
            assert self.server.poll() is None and time.monotonic() < deadline, "PulseAudio did not start"
            time.sleep(0.05)

    def unplug(self) -> None:
        """Both devices are gone at once."""
        self.server.kill()
        self.server.wait(10)
        (self.home / "pulse" / "pid").unlink(missing_ok=True)

    def say(self, samples: np.ndarray) -> None:
        """Into the room, in real time."""
        data = np.rint(32_767 * samples).astype("<i2").tobytes()
        words = ["pacat", "--playback", "--device=room", *RAW]
        subprocess.run(words, env=self.environment, input=data, timeout=30, check=True)

    def record(self, path: Path) -> subprocess.Popen[bytes]:
        """What the loudspeaker plays, into a file, until it is ended."""
        words = ["pacat", "--record", "--device=speaker.monitor", *RAW]
        return subprocess.Popen(words, env=self.environment, stdout=path.open("wb"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sound]:
    made = Sound(tmp_path_factory.mktemp("sound"))
    try:
        listed = _streamsplit(made.environment, "devices").stdout
        if "respeaker" not in listed:
            pytest.skip(f"PortAudio does not see PulseAudio (libasound2-plugins, libportaudio2): {listed!r}")
        yield made
    finally:
        made.server.terminate()
        made.server.wait(10)


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


def test_devices_lists_what_there_is(sound: Sound) -> None:
    answer = _streamsplit(sound.environment, "devices")
    assert answer.returncode == 0 and "respeaker" in answer.stdout and "loudspeaker" in answer.stdout


SAID = np.concatenate([np.zeros(8_000, np.float32), buzz(1.0, 220.0), np.zeros(24_000, np.float32)])


def heard(path: Path) -> np.ndarray:
    return np.frombuffer(path.read_bytes()[: path.stat().st_size // 2 * 2], "<i2") / 32_768


def test_what_is_said_comes_back_and_again_after_microphone_and_loudspeaker_were_gone(
    sound: Sound, tmp_path: Path
) -> None:
    config = tmp_path / "edge.yaml"
    config.write_text("audio: {retry_s: 0.5}\ntalk: {error_s: 0.2}\n")
    with running(make_settings(tmp_path / "server", dialogue={"responder": "echo"})) as server:
        words = ["--server", f"127.0.0.1:{server.port}", "--json", "--device-id", "pi", "--duration", "120"]
        client = subprocess.Popen(
            [sys.executable, "-m", "streamsplit.cli.main", "talk", "--source", "mic:respeaker", "--sink",
             "speaker:loudspeaker", "--config", str(config), *words],
            env=sound.environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=(tmp_path / "errors").open("wb"),
            text=True,
        )  # fmt: skip
        recorders = [sound.record(tmp_path / "before")]

        def until(*wanted: tuple[str, str]) -> list[tuple[str, str]]:
            """What happens up to when all of this has: the kinds of events, and how their texts begin."""
            events: list[tuple[str, str]] = []
            for line in client.stdout:
                found = json.loads(line)
                events.append((found["event"], found["value"]))
                if all(any(kind == k and text.startswith(t) for kind, text in events) for k, t in wanted):
                    return events
            raise AssertionError(f"the client ended: {(tmp_path / 'errors').read_text()}; {events}")

        try:
            deadline = time.monotonic() + 30
            while not server.status()["totals"]["devices_connected"] and time.monotonic() < deadline:
                time.sleep(0.05)
            sound.say(SAID)
            until(("answer", ""))
            sound.unplug()
            gone = until(("error", "microphone: "), ("error", "loudspeaker: "))
            assert [kind for kind, _ in gone].count("error") == 2 and ("state", "ERROR") in gone
            sound.start()
            recorders.append(sound.record(tmp_path / "after"))
            until(("device", "microphone: back"), ("device", "loudspeaker: back"), ("state", "IDLE"))
            sound.say(SAID)
            until(("answer", ""))
            client.send_signal(2)
            rest = client.stdout.read()
            client.wait(30)
        finally:
            client.kill()
            for recorder in recorders:
                recorder.terminate()
                recorder.wait(10)
    errors = (tmp_path / "errors").read_text()
    assert client.returncode == 0, errors
    summary = json.loads(rest.splitlines()[-1])
    assert summary["counts"]["questions"] >= 2 and summary["counts"]["answers"] >= 2 and summary["problem"] == ""
    assert summary["microphone_outages"] == summary["loudspeaker_outages"] == 1
    assert 0.5 < summary["microphone_gone_s"] < 60.0 and 0.5 < summary["loudspeaker_gone_s"] < 60.0
    for device in ("microphone: ", "loudspeaker: "):  # once that it is gone, and why; once that it is back
        said = [line for line in errors.splitlines() if device in line]
        assert len(said) == 2 and "unplugged?" in said[0] and "back after" in said[1], errors
    for part in ("before", "after"):  # what was said, and no other pitch
        assert strength(heard(tmp_path / part), 220.0) > 0.1 and strength(heard(tmp_path / part), 293.0) < 0.05
