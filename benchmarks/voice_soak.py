"""A voice client for half an hour on a link that is cut at random: is every utterance heard, in order, once?

    python -m benchmarks.voice_soak [--minutes 30] [--seed 0]

The client is `streamsplit talk` on a recording, server and client are processes of their own, the link between them is
the live shaper's, cut every 20 s on average, for half a second to 40, with connections broken or hanging. Utterances
are chords that tell their number; the server posts each question to this process, which reads the number from its
sound. Memory is the resident set of both processes, the median of the last quarter over that of the second one.
"""

from __future__ import annotations

import argparse
import http.server
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile
import yaml
from numpy.typing import NDArray

from benchmarks.record import record
from streamsplit.evaluation.processes import Child, wait_until_ready
from streamsplit.network.bandwidth import constant_trace
from streamsplit.network.shaper import ShapedProxy

Floats = NDArray[np.float64]
RATE = 16_000
LOW_HZ, HIGH_HZ = 300.0 + 40.0 * np.arange(20), 1_500.0 + 60.0 * np.arange(40)
UTTERANCE_S, PAUSE_S = (0.8, 3.5), (1.6, 3.0)
QUIET_S = 45.0  # at the end, without cuts
LONGEST_STATE_S = {"RECORDING": 50.0, "STREAMING": 10.0, "PROCESSING": 12.0, "RECEIVING": 8.0, "PLAYING": 15.0,
                   "ERROR": 3.0}  # fmt: skip


def write_recording(path: Path, seconds: float, rng: np.random.Generator) -> int:
    """Chords between pauses with a little noise; how many there are."""
    number, at = 0, 2.0
    with soundfile.SoundFile(str(path), "w", RATE, 1, "PCM_16") as file:
        file.write(_noise(2.0, rng))
        while at < seconds - 8.0:
            length_s, pause_s = rng.uniform(*UTTERANCE_S), rng.uniform(*PAUSE_S)
            time_s = np.arange(round(length_s * RATE)) / RATE
            low, high = LOW_HZ[number % 20], HIGH_HZ[number // 20]
            ramp = np.minimum(1.0, np.minimum(time_s, length_s - time_s) / 0.02)
            file.write(0.15 * ramp * (np.sin(2 * np.pi * low * time_s) + np.sin(2 * np.pi * high * time_s)))
            file.write(_noise(pause_s, rng))
            at += length_s + pause_s
            number += 1
        file.write(_noise(4.0, rng))
    return number


def read_number(sound: Floats) -> int:
    """Which chord this is."""
    power = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 1 << 17)) ** 2
    pitch = np.fft.rfftfreq(1 << 17, 1 / RATE)

    def nearest(pitches: Floats) -> int:
        band = (pitch > pitches[0] - 20) & (pitch < pitches[-1] + 20)
        return int(np.abs(pitches - pitch[band][power[band].argmax()]).argmin())

    return 20 * nearest(HIGH_HZ) + nearest(LOW_HZ)


