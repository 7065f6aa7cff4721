"""The gateway: connections in, windows to the worker, acknowledgements and results out; everything in the event loop.

Here is what becomes of an event. The parts have files of their own: `connection` (reading and writing), `handshake`
(who is let in), `roster` (who is known), `transfers` (weights), `results` (what a device is told), `gradients` (what
goes back to a device that learns), `backpressure`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from streamsplit.server.backpressure import Backpressure
from streamsplit.server.codecs import CodecShelf
from streamsplit.server.compute import ComputeWorker
from streamsplit.server.connection import Connection, Link, Pump, now_ms
from streamsplit.server.dialogue.exchange import Dialogues
from streamsplit.server.fleet import cut_name
from streamsplit.server.gradients import GradientReturns
from streamsplit.server.handshake import Doorkeeper
from streamsplit.server.jobs import Done, Job
from streamsplit.server.metrics import Metrics
from streamsplit.server.policy_shelf import PolicyShelf
from streamsplit.server.precedence import Precedence
from streamsplit.server.results import StoredResults, answer
from streamsplit.server.roster import Roster
from streamsplit.server.settings import ServerSettings
from streamsplit.server.store import Store
from streamsplit.server.transfers import Transfers, feed_download
from streamsplit.server.weight_service import WeightService
from streamsplit.splitting.cut import Cut
from streamsplit.transport.pipe import Pipe
from streamsplit.weights.revision import Weights
from streamsplit.wire import events
from streamsplit.wire.media import Encoding
from streamsplit.wire.messages import Error, Hello, Message, Policy, Prototypes, Revision, Stats, WeightsRequest
from streamsplit.wire.session import ServerSession, ServerState, SessionSettings
from streamsplit.wire.types import FrameType

LOG = logging.getLogger(__name__)
COLD_CUT = Cut(0, Encoding.LOGMEL_INT8)  # what the projection's first fit is made from


class Gateway:
    """Every device's connection; see the module."""

    def __init__(
        self,
        settings: ServerSettings,
        *,
        compute: ComputeWorker,
        store: Store,
        weights: WeightService,
        policies: PolicyShelf,
        codecs: CodecShelf,
        dialogues: Dialogues,
        metrics: Metrics,
        precedence: Precedence,
        merge: Callable[[str, str, Weights, int], None],
    ) -> None:
        self.settings = settings
        self._policies = policies
        self.latencies_ms: deque[float] = deque(maxlen=4096)  # of all devices
        self.prototypes: Prototypes | None = None  # what devices that ask for them get along with a mixture
        self._compute = compute
        self._weights = weights
        self._metrics = metrics
        self._precedence = precedence
        self._roster = Roster(settings, store, codecs)
        self.devices = self._roster.devices
        self._metrics.collapsed.set_function(lambda: sum(device.collapsed for device in self.devices.values()))
        self.links = self._roster.links
        self._door = Doorkeeper(settings, self._roster, weights=weights, store=store, metrics=metrics)
        self._transfers = Transfers(weights, store=store, metrics=metrics, merge=merge, start=self._start)
        self._dialogues = dialogues
        self.gradients = GradientReturns(self.links, settings.training, metrics)
        self._results = StoredResults(store, self._start)
        self._backpressure = Backpressure(settings, compute=compute, store=store, metrics=metrics)
        self._pump = Pump(
            metrics,
            on_hello=self._on_hello,
            on_event=self._on_event,
            pace=self._backpressure.pace,
            feed=feed_download,
        )
        self._connections: set[Connection] = set()
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

    async def serve(self, pipe: Pipe) -> None:
        """One device's connection: lives as long as it does."""
        session = ServerSession(now_ms(), self._session_settings, refuses=self._refuses)
        connection = Connection(pipe, session, self._precedence)
        self._connections.add(connection)
        writer = asyncio.create_task(self._pump.write(connection))
        try:
            await self._pump.read(connection)
        finally:
            connection.end()
            with contextlib.suppress(asyncio.CancelledError):
                await writer
            connection.wake.clear()
            self._connections.discard(connection)
            self._lost(connection)

    @property
    def _refuses(self) -> frozenset[FrameType]:
        """The frame types that sessions answer with 'unsupported'."""
        return self.gradients.refuses - ({FrameType.DIALOGUE} if self._dialogues.enabled else set())

    @property
    def connected(self) -> int:
        """Devices connected now."""
        return self._roster.connected

    async def close(self) -> None:
        """Says goodbye to everybody; devices come back by themselves when a server is there again."""
        self._door.closing = True
        self._dialogues.close()
        for connection in list(self._connections):
            if not connection.replaced:
                connection.session.fail("shutting_down", "the server is going away; try again later")
            connection.end()
        for task in list(self._tasks):
            task.cancel()
        deadline = time.monotonic() + 3.0
        while self._connections and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    def _lost(self, connection: Connection) -> None:
        if connection.replaced:
            return
        session = connection.session
        session.disconnected(now_ms(), connection.number)
        self._drain(connection)
        link = connection.link
        if link is None or link.connection is not connection:
            return
        link.connection = None
        link.device.connected = False
        self._metrics.devices.set(self.connected)
        if session.state is ServerState.CLOSED:
            self._roster.forget(link)

    # -- what devices send ---------------------------------------------------------------------------------------

    async def _on_hello(self, connection: Connection, hello: Hello) -> None:
        link = await self._door.admit(connection, hello)
        if link is None:
            self._drain(connection)
            return
        self._transfers.greet(link)
        self._steer(link)
        self._offer_policy(link)
        self._results.send_again(connection, link)

    def _drain(self, connection: Connection) -> None:
        for event in connection.session.events():
            self._on_event(connection, event)

    def _on_event(self, connection: Connection, event: events.Event) -> None:
        link = connection.link
        if isinstance(event, events.WindowReceived) and link is not None:
            self._on_window(connection, link, event)
        elif isinstance(event, events.MessageReceived) and link is not None:
            self._on_message(connection, link, event.message)
        elif isinstance(event, events.MediaReceived) and link is not None:
            if event.frame.type is FrameType.WEIGHTS:
                self._transfers.on_chunk(link, event.frame.payload)
            elif event.frame.type is FrameType.GRAD_BACK:
                self.gradients.on_frame(link, event.frame.payload)
            elif event.frame.type is FrameType.DIALOGUE:
                self._dialogues.on_frame(link, event.frame)
        elif isinstance(event, (events.Acked, events.ReplayDropped)) and link is not None:
            self._results.send_again(connection, link)
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
            self._results.send_again(connection, link)
            return
        stream.since_gmm += 1
        want_gmm = link.has_encoder and stream.since_gmm >= self.settings.synchronisation.gmm_every_windows
        if want_gmm:
            stream.since_gmm = 0
        self._backpressure.pending_bytes += len(frame.payload)
        self._precedence.received()
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
                bool(want_gmm and hello and hello.want_prototypes),
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
            self._transfers.on_request(connection, message)
        elif isinstance(message, Revision):
            self._transfers.on_offer(link, message)
        elif isinstance(message, Error):
            LOG.warning("%s reports %s: %s", device.id, message.code, message.detail)
            device.last_error = f"{message.code}: {message.detail}"
            if message.code == "bad_policy":
                link.policy_refused = link.policy_sent

    # -- what comes out ------------------------------------------------------------------------------------------

    def committed(self, done: list[Done]) -> None:
        """Windows that are durable now: acknowledges and answers them."""
        now_s, now = time.monotonic(), now_ms()
        touched: set[str] = set()
        for job, record, gmm in done:
            stream = job.stream
            stream.commit(record.sequence)
            self._backpressure.pending_bytes -= len(job.payload)
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
                if self.prototypes is not None and job.want_prototypes:
                    link.session.send(self.prototypes)
            if record.error == "unknown_revision":
                self._transfers.announce(link)
        for name in touched:
            link = self.links.get(name)
            if link is not None:
                link.session.acknowledge(link.stream.through, now)
                link.wake()
        for _ in done:  # after their answers are queued
            self._precedence.answered()

    def announce_to(self, limit: int) -> int:
        """Tells up to `limit` connected devices of the newest revision; returns how many were told."""
        newest = self._weights.newest
        told = 0
        for link in self.links.values() if newest is not None else ():
            if told >= limit:
                break
            if link.connection is not None and link.has_encoder and self._transfers.announce(link):
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

    def offer_policy(self) -> int:
        """Sends the policy to every connected device that wants it and does not hold it; returns to how many."""
        return sum(self._offer_policy(link) for link in self.links.values())

    def _offer_policy(self, link: Link) -> bool:
        message = self._policies.offer(link.device.hello, max(link.policy_sent, link.policy_refused))
        if message is None or link.connection is None or not link.session.send(message):
            return False
        link.policy_sent = message.version
        link.connection.wake.set()
        return True

    # -- housekeeping --------------------------------------------------------------------------------------------

    def housekeeping(self) -> None:
        """About once a second: forgets sessions that did not come back, lifts throttles, bounds what is remembered."""
        for link in list(self.links.values()):
            if link.connection is not None:
                self._backpressure.relax(link.connection)
                continue
            link.session.tick(now_ms())
            if link.session.state is ServerState.CLOSED:
                self._roster.forget(link)
        self._roster.prune()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
