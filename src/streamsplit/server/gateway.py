"""The gateway: WebSockets in, windows to the worker, acknowledgements and results out; everything in the event loop.

One coroutine reads a connection and one writes it. Neither computes nor touches the disk. What outlives a connection
is a `Link`: the wire session (for `resume_expires_s`) and the stream's position.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from streamsplit.errors import CheckpointError, ProtocolError, RevisionError, StoreError
from streamsplit.server.compute import ComputeWorker
from streamsplit.server.fleet import Device, cut_name, websocket_bytes
from streamsplit.server.handshake import check_hello
from streamsplit.server.jobs import DeviceStream, Done, Job
from streamsplit.server.metrics import Metrics
from streamsplit.server.records import WindowRecord
from streamsplit.server.settings import ServerSettings
from streamsplit.server.store import Store
from streamsplit.server.weight_service import WeightService
from streamsplit.splitting.cut import Cut
from streamsplit.weights.pacing import PacedSender
from streamsplit.weights.revision import Weights
from streamsplit.weights.transfer import WeightTransfer
from streamsplit.wire import events
from streamsplit.wire.media import Encoding
from streamsplit.wire.messages import Error, Hello, Message, Policy, Result, Revision, Stats, Throttle, WeightsRequest
from streamsplit.wire.session import ServerSession, ServerState, SessionSettings
from streamsplit.wire.types import FrameFlag, FrameType, Priority

LOG = logging.getLogger(__name__)
SEND_BYTES = 32 << 10  # handed to the transport at a time
CLOSE_POLICY = 1008
COLD_CUT = Cut(0, Encoding.LOGMEL_INT8)  # what the projection's first fit is made from
MAX_RATE_PAUSE_S = 1.0
THROTTLED_IN_FLIGHT = 4


class Connection:
    """One WebSocket."""

    def __init__(self, websocket: WebSocket, session: ServerSession) -> None:
        self.websocket = websocket
        self.session = session
        self.number = session.connection
        self.wake = asyncio.Event()
        self.link: Link | None = None
        self.ending = False  # flush what is queued, then close
        self.replaced = False  # another transport has the session now
        self.fatal = False
        self.download: PacedSender | None = None
        self.requested: WeightsRequest | None = None  # being read from the disk
        self.budget = 0.0  # windows that may come before the rate limit
        self.budget_s = time.monotonic()
        self.throttled = False
        self.throttle_told_s = 0.0
        self.unclaimed_bytes = 0  # received before it was known which device this is

    def end(self, *, fatal: bool = False) -> None:
        """Lets the writer flush and close."""
        self.ending = True
        self.fatal = self.fatal or fatal
        self.wake.set()


class Link:
    """What outlives a connection of one device."""

    def __init__(self, device: Device, session: ServerSession, stream: DeviceStream) -> None:
        self.device = device
        self.session = session
        self.stream = stream
        self.connection: Connection | None = None
        self.held_revision = ""
        self.announced = ""
        self.steered = False  # told to send features, see Gateway.steer
        self.local: tuple[Revision, WeightTransfer] | None = None

    @property
    def has_encoder(self) -> bool:
        """True for a device that can use weights."""
        return bool(self.device.hello and self.device.hello.encoder)


class Gateway:
    """Every device's connection; see the module."""

    def __init__(
        self,
        settings: ServerSettings,
        *,
        compute: ComputeWorker,
        store: Store,
        weights: WeightService,
        metrics: Metrics,
        merge: Callable[[str, str, Weights, int], None],
    ) -> None:
        self.settings = settings
        self.devices: dict[str, Device] = {}
        self.links: dict[str, Link] = {}
        self.latencies_ms: deque[float] = deque(maxlen=4096)  # of all devices
        self._compute = compute
        self._store = store
        self._weights = weights
        self._metrics = metrics
        self._merge = merge
        self._streams: dict[tuple[str, int], DeviceStream] = {}
        self._connections: set[Connection] = set()
        self._pending_bytes = 0
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        limits = settings.limits
        self._session_settings = SessionSettings(
            hello_timeout_ms=int(1000 * limits.hello_timeout_s),
            max_in_flight=limits.max_in_flight,
            max_frame_bytes=limits.max_frame_bytes,
            resume_expires_ms=int(1000 * limits.resume_expires_s),
            replay_frames=max(512, 2 * limits.max_in_flight),
        )

    # -- one connection ------------------------------------------------------------------------------------------

    async def serve(self, websocket: WebSocket) -> None:
        """The WebSocket endpoint: lives as long as the connection."""
        await websocket.accept()
        connection = Connection(websocket, ServerSession(now_ms(), self._session_settings))
        self._connections.add(connection)
        writer = asyncio.create_task(self._write(connection))
        try:
            await self._read(connection)
        finally:
            connection.end()
            with contextlib.suppress(asyncio.CancelledError):
                await writer
            self._connections.discard(connection)
            self._lost(connection)

    @property
    def connected(self) -> int:
        """Devices connected now."""
        return sum(link.connection is not None for link in self.links.values())

    async def close(self) -> None:
        """Says goodbye to everybody; devices come back by themselves when a server is there again."""
        self._closing = True
        for connection in list(self._connections):
            if not connection.replaced:
                connection.session.fail("shutting_down", "the server is going away; try again later")
            connection.end()
        for task in list(self._tasks):
            task.cancel()
        deadline = time.monotonic() + 3.0
        while self._connections and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    async def _read(self, connection: Connection) -> None:
        while not connection.ending:
            try:
                message = await connection.websocket.receive()
            except (WebSocketDisconnect, RuntimeError):
                return
            if message["type"] == "websocket.disconnect" or connection.ending:
                return
            data = message.get("bytes")
            if data is None:
                text = message.get("text") or ""
                self._count_received(connection, len(text.encode()))
                connection.session.fail("bad_message", "got a text message, expected binary frames")
            else:
                self._count_received(connection, len(data))
                connection.session.receive(data, now_ms())
            for event in connection.session.events():
                if isinstance(event, events.HelloReceived):
                    await self._on_hello(connection, event.hello)
                else:
                    self._on_event(connection, event)
            connection.wake.set()
            await self._pace(connection)

    async def _write(self, connection: Connection) -> None:
        websocket = connection.websocket
        try:
            while True:
                connection.wake.clear()
                if not connection.replaced:
                    connection.session.tick(now_ms())
                    for event in connection.session.events():
                        self._on_event(connection, event)
                    await self._flush(connection)
                if connection.ending:
                    await websocket.close(CLOSE_POLICY if connection.fatal else 1000)
                    return
                deadline_ms = connection.session.next_deadline_ms()
                timeout_s = None if deadline_ms is None else max(0.0, (deadline_ms - now_ms()) / 1000)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(connection.wake.wait(), timeout_s)
        except (WebSocketDisconnect, RuntimeError, OSError):  # the peer is gone; the reader notices, too
            connection.ending = True

    async def _flush(self, connection: Connection) -> None:
        while not connection.replaced:
            self._feed_download(connection)
            batch = connection.session.bytes_to_send(SEND_BYTES, now_ms())
            if not batch:
                return
            for data in batch:
                await connection.websocket.send_bytes(data)
                size = websocket_bytes(len(data), masked=False)
                self._metrics.downlink.inc(size)
                if connection.link is not None:
                    connection.link.device.downlink_bytes += size

    @staticmethod
    def _feed_download(connection: Connection) -> None:
        """Queues the next chunk of a download when its window allows one and no other bulk waits."""
        download, session = connection.download, connection.session
        if download is None or session.queued_bytes(Priority.BULK):
            return
        chunk = download.peek()
        if chunk is not None:
            data, last = chunk
            if session.send_media(FrameType.WEIGHTS, data, now_ms(), FrameFlag.FINAL if last else FrameFlag.NONE):
                download.advance(now_ms())

    def _count_received(self, connection: Connection, size: int) -> None:
        total = websocket_bytes(size, masked=True)
        self._metrics.uplink.inc(total)
        if connection.link is not None:
            connection.link.device.uplink_bytes += total
        else:  # the HELLO: counted for the device once it is known
            connection.unclaimed_bytes += total

    def _lost(self, connection: Connection) -> None:
        if connection.replaced:
            return
        session = connection.session
        session.disconnected(now_ms(), connection.number)
        for event in session.events():
            self._on_event(connection, event)
        link = connection.link
        if link is None or link.connection is not connection:
            return
        link.connection = None
        link.device.connected = False
        self._metrics.devices.set(self.connected)
        if session.state is ServerState.CLOSED:
            self._forget(link)

    # -- coming in -----------------------------------------------------------------------------------------------

    async def _on_hello(self, connection: Connection, hello: Hello) -> None:
        session = connection.session
        refusal = check_hello(hello, self.settings)
        if refusal is not None:
            return self._reject(connection, hello, refusal.code, refusal.detail)
        if self._closing:
            return self._reject(connection, hello, "shutting_down", "the server is going away; try again later")
        link = self.links.get(hello.device_id)
        if (link is None or link.connection is None) and self.connected >= self.settings.limits.max_devices:
            limit = self.settings.limits.max_devices
            return self._reject(connection, hello, "server_full", f"{limit} devices are connected; try again later")
        try:
            stream = await self._stream(hello)
        except StoreError as error:
            return self._reject(connection, hello, "internal", f"the server's database failed: {error}")
        if session.state is not ServerState.DECIDING:  # gone or timed out while the database was asked
            return None
        link = self.links.get(hello.device_id)  # may have changed meanwhile
        known = self._weights.space_of(hello.revision) is not None
        newest = self._weights.newest
        current = newest.revision if newest else ""
        if link is not None and link.session.can_resume(hello, now_ms()):
            self._drop_connection(link, resumed=True)
            link.session.resume(session, now_ms(), revision=current)
            session = connection.session = link.session
            resumed = True
        else:
            resumed = False
            if link is not None:
                self._drop_connection(link, resumed=False)
            token = secrets.token_bytes(16)
            welcome = session.accept(
                now_ms(),
                session_id=secrets.token_hex(8),
                resume_token=token,
                received_through=stream.through,
                revision=current,
            )
            if welcome is None:
                self._metrics.refused.labels("bad_epoch").inc()
                for event in session.events():
                    self._on_event(connection, event)
                return None
            device = self.devices.setdefault(hello.device_id, Device(hello.device_id))
            link = self.links[hello.device_id] = Link(device, session, stream)
        self._opened(connection, link, hello, resumed=resumed)
        if link.has_encoder and hello.revision != current:
            if hello.revision and not known:
                session.send(Error(code="unknown_revision", detail=f"revision {hello.revision[:12]} is not known here"))
            self._announce(link)
        self._steer(link)
        self._send_again(connection, link)
        return None

    def _opened(self, connection: Connection, link: Link, hello: Hello, *, resumed: bool) -> None:
        device, client = link.device, connection.websocket.client
        connection.link = link
        connection.number = connection.session.connection
        connection.budget = 2 * self.settings.limits.max_windows_per_s
        link.connection = connection
        link.held_revision = hello.revision
        link.announced = ""
        link.steered = False
        device.hello = hello
        device.connected = True
        device.connections += 1
        device.connected_s = device.last_seen_s = time.time()
        device.address = client.host if client else ""
        device.revision = hello.revision
        device.uplink_bytes += connection.unclaimed_bytes
        self._metrics.connections.labels("yes" if resumed else "no").inc()
        self._metrics.devices.set(self.connected)
        self._store.record_device(hello.device_id, hello.device_class, hello.software, hello.encoder, hello.revision)
        LOG.info("%s %s from %s", hello.device_id, "resumed" if resumed else "connected", device.address)

    def _reject(self, connection: Connection, hello: Hello, code: str, detail: str) -> None:
        connection.session.reject(code, detail)
        self._metrics.refused.labels(code).inc()
        self._store.record_event("refused", f"{code}: {detail}", hello.device_id)
        for event in connection.session.events():
            self._on_event(connection, event)

    async def _stream(self, hello: Hello) -> DeviceStream:
        """The stream that this HELLO goes on with, from memory or the database; raises StoreError."""
        key = (hello.device_id, hello.epoch)
        if key not in self._streams:
            position = await asyncio.to_thread(self._store.position, *key)
            through = position.received_through if position.known else hello.oldest_sequence - 1
            self._streams.setdefault(
                key,
                DeviceStream.start(*key, through, position.beyond, position.overlap, self.settings.audio),
            )
            if not position.known:
                self._store.open_stream(*key, hello.oldest_sequence)
        stream = self._streams[key]
        if hello.oldest_sequence - 1 > stream.through and hello.oldest_sequence <= hello.next_sequence:
            self._store.open_stream(*key, hello.oldest_sequence)
            stream.begin_at(hello.oldest_sequence)
        return stream

    def _drop_connection(self, link: Link, *, resumed: bool) -> None:
        """Ends the connection that a device had before, if it still stands."""
        old, link.connection = link.connection, None
        if old is not None:
            if resumed:
                old.replaced = True  # its session goes on with the new transport
            else:
                old.session.fail("replaced", "another connection with this device id took over")
            old.end(fatal=True)
        elif not resumed and link.session.state is not ServerState.CLOSED:
            link.session.close("a new session began")

    def _send_again(self, connection: Connection, link: Link) -> None:
        """Starts sending durable results that the device lacks, as many as the session has room for."""
        wanted = link.session.results_wanted()
        if wanted:
            self._start(self._answer_from_store(connection, link, wanted))

    async def _answer_from_store(self, connection: Connection, link: Link, wanted: range) -> None:
        stream, hello = link.stream, link.device.hello
        try:
            records = await asyncio.to_thread(
                self._store.results_from, stream.device, stream.epoch, wanted.start, len(wanted)
            )
        except StoreError as error:
            LOG.error("%s: results could not be read again: %s", stream.device, error)
            return
        for record in records:
            if record.sequence in wanted:
                link.session.send(answer(record, want_embedding=bool(hello and hello.want_embedding)))
        connection.wake.set()

    # -- what devices send ---------------------------------------------------------------------------------------

    def _on_event(self, connection: Connection, event: events.Event) -> None:
        link = connection.link
        if isinstance(event, events.WindowReceived) and link is not None:
            self._on_window(connection, link, event)
        elif isinstance(event, events.MessageReceived) and link is not None:
            self._on_message(connection, link, event.message)
        elif isinstance(event, events.MediaReceived) and link is not None:
            if event.frame.type is FrameType.WEIGHTS:
                self._on_chunk(link, event.frame.payload)
        elif isinstance(event, (events.Acked, events.ReplayDropped)) and link is not None:
            self._send_again(connection, link)
        elif isinstance(event, events.Closed):
            if event.fatal:
                name = link.device.id if link is not None else "a stranger"
                LOG.warning("%s: connection ended: %s: %s", name, event.code, event.reason)
                if link is not None:
                    link.device.last_error = f"{event.code}: {event.reason}"[:500]
            connection.end(fatal=event.fatal)

    def _on_window(self, connection: Connection, link: Link, event: events.WindowReceived) -> None:
        frame, stream = event.frame, link.stream
        connection.budget -= 1
        if frame.sequence <= stream.received:  # on its way since an earlier connection, or durable already
            self._metrics.duplicates.inc()
            connection.session.acknowledge(stream.through, now_ms())
            return
        stream.received = frame.sequence
        if stream.holds(frame.sequence):  # durable before a restart, behind a hole; its result comes from the store
            stream.commit(frame.sequence)
            connection.session.acknowledge(stream.through, now_ms())
            connection.session.want_results(frame.sequence, frame.sequence)
            self._send_again(connection, link)
            return
        stream.since_gmm += 1
        want_gmm = link.has_encoder and stream.since_gmm >= self.settings.synchronisation.gmm_every_windows
        if want_gmm:
            stream.since_gmm = 0
        self._pending_bytes += len(frame.payload)
        hello = link.device.hello
        self._compute.submit(
            Job(
                stream,
                frame.type,
                frame.sequence,
                frame.timestamp_ms,
                time.monotonic(),
                int(1000 * time.time()),
                frame.payload,
                frame.wire_bytes,
                bool(hello and hello.want_embedding),
                want_gmm,
            )
        )

    def _on_message(self, connection: Connection, link: Link, message: Message) -> None:
        device = link.device
        device.last_seen_s = time.time()
        if isinstance(message, Stats):
            device.stats = message
            if message.revision:
                link.held_revision = device.revision = message.revision
        elif isinstance(message, WeightsRequest):
            self._on_weights_request(connection, message)
        elif isinstance(message, Revision):
            self._on_offer(link, message)
        elif isinstance(message, Error):
            LOG.warning("%s reports %s: %s", device.id, message.code, message.detail)
            device.last_error = f"{message.code}: {message.detail}"

    def _on_weights_request(self, connection: Connection, request: WeightsRequest) -> None:
        """The start of a download, or news of how far the one under way has come."""
        download = connection.download
        if download is None or not download.confirm(request.revision, request.base, request.offset, now_ms()):
            connection.download = None
            connection.requested = request
            self._start(self._open_download(connection, request))
        elif download.done:
            connection.download = None
            self._metrics.transfers.labels("down").inc()

    async def _open_download(self, connection: Connection, request: WeightsRequest) -> None:
        try:
            download = await asyncio.to_thread(self._weights.open_transfer, request)
        except ProtocolError as error:
            connection.session.send(Error(code=error.code, detail=error.detail))
        else:
            if connection.requested is request:  # else the device has asked for something else meanwhile
                connection.download = download
        connection.wake.set()

    def _on_offer(self, link: Link, offer: Revision) -> None:
        if offer.kind == "local" and offer == link.device.learned:  # came whole; the device has not heard so
            link.session.send(WeightsRequest(revision=offer.revision, base=offer.base, offset=offer.total_bytes))
            return
        try:
            if link.local is None or link.local[0] != offer:
                link.local = (offer, self._weights.accept_local(offer))
        except ProtocolError as error:
            link.session.send(Error(code=error.code, detail=error.detail))
            return
        transfer = link.local[1]
        link.session.send(WeightsRequest(revision=offer.revision, base=offer.base, offset=transfer.received))

    def _on_chunk(self, link: Link, data: bytes) -> None:
        if link.local is None:
            link.session.send(Error(code="bad_transfer", detail="got a chunk that was not asked for"))
            return
        offer, transfer = link.local
        before = transfer.received
        try:
            complete = transfer.add(data)
        except RevisionError as error:
            link.local = None
            link.session.send(Error(code="bad_transfer", detail=str(error)[:500]))
            return
        if transfer.received > before:
            link.session.send(WeightsRequest(revision=offer.revision, base=offer.base, offset=transfer.received))
        if complete:
            link.local, link.device.learned = None, offer
            self._start(self._take_local(link, offer, transfer))

    async def _take_local(self, link: Link, offer: Revision, transfer: WeightTransfer) -> None:
        try:
            difference = await asyncio.to_thread(self._weights.difference, transfer)
        except (RevisionError, CheckpointError) as error:
            link.session.send(Error(code="bad_transfer", detail=str(error)[:500]))
            if link.connection is not None:
                link.connection.wake.set()
            return
        self._metrics.transfers.labels("up").inc()
        self._merge(link.device.id, offer.base, difference, offer.samples)
        self._store.record_event("local_learning", f"{offer.samples} windows on {offer.base[:12]}", link.device.id)

    # -- what comes out ------------------------------------------------------------------------------------------

    def committed(self, done: list[Done]) -> None:
        """Windows that are durable now: acknowledges and answers them."""
        now_s, now = time.monotonic(), now_ms()
        touched: set[str] = set()
        for job, record, gmm in done:
            stream = job.stream
            stream.commit(record.sequence)
            self._pending_bytes -= len(job.payload)
            touched.add(record.device)
            latency_s = now_s - job.arrived_s
            device = self.devices.get(record.device)
            if device is not None:
                device.count(record, 1000 * latency_s)
            if record.error:
                self._metrics.rejected.labels(record.error).inc()
            else:
                self._metrics.windows.labels(cut_name(record.block, record.encoding)).inc()
                self._metrics.latency.observe(latency_s)
                self.latencies_ms.append(1000 * latency_s)
            link = self.links.get(record.device)
            if link is None or link.stream is not stream:
                continue
            link.session.send(answer(record, want_embedding=job.want_embedding))
            if gmm is not None:
                link.session.send(gmm)
            if record.error == "unknown_revision":
                self._announce(link)
        for name in touched:
            link = self.links.get(name)
            if link is not None:
                link.session.acknowledge(link.stream.through, now)
                if link.connection is not None:
                    link.connection.wake.set()

    def announce_to(self, limit: int) -> int:
        """Tells up to `limit` connected devices of the newest revision; returns how many were told."""
        newest = self._weights.newest
        told = 0
        for link in self.links.values() if newest is not None else ():
            if told >= limit:
                break
            if link.connection is not None and link.has_encoder and self._announce(link):
                told += 1
        return told

    def steer(self) -> None:
        """Has every device send its features, and all of them, until the projection is fitted to real sound."""
        for link in self.links.values():
            self._steer(link)

    def _steer(self, link: Link) -> None:
        newest, training = self._weights.newest, self.settings.training
        fitted = newest is not None and self._weights.space_of(newest.revision) != 0
        cold = training.enabled and training.warm_start_windows > 0 and not fitted
        if link.connection is None or cold == link.steered:
            return
        order = Policy(policy="fixed", cut=str(COLD_CUT), uncertainty_threshold=-1.0) if cold else Policy(policy="own")
        if link.session.send(order):
            link.steered = cold
            link.connection.wake.set()

    def _announce(self, link: Link) -> bool:
        newest = self._weights.newest
        message = self._weights.announcement(link.held_revision)
        if newest is None or message is None or link.announced == newest.revision:
            return False
        if not link.session.send(message):
            return False
        link.announced = newest.revision
        if link.connection is not None:
            link.connection.wake.set()
        return True

    # -- limits and housekeeping ---------------------------------------------------------------------------------

    async def _pace(self, connection: Connection) -> None:
        """Slows down whoever sends too much: tells it, and reads its socket later. Others are not held up."""
        limits = self.settings.limits
        now_s = time.monotonic()
        rate = limits.max_windows_per_s
        connection.budget = min(2 * rate, connection.budget + rate * (now_s - connection.budget_s))
        connection.budget_s = now_s
        if connection.budget < 0:
            self._throttle(connection, "rate", limits.max_in_flight, int(1000 / rate) + 1)
            await asyncio.sleep(min(MAX_RATE_PAUSE_S, -connection.budget / rate))
        elif self._compute.waiting > limits.max_waiting or self._store.failure is not None:
            reason = "busy" if self._store.failure is None else "store"
            self._throttle(connection, reason, min(THROTTLED_IN_FLIGHT, limits.max_in_flight), 0)
        while self._pending_bytes > limits.max_waiting_mb * 1e6 and not connection.ending:
            await asyncio.sleep(0.02)

    def _throttle(self, connection: Connection, reason: str, max_in_flight: int, min_interval_ms: int) -> None:
        now_s = time.monotonic()
        if connection.link is None or now_s - connection.throttle_told_s < 1.0:
            return
        connection.throttle_told_s = now_s
        connection.throttled = True
        self._metrics.throttled.labels(reason).inc()
        connection.session.send(Throttle(max_in_flight=max_in_flight, min_interval_ms=min_interval_ms, reason=reason))
        connection.wake.set()

    def housekeeping(self) -> None:
        """About once a second: forgets sessions that did not come back, lifts throttles, bounds what is remembered."""
        now_s = time.monotonic()
        relaxed = self._compute.waiting < self.settings.limits.max_waiting // 2 and self._store.failure is None
        for link in list(self.links.values()):
            connection = link.connection
            if connection is None:
                link.session.tick(now_ms())
                if link.session.state is ServerState.CLOSED:
                    self._forget(link)
            elif connection.throttled and relaxed and now_s - connection.throttle_told_s > 2.0:
                connection.throttled = False
                link.session.send(Throttle(max_in_flight=self.settings.limits.max_in_flight, reason="over"))
                connection.wake.set()
        for stream in [s for s in self._streams.values() if not s.pending]:
            owner = self.links.get(stream.device)
            if owner is None or owner.stream is not stream:
                del self._streams[stream.device, stream.epoch]
        surplus = len(self.devices) - 2 * self.settings.limits.max_devices
        if surplus > 0:
            gone = sorted((d for d in self.devices.values() if d.id not in self.links), key=lambda d: d.last_seen_s)
            for device in gone[:surplus]:
                del self.devices[device.id]

    def _forget(self, link: Link) -> None:
        if self.links.get(link.device.id) is link:
            del self.links[link.device.id]

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def answer(record: WindowRecord, *, want_embedding: bool) -> Message:
    """What a device is told about one durable window."""
    if record.error:
        code = "unknown_revision" if record.error == "unknown_revision" else "bad_window"
        return Error(code=code, detail=f"{record.error}: {record.detail}"[:500], sequence=record.sequence)
    return Result(
        sequence=record.sequence,
        window=record.window,
        capture_ms=record.capture_ms,
        uncertainty=record.uncertainty,
        cluster=record.cluster,
        label=record.label[:128],
        confidence=record.confidence,
        server_ms=max(0.0, record.server_ms),
        queue_ms=max(0.0, record.queue_ms),
        embedding=(record.embedding or b"") if want_embedding else b"",
    )


def now_ms() -> float:
    """The clock of all sessions."""
    return 1000 * time.monotonic()