class Listener:
    """Where the server posts its questions; one after the other, in the order in which they come."""

    def __init__(self) -> None:
        self.heard: list[int] = []
        answer = io.BytesIO()
        tone = 0.1 * np.sin(2 * np.pi * 880 * np.arange(RATE // 2) / RATE)
        soundfile.write(answer, tone, RATE, subtype="PCM_16", format="WAV")
        heard = self.heard

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                sound, _ = soundfile.read(io.BytesIO(data), dtype="float64")
                heard.append(read_number(sound))
                self.send_response(200)
                self.send_header("Content-Type", "audio/wav")
                self.send_header("Content-Length", str(len(answer.getvalue())))
                self.end_headers()
                self.wfile.write(answer.getvalue())

            def log_message(self, format: str, *args: Any) -> None:
                """Quietly."""

        self._server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Ends it."""
        self._server.shutdown()
        self._server.server_close()


def cut_at_random(proxy: ShapedProxy, seconds: float, rng: np.random.Generator) -> int:
    """Cuts until the time is over; how often."""
    end_s, cuts = time.monotonic() + seconds, 0
    while (wait_s := float(rng.exponential(20.0))) + time.monotonic() < end_s:
        time.sleep(wait_s)
        length_s = float(rng.uniform(20.0, 40.0) if rng.random() < 0.05 else rng.uniform(0.5, 8.0))
        proxy.cut(length_s, reset=bool(rng.random() < 0.5))
        cuts += 1
        time.sleep(length_s)
    time.sleep(max(0.0, end_s - time.monotonic()))
    return cuts


class Memory:
    """Resident memory of processes, sampled in a thread."""

    def __init__(self, **pids: int) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self.mb: dict[str, list[float]] = {name: [] for name in pids}
        self._done = threading.Event()
        threading.Thread(target=self._sample, daemon=True).start()

    def stop(self) -> dict[str, float]:
        """Median of the last quarter over that of the second, MB."""
        self._done.set()
        grown = {}
        for name, values in self.mb.items():
            quarter = len(values) // 4
            grown[f"{name}_mb"] = round(float(np.median(values[-quarter:])), 1)
            before = float(np.median(values[quarter : 2 * quarter]))
            grown[f"{name}_growth_mb"] = round(float(np.median(values[-quarter:])) - before, 2)
        return grown

    def _sample(self) -> None:
        while not self._done.wait(1.0):
            for name, process in self._processes.items():
                try:
                    self.mb[name].append(process.memory_info().rss / 1e6)
                except psutil.NoSuchProcess:  # the client ends before the measurement does
                    continue


def states(events: list[dict[str, Any]]) -> dict[str, float]:
    """The longest stay in each state, s."""
    longest: dict[str, float] = {}
    changes = [(event["value"], event["at_ms"]) for event in events if event["event"] == "state"]
    for (state, since), (_, until) in itertools.pairwise(changes):
        longest[state] = max(longest.get(state, 0.0), (until - since) / 1000.0)
    return {state: round(seconds, 2) for state, seconds in sorted(longest.items()) if state != "IDLE"}


def soak(folder: Path, seconds: float, seed: int) -> dict[str, Any]:
    """One run; its figures."""
    rng = np.random.default_rng(seed)
    spoken = write_recording(folder / "spoken.wav", seconds, rng)
    if spoken > len(LOW_HZ) * len(HIGH_HZ):
        raise SystemExit(f"got {spoken} utterances, expected at most {len(LOW_HZ) * len(HIGH_HZ)}: fewer minutes")
    listener = Listener()
    port = _free_port()
    (folder / "server.yaml").write_text(
        yaml.safe_dump(
            {
                "server": {"port": port, "data_dir": str(folder / "server")},
                "training": {"enabled": False},
                "dialogue": {"responder": "http", "url": listener.url},
            }
        )
    )
    server = Child("the server", ["server", "--config", str(folder / "server.yaml")], folder / "server.log")
    link = constant_trace(10e6, 40.0)
    proxy = ShapedProxy(("127.0.0.1", port), link, link, seed=seed).start_in_thread()
    try:
        wait_until_ready(server, f"http://127.0.0.1:{port}/api/status")
        with (folder / "talk.jsonl").open("w") as out:
            client = subprocess.Popen(
                [sys.executable, "-m", "streamsplit.cli.main", "talk", "--server", f"127.0.0.1:{proxy.address[1]}",
                 "--source", str(folder / "spoken.wav"), "--sink", "none", "--json"],
                cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=out, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        memory = Memory(server=server.pid, client=client.pid)
        cuts = cut_at_random(proxy, max(seconds - QUIET_S, 1.0), rng)
        _, errors = client.communicate(timeout=seconds + 120.0)
        grown = memory.stop()
    finally:
        proxy.stop_thread()
        server.stop()
        listener.close()
    events = [json.loads(line) for line in (folder / "talk.jsonl").read_text().splitlines()]
    if client.returncode or not events or events[-1]["event"] != "summary":
        raise SystemExit(f"the client ended with {client.returncode}: {errors.strip().splitlines()[-1:]}")
    summary, longest = events[-1], states(events)
    return {
        "minutes": round(seconds / 60.0, 1), "cuts": cuts, "spoken": spoken, "heard": len(listener.heard),
        "lost": sorted(set(range(spoken)) - set(listener.heard)),
        "twice": len(listener.heard) - len(set(listener.heard)), "in_order": listener.heard == sorted(listener.heard),
        "stored_without_link": summary["counts"]["stored"],
        "forgotten": summary["counts"]["forgotten"], "errors": summary["counts"]["errors"],
        "answers_played": summary["counts"]["answers"], "state_at_the_end": summary["state"],
        "waiting_at_the_end": summary["waiting"], "longest_s": longest,
        "stuck": sorted(state for state, stay in longest.items() if stay > LONGEST_STATE_S[state]), **grown,
    }  # fmt: skip


def _noise(seconds: float, rng: np.random.Generator) -> Floats:
    return 0.0005 * rng.standard_normal(round(seconds * RATE))


def _free_port() -> int:
    import socket

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def main() -> int:
    """Writes benchmarks/results/voice_soak.json; exit code 1 where something was lost or stuck."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for recording, logs and events (default: none are kept)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = args.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        figures = soak(folder.resolve(), 60.0 * args.minutes, args.seed)
    for item, value in figures.items():
        print(f"{item:24s} {value}")
    print(f"written to {record('voice_soak', figures, {'minutes': args.minutes}, [args.seed])}")
    given_up = figures["forgotten"]  # more waited in one outage than are kept
    return int(bool(len(figures["lost"]) > given_up or figures["twice"] or figures["stuck"] or not figures["in_order"]))


if __name__ == "__main__":
    raise SystemExit(main())
