"""A server small enough to read, for tests of the device: real sockets, real protocol, a dict as its store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import asynccontextmanager

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from streamsplit.wire.events import Closed, HelloReceived, MediaReceived, MessageReceived, WindowReceived
from streamsplit.wire.frame import Frame
from streamsplit.wire.messages import Hello, Message, Result
from streamsplit.wire.session import ServerSession, SessionSettings
from streamsplit.wire.types import FrameFlag, FrameType


def now_ms() -> float:
    return time.monotonic() * 1000


class TinyServer:
    """Keeps every window by (device, epoch, sequence), acknowledges, answers with a RESULT."""

    def __init__(self, token: str = "secret", settings: SessionSettings | None = None) -> None:
        self.token = token
        self.settings = settings or SessionSettings(max_in_flight=8)
        self.windows: dict[tuple[str, int, int], Frame] = {}
        self.repeats = 0  # windows that came although they were stored
        self.hellos: list[Hello] = []
        self.messages: list[Message] = []
        self.media: list[Frame] = []
        self.acknowledging = True
        self.answering = True
        self.revision = ""
        self.result: Callable[[Frame], Result] = lambda frame: Result(
            sequence=frame.sequence, window=0, capture_ms=frame.timestamp_ms, uncertainty=1.0
        )
        self.on_message: Callable[[ServerSession, Message], None] = lambda session, message: None
        self.on_media: Callable[[ServerSession, Frame], None] = lambda session, frame: None
        self.on_open: Callable[[ServerSession], None] = lambda session: None
        self.sessions: list[ServerSession] = []
        self.connections: set[ServerConnection] = set()
        self.received_bytes = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/stream"

    @asynccontextmanager
    async def running(self):
        async with serve(self._serve, "127.0.0.1", self.port, compression=None, max_size=1 << 21) as server:
            self.port = server.sockets[0].getsockname()[1]
            yield self
            for connection in list(self.connections):
                connection.transport.abort()

    def send_chunks(self, session: ServerSession, chunks: list[bytes]) -> None:
        """Queues WEIGHTS frames."""
        for index, chunk in enumerate(chunks):
            last = index == len(chunks) - 1
            session.send_media(FrameType.WEIGHTS, chunk, flags=FrameFlag.FINAL if last else FrameFlag.NONE)

    async def _serve(self, socket: ServerConnection) -> None:
        self.connections.add(socket)
        session = ServerSession(now_ms(), self.settings)
        ticker: asyncio.Task | None = None
        try:
            async for data in socket:
                session.receive(data, now_ms())
                session = await self._handle(session)
                await self._flush(session, socket)
                ticker = ticker or asyncio.create_task(self._tick(session, socket))
        except ConnectionClosed:
            pass
        finally:
            if ticker is not None:
                ticker.cancel()
            self.connections.discard(socket)
            session.disconnected(now_ms(), session.connection)

    async def _handle(self, session: ServerSession) -> ServerSession:
        for event in session.events():
            if isinstance(event, HelloReceived):
                session = self._greet(session, event.hello)
            elif isinstance(event, WindowReceived):
                self._window(session, event.frame)
            elif isinstance(event, MessageReceived):
                self.messages.append(event.message)
                self.on_message(session, event.message)
            elif isinstance(event, MediaReceived):
                self.media.append(event.frame)
                self.on_media(session, event.frame)
            elif isinstance(event, Closed):
                return session
        return session

    def _greet(self, session: ServerSession, hello: Hello) -> ServerSession:
        self.hellos.append(hello)
        if hello.token != self.token:
            session.reject("bad_token", f"device {hello.device_id} and token do not match")
            return session
        for old in self.sessions:
            if old.can_resume(hello, now_ms()):
                old.resume(session, now_ms(), revision=self.revision)
                self.on_open(old)
                return old
        through = max((s for d, e, s in self.windows if (d, e) == (hello.device_id, hello.epoch)), default=0)
        session.accept(
            now_ms(), session_id=str(len(self.sessions)), resume_token=len(self.sessions).to_bytes(16, "big"),
            received_through=through, revision=self.revision,
        )  # fmt: skip
        self.sessions.append(session)
        self.on_open(session)
        return session

    def _window(self, session: ServerSession, frame: Frame) -> None:
        hello = session.hello
        key = (hello.device_id, hello.epoch, frame.sequence)
        self.repeats += key in self.windows
        self.windows[key] = frame
        if self.acknowledging:
            session.acknowledge(frame.sequence, now_ms())
            if self.answering:
                session.send(self.result(frame))

    async def _tick(self, session: ServerSession, socket: ServerConnection) -> None:
        while True:
            await asyncio.sleep(0.01)
            session.tick(now_ms())
            await self._flush(session, socket)

    async def _flush(self, session: ServerSession, socket: ServerConnection) -> None:
        while batch := session.bytes_to_send(None, now_ms()):
            for data in batch:
                await socket.send(data)
