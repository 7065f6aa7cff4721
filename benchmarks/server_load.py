"""How many devices one server process carries: N simulated devices, one embedding a second each, over real sockets.

python -m benchmarks.server_load [--devices 500] [--seconds 15] [--repeats 5] [--refine]

The server is a process of its own; the devices are this one. Latency is from handing a window to the socket until its
RESULT is parsed, so it holds both processes' share of the machine: on a busy one, read it beside `load_1_min` and
`niceness`, or run it under `nice -n -15`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import httpx
import numpy as np
import psutil
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from benchmarks.record import record
from streamsplit.encoders.embedding_codec import pack_embedding
from streamsplit.errors import ConnectionRefused
from streamsplit.server.run import run_server
from streamsplit.server.settings import ServerSettings
from streamsplit.wire.events import Closed, MessageReceived, Opened
from streamsplit.wire.media import Encoding, MediaHeader, pack_media
from streamsplit.wire.messages import Hello, Result
from streamsplit.wire.session import ClientSession
from streamsplit.wire.types import PROTOCOL_VERSION, FrameType

BLOCKS = 13
SEED = 0
OPENING_S = 0.01  # between two connections


class Load:
    """What all devices together measured."""

    def __init__(self) -> None:
        self.latencies_ms: list[float] = []
        self.sent = 0
        self.counting = False


class LoadDevice:
    """One device without audio or encoder: sends ready embeddings, counts answers."""

    def __init__(self, number: int, port: int, load: Load) -> None:
        self._number = number
        self._url = f"ws://127.0.0.1:{port}/v1/stream"
        self._load = load
        self._session = ClientSession()
        self._sent_s: dict[int, float] = {}
        self._opened = asyncio.get_running_loop().create_future()
        self._prefix = 0

    async def run(self, stop: asyncio.Event, start: asyncio.Event, interval_s: float) -> None:
        """Connects, sends every `interval_s` once `start` is set, ends with `stop`."""
        hello = Hello(
            protocol=PROTOCOL_VERSION,
            device_id=f"load-{self._number}",
            token="",
            epoch=self._number + 1,
            oldest_sequence=1,
            next_sequence=1,
            device_class="simulated",
        )
        async with connect(self._url, compression=None, ping_interval=None) as socket:
            self._session.hello(hello, now_ms())
            await self._flush(socket)
            reader = asyncio.create_task(self._read(socket))
            welcome = await self._opened
            self._prefix = int(welcome.revision[:8], 16)
            await start.wait()
            due_s = time.monotonic() + random.Random(self._number).random() * interval_s
            sequence, rng = 0, np.random.default_rng(self._number)
            while not stop.is_set():
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                due_s += interval_s
                sequence += 1
                self._session.send_window(FrameType.EMBEDDING, sequence, now_ms(), self._window(sequence, rng))
                self._sent_s[sequence] = time.monotonic()
                self._load.sent += self._load.counting
                await self._flush(socket)
            end_s = time.monotonic() + 10.0
            while self._sent_s and time.monotonic() < end_s:
                await asyncio.sleep(0.05)
            await socket.close()
            await reader

    def _window(self, sequence: int, rng: np.random.Generator) -> bytes:
        z = rng.standard_normal(128).astype(np.float32)
        payload = pack_embedding(z / np.linalg.norm(z), Encoding.EMBEDDING_FP16)
        header = MediaHeader(sequence, self._prefix, BLOCKS, Encoding.EMBEDDING_FP16, 0, 0, 1.0, 0, 1.0, 0)
        return pack_media(header, payload)

    async def _read(self, socket: Any) -> None:
        with contextlib.suppress(ConnectionClosed):  # our own goodbye may cross an answer
            await self._answer(socket)

    async def _answer(self, socket: Any) -> None:
        async for data in socket:
            self._session.receive(data, now_ms())
            for event in self._session.events():
                if isinstance(event, Opened):
                    self._opened.set_result(event.welcome)
                elif isinstance(event, Closed) and not self._opened.done():
                    self._opened.set_exception(ConnectionRefused(f"{event.code}: {event.reason}"))
                elif isinstance(event, MessageReceived) and isinstance(event.message, Result):
                    sent_s = self._sent_s.pop(event.message.sequence)
                    if self._load.counting:
                        self._load.latencies_ms.append(1000 * (time.monotonic() - sent_s))
            self._session.tick(now_ms())
            await self._flush(socket)

    async def _flush(self, socket: Any) -> None:
        while batch := self._session.bytes_to_send(now_ms=now_ms()):
            for data in batch:
                await socket.send(data)


async def drive(port: int, devices: int, seconds: float, repeats: int, interval_s: float, pid: int) -> dict[str, Any]:
    """Connects all devices, lets them run, and returns medians over `repeats` rounds, and the rounds."""
    load, stop, start = Load(), asyncio.Event(), asyncio.Event()
    tasks = []
    for number in range(devices):
        tasks.append(asyncio.create_task(LoadDevice(number, port, load).run(stop, start, interval_s)))
        await asyncio.sleep(OPENING_S)
    start.set()
    await asyncio.sleep(2 * interval_s)  # every device has sent one
    server = psutil.Process(pid)
    cpu_before, wall_before = server.cpu_times(), time.monotonic()
    load.counting = True
    rounds, every = [], []
    for _ in range(repeats):
        late_ms = await lateness(seconds)
        latencies, load.latencies_ms = load.latencies_ms, []
        every += latencies
        p50, p95, p99 = np.percentile(latencies, (50, 95, 99))
        rounds.append({
            "latency_p50_ms": float(p50), "latency_p95_ms": float(p95), "latency_p99_ms": float(p99),
            "latency_max_ms": max(latencies), "answered": len(latencies), "machine_late_p99_ms": late_ms,
        })  # fmt: skip
    load.counting = False
    cpu_after, wall_s = server.cpu_times(), time.monotonic() - wall_before
    async with httpx.AsyncClient() as client:
        status = (await client.get(f"http://127.0.0.1:{port}/api/status", timeout=10.0)).json()
    memory = server.memory_info().rss
    stop.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    failures = [repr(error) for error in results if isinstance(error, BaseException)]
    async with httpx.AsyncClient() as client:
        stored = (await client.get(f"http://127.0.0.1:{port}/api/status", timeout=10.0)).json()["totals"]
    cpu_s = (cpu_after.user + cpu_after.system) - (cpu_before.user + cpu_before.system)
    return {
        "devices": devices,
        "windows_per_s": load.sent / wall_s,
        "sent": load.sent,
        **{name: statistics.median(r[name] for r in rounds) for name in rounds[0] if name.startswith("latency_p")},
        "latency_p99_of_all_rounds_ms": float(np.percentile(every, 99)),
        "rounds": rounds,  # machine_late_p99_ms: of a plain sleep beside, what the machine's other work costs
        "server_cpu_share": cpu_s / wall_s,
        "server_memory_mb": memory / 1e6,
        "server_loop_lag_ms": status["loop_lag_ms"],
        "server_latency_ms": status["latency_ms"],
        "stored_windows": stored["stored_windows"],
        "device_failures": failures[:5],
        "load_1_min": psutil.getloadavg()[0],
        "niceness": os.nice(0),  # below 0: both processes go before the machine's other work
    }


_SLEEPER = """
import sys, time
late, end_s = [], time.monotonic() + float(sys.argv[1])
while time.monotonic() < end_s:
    before_s = time.monotonic()
    time.sleep(0.005)
    late.append(1000 * (time.monotonic() - before_s - 0.005))
