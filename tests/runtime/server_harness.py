"""A real server on a loopback port and a small device for the server's tests."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from streamsplit.encoders.embedding_codec import pack_embedding
from streamsplit.server.app import create_app
from streamsplit.server.run import serve
from streamsplit.server.service import StreamServer
from streamsplit.server.settings import ServerSettings
from streamsplit.wire.events import Acked, Closed, Event, MediaReceived, MessageReceived, Opened
from streamsplit.wire.media import Encoding, MediaHeader, pack_media
from streamsplit.wire.messages import Error, Hello, Message, Result
from streamsplit.wire.session import ClientSession
from streamsplit.wire.types import FrameType

T = TypeVar("T")
DEADLINE_S = 10.0


class RunningServer:
    """A server in a thread with its own event loop; `stop` ends it cleanly, as Ctrl-C does."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.port = 0
        self.app = create_app(settings)
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(60.0), "the server did not start"
        if self._error is not None:
            raise self._error

    @property
    def backend(self) -> StreamServer:
        backend: StreamServer = self.app.state.server
        return backend

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=10.0, **options)

    def status(self) -> dict[str, Any]:
        values: dict[str, Any] = self.get("/api/status").json()
        return values

    def stop(self) -> None:
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._cancel)
            self._thread.join(60.0)
            assert not self._thread.is_alive(), "the server did not stop"

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _run(self) -> None:
        async def main() -> None:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            await serve(self.settings, app=self.app, on_ready=self._on_ready)

        try:
            asyncio.run(main())
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    def _on_ready(self, _address: str, port: int) -> None:
        self.port = port
        self._ready.set()


def make_settings(folder: Path, **sections: dict[str, Any]) -> ServerSettings:
    """Settings for tests: any port, no refiner unless asked for."""
    values: dict[str, dict[str, Any]] = {
        "server": {"port": 0, "data_dir": str(folder)},
        "training": {"enabled": False},
    }
    for name, changes in sections.items():
        values.setdefault(name, {}).update(changes)
    return ServerSettings.from_mapping(values)


@contextlib.contextmanager
def running(settings: ServerSettings) -> Iterator[RunningServer]:
    """A server for the length of a block."""
    server = RunningServer(settings)
    try:
        yield server
    finally:
        server.stop()


class TestDevice:
    """A device over a real socket: keeps what it sent until acknowledged, as a queue would."""

    __test__ = False

    def __init__(self, port: int, device_id: str = "pi", **hello: Any) -> None:
        self.port = port
        self.hello = {
            "protocol": 1, "device_id": device_id, "token": "", "epoch": 7, "encoder": "mobilenet", **hello,
        }  # fmt: skip
        self.session = ClientSession()
        self.queue: dict[int, tuple[FrameType, int, bytes]] = {}
        self.next = 1
        self.results: list[Result] = []
        self.errors: list[Error] = []
        self.messages: list[Message] = []
        self.media: list[MediaReceived] = []
        self.opened: Opened | None = None
        self.closed: Closed | None = None
        self.acked = 0
        self.socket: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    async def connect(self) -> TestDevice:
        self.opened = self.closed = None
        self.socket = await connect(f"ws://127.0.0.1:{self.port}/v1/stream", compression=None, max_size=4 << 20)
        oldest = min(self.queue, default=self.next)
        self.session.hello(Hello(**{**self.hello, "oldest_sequence": oldest, "next_sequence": self.next}), now_ms())
        await self.flush()
        self._reader = asyncio.create_task(self._read())
        await self.until(lambda: self.opened is not None or self.closed is not None)
        return self

    async def flush(self) -> None:
        assert self.socket is not None
        while self.session.credit(now_ms()) and self.session.next_sequence in self.queue:
            sequence = self.session.next_sequence
            kind, stamp, payload = self.queue[sequence]
            self.session.send_window(kind, sequence, stamp, payload)
        while batch := self.session.bytes_to_send(now_ms=now_ms()):
            for data in batch:
                await self.socket.send(data)

    async def send(self, payload: bytes, kind: FrameType = FrameType.EMBEDDING) -> int:
        """Queues a window and sends what may go; returns its sequence."""
        sequence = self.next
        self.next += 1
        self.queue[sequence] = (kind, 500 * sequence, payload)
        await self.flush()
        return sequence

    async def say(self, message: Message) -> None:
        self.session.send(message)
        await self.flush()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for something to become true through what the server sends."""
        end = time.monotonic() + DEADLINE_S
        while not condition():
            if self.closed is not None and self.closed.fatal:
                assert condition(), f"the server ended the session: {self.closed}"
            assert time.monotonic() < end, f"timed out: {self.closed}, {self.errors}, {len(self.results)} results"
            self._changed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 0.2)
            if self.socket is not None and self.closed is None:
                self.session.tick(now_ms())
                with contextlib.suppress(ConnectionClosed):
                    await self.flush()

    async def cut(self) -> None:
        """The link breaks without a goodbye."""
        assert self.socket is not None
        self.socket.transport.abort()
        if self._reader is not None:
            await self._reader

    async def close(self) -> None:
        if self.socket is not None:
            await self.socket.close()
        if self._reader is not None:
            await self._reader

    async def _read(self) -> None:
        assert self.socket is not None
        try:
            async for data in self.socket:
                assert isinstance(data, bytes)
                self.session.receive(data, now_ms())
                for event in self.session.events():
                    self._on_event(event)
                await self.flush()
                self._changed.set()
        except ConnectionClosed:
            pass
        self.session.disconnected(now_ms())
        self._changed.set()

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Opened):
            self.opened = event
            self._drop(event.feed_from - 1)
        elif isinstance(event, Acked):
            self._drop(event.through)
        elif isinstance(event, MessageReceived):
            self.messages.append(event.message)
            if isinstance(event.message, Result):
                self.results.append(event.message)
            elif isinstance(event.message, Error):
                self.errors.append(event.message)
        elif isinstance(event, MediaReceived):
            self.media.append(event)
        elif isinstance(event, Closed):
            self.closed = event

    def _drop(self, through: int) -> None:
        self.acked = max(self.acked, through)
        for sequence in [s for s in self.queue if s <= through]:
            del self.queue[sequence]


@contextlib.asynccontextmanager
async def device(port: int, device_id: str = "pi", **hello: Any) -> AsyncIterator[TestDevice]:
    """A connected device for the length of a block."""
    made = await TestDevice(port, device_id, **hello).connect()
    try:
        yield made
    finally:
        await made.close()


def unit(seed: int, dim: int = 128) -> np.ndarray:
    """A unit vector [d] float32."""
    z = np.random.default_rng(seed).standard_normal(dim).astype(np.float32)
    return z / np.linalg.norm(z)


def embedding_window(window: int, prefix: int, z: np.ndarray | None = None, block: int = 13) -> bytes:
    """The media payload of a deepest cut."""
    payload = pack_embedding(unit(window) if z is None else z, Encoding.EMBEDDING_FP16)
    return media(window, prefix, block, Encoding.EMBEDDING_FP16, payload)


def media(
    window: int, prefix: int, block: int, encoding: Encoding, payload: bytes, new_frames: int = 0, resolution: int = 0
) -> bytes:
    """A media header and payload."""
    header = MediaHeader(window, prefix, block, encoding, resolution, 0, 0.5, new_frames, 1.0, 0)
    return pack_media(header, payload)


def now_ms() -> float:
    return 1000 * time.monotonic()
