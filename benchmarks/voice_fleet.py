"""How many voices one server core carries: N Opus streams in, their echoes out, over real sockets.

    python -m benchmarks.voice_fleet [--streams 200] [--seconds 30] [--message-ms 60]

Server and streams are processes of their own, on a core each where the machine has two. Every stream speaks all the
time, in questions of 20 s, begins at a moment of its own, and plays its echo through a jitter buffer of the client's
default settings. A frame that is not there when it is to be played is late; the share counts every frame of playout.
The server decodes what it hears, and learns from none of it (that is the encoder's work, not the stream's).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.record import record
from streamsplit.codec.jitter import JitterBuffer, Play
from streamsplit.codec.opus_stream import OpusEncoderStream, OpusSettings
from streamsplit.errors import StreamSplitError
from streamsplit.evaluation.echo_server import echo_server
from streamsplit.wire.dialogue import Kind, Utterance, pack_utterance, unpack_utterance
from streamsplit.wire.events import Closed, MediaReceived, MessageReceived, Opened
from streamsplit.wire.messages import Error, Hello
from streamsplit.wire.session import ClientSession
from streamsplit.wire.types import OPTIONAL_TYPES, PROTOCOL_VERSION, FrameFlag, FrameType

FRAME_MS = 20.0
QUESTION_S = 20.0
WARM_UP_S = 8.0
SEED = 0


class Voice:
    """One stream: sends coded speech in time, plays what comes back."""

    def __init__(self, number: int, packets: list[bytes], size: int) -> None:
        self.buffer = JitterBuffer()
        self.problem = ""
        self.frames = self.late = self.trips = 0
        self.trip_ms = 0.0
        self._number, self._packets, self._size = number, packets, size
        self._question = 1 + (number << 16)
        self._sent_ms: dict[int, float] = {}
        self._at = 0  # frame of the question
        self._sequence = 0
        self._session = ClientSession(refuses=OPTIONAL_TYPES - {FrameType.DIALOGUE})
        self._opened = asyncio.Event()

    async def run(self, port: int, stop: asyncio.Event) -> None:
        """Until `stop`."""
        hello = Hello(
            protocol=PROTOCOL_VERSION, device_id=f"voice-{self._number}", token="", epoch=self._number + 1,
            oldest_sequence=1, next_sequence=1, device_class="simulated",
        )  # fmt: skip
        async with connect(f"ws://127.0.0.1:{port}/v1/stream", compression=None, ping_interval=None) as socket:
            self._session.hello(hello, now_ms())
            await self._flush(socket)
            reader = asyncio.create_task(self._read(socket))
            await self._opened.wait()
            due_s = time.monotonic() + np.random.default_rng([SEED, self._number]).random() * 1.0
            while not stop.is_set() and not self.problem:
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                due_s += self._size * FRAME_MS / 1000.0
                self._speak()
                await self._flush(socket)
            reader.cancel()

    def _speak(self) -> None:
        over = self._at >= QUESTION_S * 1000.0 / FRAME_MS
        frames = tuple(self._packets[(self._at + n) % len(self._packets)] for n in range(self._size))
        piece = Utterance(self._question, self._at, Kind.OPUS, FRAME_MS, () if over else frames)
        self._sent_ms[self._at] = now_ms()
        self._sequence += 1
        flags = FrameFlag.FINAL if over else FrameFlag.NONE
        self._session.send_media(FrameType.DIALOGUE, pack_utterance(piece), now_ms(), flags, self._sequence)
        self._at += self._size
        if over:
            self._question, self._at = self._question + 1, 0
            self._sent_ms.clear()
            self.buffer.restart()

    def play(self, at_ms: float, *, count: bool) -> None:
        """A frame of playout."""
        played = self.buffer.pull(at_ms).play
        if count and played is not Play.NOTHING and played is not Play.END:
            self.frames += 1
            self.late += played is not Play.PACKET

    async def _read(self, socket: ClientConnection) -> None:
        async for data in socket:
            at_ms = now_ms()
            self._session.receive(bytes(data), at_ms)  # type: ignore[arg-type]  # the server sends bytes only
            for event in self._session.events():
                if isinstance(event, Opened):
                    self._opened.set()
                elif isinstance(event, MediaReceived):
                    self._heard(event, at_ms)
                elif isinstance(event, Closed):
                    self.problem = f"{event.code}: {event.reason}"
                elif isinstance(event, MessageReceived) and isinstance(event.message, Error):
                    self.problem = f"{event.message.code}: {event.message.detail}"
            self._session.tick(at_ms)
            await self._flush(socket)

    def _heard(self, event: MediaReceived, at_ms: float) -> None:
        piece = unpack_utterance(event.frame.payload)
        if piece.utterance != self._question or not piece.frames:
            return
        self.buffer.live = piece.live
        for place, frame in enumerate(piece.frames):
            self.buffer.push(piece.first + place, frame, at_ms)
        sent_ms = self._sent_ms.pop(piece.first, None)
        if sent_ms is not None:
            self.trips += 1
            self.trip_ms += at_ms - sent_ms

    async def _flush(self, socket: ClientConnection) -> None:
        while batch := self._session.bytes_to_send(now_ms=now_ms()):
            for data in batch:
                await socket.send(data)


async def drive(port: int, streams: int, seconds: float, size: int, pid: int) -> dict[str, Any]:
    """All streams for so long; raises StreamSplitError where one was turned away."""
    stop = asyncio.Event()
    packets = speech()
    voices = [Voice(number, packets, size) for number in range(streams)]
    tasks = []
    for voice in voices:
        tasks.append(asyncio.create_task(voice.run(port, stop)))
        await asyncio.sleep(0.01)
    server, lags = psutil.Process(pid), []
    counting_s = time.monotonic() + WARM_UP_S
    before, wall_s, own_s = server.cpu_times(), 0.0, 0.0
    due_s = time.monotonic()
    while (now_s := time.monotonic()) < counting_s + seconds:
        count = now_s >= counting_s
        if count and not wall_s:
            before, wall_s, own_s = server.cpu_times(), now_s, time.process_time()
        for voice in voices:
            voice.play(1000.0 * due_s, count=count)
        due_s += FRAME_MS / 1000.0
        lags.append(1000.0 * max(time.monotonic() - due_s, 0.0))
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
    after, wall_s = server.cpu_times(), time.monotonic() - wall_s
    own_s = time.process_time() - own_s
    stop.set()
    await asyncio.gather(*tasks)
    problems = [voice.problem for voice in voices if voice.problem]
    if problems:
        raise StreamSplitError(f"{len(problems)} of {streams} streams ended, such as with {problems[0]}")
    frames, trips = sum(voice.frames for voice in voices), sum(voice.trips for voice in voices)
    return {
        "streams": streams, "seconds": round(wall_s, 1), "frames": frames,
        "frames_expected": round(streams * wall_s * 1000.0 / FRAME_MS),
        "late_share": round(sum(voice.late for voice in voices) / max(frames, 1), 5),
        "trip_ms": round(sum(voice.trip_ms for voice in voices) / max(trips, 1), 2),
        "server_cpu_share": round((after.user + after.system - before.user - before.system) / wall_s, 3),
        "streams_cpu_share": round(own_s / wall_s, 3), "playout_lag_ms_p99": round(float(np.percentile(lags, 99)), 1),
        "load_1_min": os.getloadavg()[0],
    }  # fmt: skip


def speech() -> list[bytes]:
    """Opus packets of a voice-like buzz over noise, 5 s."""
    time_s = np.arange(5 * 16_000) / 16_000
    tone = np.asarray(sum(np.sin(2 * np.pi * 140 * k * time_s) / k for k in range(1, 8)))
    noise = 0.02 * np.random.default_rng(SEED).standard_normal(len(time_s))
    sound = (0.15 * tone * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time_s)) + noise).astype(np.float32)
    encoder = OpusEncoderStream(OpusSettings(dtx=False))
    return [encoder.encode(frame) for frame in sound.reshape(-1, 320)]


def now_ms() -> float:
    """Of the clock that everything here runs by."""
    return 1000.0 * time.monotonic()


def main() -> int:
    """Writes benchmarks/results/voice_fleet.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--message-ms", type=int, default=60, choices=(20, 40, 60))
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name, echo_server(Path(name)) as server:
        psutil.Process(server.pid).cpu_affinity(cores[:1])
        os.sched_setaffinity(0, cores[-1:])
        size = round(args.message_ms / FRAME_MS)
        figures = asyncio.run(drive(server.port, args.streams, args.seconds, size, server.pid))
    for item, value in figures.items():
        print(f"{item:24s} {value:10.5g}")
    settings = {**vars(args), "frame_ms": FRAME_MS, "cores": len(cores), "responder": "echo", "learn": False}
    print(f"written to {record('voice_fleet', figures, settings, [SEED])}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
