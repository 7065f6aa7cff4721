"""The endpoint /v1/weights: chunks of a streamed model to whoever shows the token, piece by piece in turns.

A client gets what its manifest names and nothing else; a fault of one request or client leaves the others alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Iterator

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from streamsplit.errors import ManifestError, MissingExtraError, ProtocolError
from streamsplit.server.chunk_storage import read_into
from streamsplit.server.frame_buffer import FrameBuffer, send_frame
from streamsplit.server.metrics import WeightStreamMetrics
from streamsplit.server.served_model import ServedModel
from streamsplit.server.settings import AuthSettings, WeightStreamSettings
from streamsplit.weights.streaming.pieces import packed_piece, zstandard_module
from streamsplit.weights.streaming.rate import RateLimit
from streamsplit.wire.chunks import HEADER_BYTES, LONE_PIECE_BYTES, PIECE_BYTES, Asked, ChunkServer, Open

LOG = logging.getLogger(__name__)
HELLO_TIMEOUT_S = 10.0
MOST_LIMITS = 4_096  # of devices, connected or not, that are remembered
_LEAST_PIECE_BYTES = 4_096
BURST_S = 0.25  # of a rate limit that may go at once


class WeightStream:
    """All connections, whichever of the models they are for; limits hold for all together."""

    def __init__(
        self, settings: WeightStreamSettings, auth: AuthSettings, metrics: WeightStreamMetrics,
        turn: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        """`turn` is awaited before every piece: see Precedence.bulk_turn."""
        self._turn = turn
        self._settings = settings
        self._auth = auth
        self._metrics = metrics
        self._connected = 0
        self._answering = 0  # requests that are being answered
        self._devices: dict[str, tuple[RateLimit, int]] = {}  # limit and connections
        self._total = _limit(settings.total_mb_per_s)

    async def serve(self, websocket: WebSocket, model: ServedModel) -> None:
        """One connection to a model that was opened, as long as it lives."""
        await websocket.accept()
        session = ChunkServer()
        try:
            opened, manifest = await self._greet(websocket, session, model)
        except ProtocolError as error:
            await self._refuse(websocket, session, error.code, error.detail)
            return
        except (WebSocketDisconnect, asyncio.TimeoutError):
            return
        self._connected += 1
        self._metrics.connections.inc()
        limit, count = self._devices.get(opened.device_id, (_limit(self._settings.device_mb_per_s), 0))
        self._devices[opened.device_id] = (limit, count + 1)
        asked: asyncio.Queue[Asked] = asyncio.Queue()
        compress = opened.compress and packs()
        writer = asyncio.create_task(self._write(websocket, session, asked, model, limit, manifest, compress))
        try:
            await self._read(websocket, session, asked, writer)
        finally:
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writer
            self._connected -= 1
            self._metrics.connections.dec()
            self._part(opened.device_id)

    def _part(self, device: str) -> None:
        """One connection less; a device's limit is remembered, or a reconnection would begin it anew."""
        limit, count = self._devices.pop(device)
        self._devices[device] = (limit, count - 1)
        if len(self._devices) > MOST_LIMITS:
            idle = next((name for name, (_, others) in self._devices.items() if not others), None)
            if idle is not None:
                del self._devices[idle]

    async def _greet(self, websocket: WebSocket, session: ChunkServer, model: ServedModel) -> tuple[Open, bytes]:
        opened = session.receive(await asyncio.wait_for(_message(websocket), HELLO_TIMEOUT_S))
        if not isinstance(opened, Open):
            raise ProtocolError("unexpected", "got a request, expected OPEN")
        token = self._auth.token_for(opened.device_id)
        if token and not hmac.compare_digest(opened.token.encode(), token.encode()):
            raise ProtocolError("bad_token", f"the token of device '{opened.device_id}' is wrong; give the server's")
        if self._connected >= self._settings.max_connections:
            raise ProtocolError("server_full", f"{self._connected} clients are connected; try again later")
        await model.renew()
        manifest = model.manifest_bytes  # this connection's, whatever is published meanwhile
        await websocket.send_bytes(session.accept(model.revision, len(manifest)))
        return opened, manifest

    async def _read(
        self, websocket: WebSocket, session: ChunkServer, asked: asyncio.Queue[Asked], writer: asyncio.Task[None]
    ) -> None:
        """Takes requests until the client leaves or breaks the protocol."""
        while not writer.done():
            try:
                wanted = session.receive(await _message(websocket))
            except ProtocolError as error:
                writer.cancel()
                await self._refuse(websocket, session, error.code, error.detail)
                return
            except WebSocketDisconnect:
                return
            if isinstance(wanted, Asked):
                asked.put_nowait(wanted)

    async def _write(
        self, websocket: WebSocket, session: ChunkServer, asked: asyncio.Queue[Asked], model: ServedModel,
        limit: RateLimit, manifest: bytes, compress: bool,
    ) -> None:  # fmt: skip
        """Answers requests in their order."""
        buffer: FrameBuffer | None = None
        while True:
            if asked.empty():
                buffer = None  # an idle connection holds no memory
            wanted = await asked.get()
            buffer = buffer or FrameBuffer(HEADER_BYTES, LONE_PIECE_BYTES)
            self._answering += 1
            try:
                await self._answer(websocket, session, wanted, model, limit, manifest, compress, buffer)
                self._metrics.requests.labels("sent").inc()
            except ProtocolError as error:
                self._metrics.requests.labels(error.code).inc()
                await websocket.send_bytes(session.fault(error.code, error.detail, wanted.request))
            except ManifestError as error:
                LOG.error("%s", error)
                self._metrics.requests.labels("internal").inc()
                await websocket.send_bytes(session.fault("internal", str(error), wanted.request))
            except (WebSocketDisconnect, RuntimeError):  # the client has left; starlette says so with either
                return
            finally:
                self._answering -= 1

    async def _answer(
        self, websocket: WebSocket, session: ChunkServer, wanted: Asked, model: ServedModel, limit: RateLimit,
        manifest: bytes, compress: bool, buffer: FrameBuffer,
    ) -> None:  # fmt: skip
        started_s = time.monotonic()
        size = model.size(wanted.digest) if wanted.digest else len(manifest)
        if size is None:
            raise ProtocolError("bad_transfer", f"got chunk {wanted.digest[:12]}, expected one of the manifest")
        end = wanted.offset + wanted.length if wanted.digest else size
        if not wanted.offset < end <= size:
            raise ProtocolError("bad_transfer", f"got a range up to {end} from {wanted.offset}, expected within {size}")
        at = wanted.offset
        while at < end:
            length = min(self._piece_bytes, end - at)
            last, packed = at + length == end, None
            if wanted.digest:
                payload = buffer.payload(length)
                with self._waiting("storage"):
                    await read_into(model.storage, wanted.digest, at, payload)
            else:
                payload = memoryview(manifest)[at : at + length]
            if compress:
                packed = await asyncio.to_thread(packed_piece, payload)
            await self._take_turn(length if packed is None else len(packed), limit)
            if packed is not None or not wanted.digest:
                piece = payload if packed is None else packed
                size = 0 if packed is None else length
                with self._waiting("socket"):
                    await websocket.send_bytes(session.data(wanted.request, piece, last, packed_bytes=size))
            else:
                with self._waiting("socket"):
                    await send_frame(websocket, buffer, session.data_header(wanted.request, length, last), length)
            if at == wanted.offset:
                self._metrics.first_piece.observe(time.monotonic() - started_s)
            self._metrics.bytes.inc(length if packed is None else len(packed))
            at += length
        self._metrics.request.observe(time.monotonic() - started_s)

    @property
    def _piece_bytes(self) -> int:
        """Small where several take turns, large where nobody waits, and never more than the limits give in half a
        second: a client that hears nothing for long believes that the connection is lost."""
        most = PIECE_BYTES if self._answering > 1 else LONE_PIECE_BYTES
        limits = [mb for mb in (self._settings.device_mb_per_s, self._settings.total_mb_per_s) if mb > 0]
        return max(_LEAST_PIECE_BYTES, min(most, round(0.5e6 * min(limits)))) if limits else most

    async def _take_turn(self, size_bytes: int, limit: RateLimit) -> None:
        """Waits for the limits, then for whatever goes before weights."""
        now_s = time.monotonic()
        wait_s = max(limit.wait_s(size_bytes, now_s), self._total.wait_s(size_bytes, now_s))
        if wait_s > 0:
            with self._waiting("limits"):
                await asyncio.sleep(wait_s)
        with self._waiting("sound"):
            await self._turn()

    @contextlib.contextmanager
    def _waiting(self, reason: str) -> Iterator[None]:
        """Counts how long a piece waits: as much of a client's stalls as can be seen from here."""
        started_s = time.monotonic()
        try:
            yield
        finally:
            self._metrics.waits.labels(reason).observe(time.monotonic() - started_s)

    async def _refuse(self, websocket: WebSocket, session: ChunkServer, code: str, detail: str) -> None:
        self._metrics.refused.labels(code).inc()
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await websocket.send_bytes(session.fault(code, detail))
            if websocket.application_state is WebSocketState.CONNECTED:
                await websocket.close(1008)


def packs() -> bool:
    """Whether pieces can be packed here; without zstandard they go as they are."""
    try:
        zstandard_module()
    except MissingExtraError:
        return False
    return True


def _limit(mb_per_s: float) -> RateLimit:
    return RateLimit(1e6 * mb_per_s, max(PIECE_BYTES, 1e6 * mb_per_s * BURST_S))


async def _message(websocket: WebSocket) -> bytes:
    """The next binary message; raises ProtocolError on text, WebSocketDisconnect at the end."""
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1006))
    data = message.get("bytes")
    if not isinstance(data, bytes):
        raise ProtocolError("bad_message", "got a text message, expected binary ones")
    return data