print(sorted(late)[int(0.99 * len(late))])
"""


async def lateness(seconds: float) -> float:
    """p99 of how late a process that does nothing else wakes up, in ms: what the machine's other work costs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-S", "-c", _SLEEPER, str(seconds), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return float(output)


def now_ms() -> float:
    """The devices' clock."""
    return 1000 * time.monotonic()


def serve(connection: Connection, values: dict[str, Any]) -> None:
    """The server's process."""
    run_server(ServerSettings.from_mapping(values), on_ready=lambda _, port: connection.send(port))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=15.0, help="of one round")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two windows of a device")
    parser.add_argument("--refine", action="store_true", help="let the refiner train beside it; written apart")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        values = {
            "server": {"port": 0, "data_dir": folder, "log_level": "ERROR"},
            "training": {"enabled": options.refine},
            "limits": {"max_devices": max(2000, options.devices)},
        }
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, values))
        process.start()
        try:
            if not ours.poll(60.0):
                raise SystemExit("the server did not start within 60 s")
            figures = asyncio.run(
                drive(
                    ours.recv(), options.devices, options.seconds, options.repeats, options.interval, process.pid or 0
                )
            )
        finally:
            process.terminate()
            process.join(30.0)
    path = record(
        "server_load_refine" if options.refine else "server_load", figures, {**vars(options), "server": values}, [SEED]
    )
    for name, value in figures.items():
        print(f"{name:>29}  {value:.2f}" if isinstance(value, float) else f"{name:>29}  {value}")
    print(f"{'written':>29}  {path}")


if __name__ == "__main__":
    main()
