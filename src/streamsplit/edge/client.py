"""The device's client: drives a wire session over WebSockets, feeds it from the queue, reconnects and resumes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from streamsplit.edge.queue import OfflineQueue
from streamsplit.edge.settings import ServerLinkSettings
from streamsplit.edge.transport import ByteCount, open_socket
from streamsplit.errors import ConnectionRefused, StoreError
from streamsplit.splitting.link import LinkEstimator
from streamsplit.wire.events import Acked, Closed, MediaReceived, MessageReceived, Missed, Opened, RoundTrip
from streamsplit.wire.frame import Frame, numbered_sequence
from streamsplit.wire.gradient import OFFER
from streamsplit.wire.messages import Hello, Message, Welcome
from streamsplit.wire.session import ClientSession
from streamsplit.wire.types import OPTIONAL_TYPES, FrameFlag, FrameType, Priority

log = logging.getLogger(__name__)
T = TypeVar("T")
_BATCH_BYTES = 16 << 10
_FEED_WINDOWS = 32  # read from the queue at once


class ClientOwner(Protocol):
    """Who the client works for; every method is called in the event loop and must not block it."""

    def hello(self) -> Hello:
        """The greeting for a new connection."""

    async def opened(self, welcome: Welcome) -> None:
        """Connected; the queue has forgotten what the server holds."""

    async def message(self, message: Message) -> None:
        """A control message or RESULT."""

    async def media(self, frame: Frame) -> None:
        """A WEIGHTS chunk, or GRAD_BACK where the device takes it."""

    async def acked(self, event: Acked) -> None:
        """The queue has forgotten everything through `event.through`."""

    def next_chunk(self) -> tuple[bytes, bool] | None:
        """(chunk, last) of a weight upload, when one is under way."""

    def closed(self, reason: str) -> None:
        """The connection is gone; another attempt follows."""


class EdgeClient:
    """One device's connection to the server, for as long as `run` runs.

    Sockets and clocks live here, the protocol does not: that is `ClientSession`.
    """

    def __init__(
        self,
        settings: ServerLinkSettings,
        queue: OfflineQueue,
        owner: ClientOwner,
        link: LinkEstimator,
        *,
        seed: int | None = None,
        gradients: Callable[[], bool] | None = None,
        dialogue: bool = False,
    ) -> None:
        """`gradients` says whether the server of this connection returns any; None: the device takes none at all.
        `dialogue`: DIALOGUE goes to the owner's `media`, too."""
        self.settings = settings
        self.bytes = ByteCount()
        self.link = link
        self.connections = 0
        self._queue = queue
        self._owner = owner
        self._gradients = gradients
        taken = ({FrameType.GRAD_BACK} if gradients is not None else set()) | (
            {FrameType.DIALOGUE} if dialogue else set()
        )
        refuses = OPTIONAL_TYPES - taken
        self._session = ClientSession(now_ms=_now_ms(), refuses=refuses)
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._random = random.Random(seed)
        self._handling = asyncio.Lock()
        self._ended: Closed | None = None
        self._finishing = False

    @property
    def is_open(self) -> bool:
        """Whether windows flow."""
        return self._session.is_open

    def wake(self) -> None:
        """There is something new to send; safe from any thread, also after the loop has closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake.set)

    def probe(self) -> None:
        """Asks for a round trip now, unless one is being asked for; safe from any thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._probe)

    def _probe(self) -> None:
        self._session.ping(_now_ms())
        self.link.on_probe(self._session.probing_since_ms)
        self._wake.set()

    def send(self, message: Message) -> bool:
        """Queues a control message; False when the link is down (nothing was queued). Event loop only."""
        sent = self._session.send(message)
        self._wake.set()
        return sent

    def offer_gradients(self) -> bool:
        """Tells the server that this device takes gradients; False when the link is down. Event loop only."""
        sent = self._session.send_media(FrameType.GRAD_BACK, OFFER)
        self._wake.set()
        return sent

    def say(self, payload: bytes, sequence: int, captured_ms: float, *, final: bool) -> bool:
        """Queues a DIALOGUE frame; False when the link is down or has no room. Event loop only."""
        flags = FrameFlag.FINAL if final else FrameFlag.NONE
        sent = self._session.send_media(FrameType.DIALOGUE, payload, captured_ms, flags, sequence)
        self._wake.set()
        return sent

    async def run(self) -> None:
        """Connects, and connects again with exponential backoff and jitter, until `finish` or cancellation.

        Raises ConnectionRefused when the server turns the device away for good.
        """
        attempt = 0
        while not self._finishing:
            try:
                settings = self.settings
                socket = await open_socket(settings.url, self.bytes, settings.connect_timeout_s, settings.ca_file)
            except (OSError, asyncio.TimeoutError, TimeoutError) as error:
                reason = str(error) or type(error).__name__
            else:
                opened_before = self.connections
                reason = await self._serve(socket)
                if self.connections > opened_before:
                    attempt = 0
            if self._finishing:
                return
            longest = min(self.settings.first_backoff_s * 2**attempt, self.settings.longest_backoff_s)
            delay_s = longest * (0.5 + 0.5 * self._random.random())
            attempt = min(attempt + 1, 32)
            self._owner.closed(reason)
            log.info("no connection to %s (%s); next attempt in %.1f s", self.settings.url, reason, delay_s)
            await asyncio.sleep(delay_s)

    async def finish(self, reason: str = "") -> None:
        """Sends what is waiting, for at most a second, and says goodbye; `run` returns soon after."""
        deadline_ms = _now_ms() + 1000
        while self.is_open and self._session.queued_bytes(Priority.CONTROL) and _now_ms() < deadline_ms:
            self._wake.set()
            await asyncio.sleep(0.005)
        self._finishing = True
        self._session.close(reason)
        self._wake.set()

    async def _serve(self, socket: ClientConnection) -> str:
        """One connection from greeting to end; returns why it ended."""
        self._ended = None
        self._session.hello(self._owner.hello(), _now_ms())
        connection = self._session.connection
        tasks = [asyncio.create_task(part) for part in (self._read(socket), self._write(socket), self._tick())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if self._ended is not None or self._finishing:
                await self._last_words(socket)
        except (ConnectionClosed, OSError) as error:
            self._ended = self._ended or Closed(f"connection lost ({error})", False, "lost")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(asyncio.TimeoutError, OSError):
                await asyncio.wait_for(socket.close(), 1.0)
            socket.transport.abort()
            self._session.disconnected(_now_ms(), connection)
            await self._handle_events()
            self.link.lost()
        return await self._verdict()

    async def _verdict(self) -> str:
        ended = self._ended
        if ended is None:
            return "connection closed"
        if ended.code == "bad_epoch":
            held = await self._in_thread(self._queue.new_epoch)
            log.warning("the server knows other windows under our numbers: new epoch, %d windows renumbered", held)
            return ended.reason
        if not ended.retry:
            raise ConnectionRefused(f"the server turned this device away ({ended.code}): {ended.reason}")
        return f"{ended.code}: {ended.reason}"

    async def _read(self, socket: ClientConnection) -> None:
        try:
            async for data in socket:
                self._session.receive(data if isinstance(data, bytes) else data.encode(), _now_ms())
                await self._handle_events()
                self._wake.set()
                if self._ended is not None:
                    return
        except ConnectionClosed as error:
            self._ended = self._ended or Closed(f"connection lost ({error})", False, "lost")

    async def _write(self, socket: ClientConnection) -> None:
        while self._ended is None:
            self._wake.clear()
            await self._feed()
            while batch := self._session.bytes_to_send(_BATCH_BYTES, _now_ms()):
                for data in batch:
                    sequence = numbered_sequence(data)
                    if sequence:
                        self.link.on_sent(sequence, len(data), _now_ms())
                    await socket.send(data)
                await self._feed()
            if self._finishing:
                return
            await self._wake.wait()

    async def _tick(self) -> None:
        while self._ended is None:
            deadline = self._session.next_deadline_ms()
            wait_ms = 1000.0 if deadline is None else min(max(deadline - _now_ms(), 1.0), 1000.0)
            if self._session.min_interval_ms:
                wait_ms = min(wait_ms, float(self._session.min_interval_ms))
            await asyncio.sleep(wait_ms / 1000)
            self._session.tick(_now_ms())
            await self._handle_events()
            self._wake.set()

    async def _feed(self) -> None:
        """Moves windows from the queue into the session as far as its credit goes, and the next chunk of an upload."""
        session = self._session
        while self._queue.next_sequence > session.next_sequence and (credit := session.credit(_now_ms())) > 0:
            after, limit = session.next_sequence - 1, min(credit, _FEED_WINDOWS)
            rows = await self._in_thread(partial(self._queue.after, after, limit))
            if not all(
                session.send_window(self._known_type(r.frame_type), r.sequence, r.timestamp_ms, r.payload) for r in rows
            ):
                break
        if session.is_open and not session.queued_bytes(Priority.BULK):
            chunk = self._owner.next_chunk()
            if chunk is not None:
                data, last = chunk
                session.send_media(FrameType.WEIGHTS, data, flags=FrameFlag.FINAL if last else FrameFlag.NONE)

    def _known_type(self, kind: FrameType) -> FrameType:
        """A window that asked for a gradient goes without the wish where the server does not know of gradients."""
        if kind is FrameType.GRADIENT and not (self._gradients is not None and self._gradients()):
            return FrameType.FEATURES
        return kind

    async def _last_words(self, socket: ClientConnection) -> None:
        while batch := self._session.bytes_to_send(_BATCH_BYTES, _now_ms()):
            for data in batch:
                await socket.send(data)

    async def _handle_events(self) -> None:
        async with self._handling:
            for event in self._session.events():
                if isinstance(event, Opened):
                    self.connections += 1
                    self.link.on_rtt(event.rtt_ms, _now_ms())
                    await self._forget(event.feed_from - 1)
                    await self._owner.opened(event.welcome)
                elif isinstance(event, Acked):
                    self.link.on_ack(event, event.now_ms)
                    await self._forget(event.through)
                    await self._owner.acked(event)
                elif isinstance(event, RoundTrip):
                    self.link.on_rtt(event.rtt_ms, event.now_ms)
                elif isinstance(event, MessageReceived):
                    await self._owner.message(event.message)
                elif isinstance(event, MediaReceived):
                    await self._owner.media(event.frame)
                elif isinstance(event, Missed):
                    log.info("results %d..%d were lost; the server sends them again", event.first, event.last)
                elif isinstance(event, Closed):
                    self._ended = event
            self.link.on_probe(self._session.probing_since_ms)

    async def _forget(self, through: int) -> None:
        try:
            await self._in_thread(partial(self._queue.acknowledge, through))
        except StoreError as error:  # stays in the queue; the server drops what comes twice
            log.error("%s", error)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(None, work)


def _now_ms() -> float:
    return time.monotonic() * 1000
