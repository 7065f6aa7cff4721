"""The device's end of a simulated connection: the live client's order of calls, with pipes in place of sockets."""

from __future__ import annotations

import random
from collections import deque
from typing import Any, Protocol

from streamsplit.edge.settings import ServerLinkSettings
from streamsplit.errors import ConnectionRefused
from streamsplit.simulation.clock import EventClock
from streamsplit.simulation.counted import Wire
from streamsplit.simulation.estimate import WatchedLink
from streamsplit.simulation.front import ServerEnd, Transport
from streamsplit.simulation.pipe import Pipe
from streamsplit.simulation.queue import MemoryQueue
from streamsplit.wire.events import Acked, Closed, MessageReceived, Opened, RoundTrip
from streamsplit.wire.limits import CLIENT_SETTINGS
from streamsplit.wire.messages import Hello, Message

REQUEST_BYTES = 163  # HTTP request that opens the WebSocket, at a host name as long as 127.0.0.1:51234
RESPONSE_BYTES = 129  # the server's 101 answer
CLOSING_BYTES = 8  # a close frame from the device: header, mask, code
_BATCH_BYTES = 16 << 10  # asked of the session at once, as edge.client does
_FEED_WINDOWS = 32
_CLOSE_WAIT_S = 1.0  # how long the client waits for the other end's goodbye before it gives up a connection


class Owner(Protocol):
    """Who the connection works for."""

    def hello(self) -> Hello: ...
    def message(self, message: Message) -> None: ...


class DeviceEnd:
    """Connects, feeds the session from the queue within its credit, estimates the link, reconnects and resumes."""

    def __init__(
        self,
        clock: EventClock,
        owner: Owner,
        queue: MemoryQueue,
        link: WatchedLink,
        up: Pipe,
        down: Pipe,
        server: ServerEnd,
        settings: ServerLinkSettings,
        rng: random.Random,
        wire: Wire,
    ) -> None:
        self.connections = 0  # that came to a WELCOME
        self.session = wire.client(CLIENT_SETTINGS, clock.now_ms)
        self._clock, self._owner, self._queue, self._link = clock, owner, queue, link
        self._up, self._down, self._server, self._settings, self._random = up, down, server, settings, rng
        self._size, self._sequence = wire.size, wire.sequence
        self._transport: Transport | None = None
        self._batch: deque[Any] = deque()  # asked of the session, not yet taken by the modem
        self._waits_for_room = False
        self._attempt = 0
        self._opened_before = 0
        self._ended: Closed | None = None

    @property
    def is_open(self) -> bool:
        """Whether windows flow."""
        return self.session.is_open

    @property
    def socket_bytes(self) -> tuple[int, int]:
        """(up, down) so far, over all connections."""
        return self._up.bytes, self._down.bytes

    def send(self, message: Message) -> bool:
        """Queues a control message; False when the link is down."""
        sent = self.session.send(message)
        self.flush()
        return sent

    def probe(self) -> None:
        """Asks for a round trip, unless one is being asked for."""
        now_ms = self._clock.now_ms
        self.session.ping(now_ms)
        self._link.on_probe(self.session.probing_since_ms, now_ms)
        self.flush()

    def flush(self) -> None:
        """Hands over what there is: queued windows within the credit, then what the session wants to send."""
        transport = self._transport
        if transport is None or not transport.up or self._waits_for_room:
            return
        clock, pipe, batch, session, queue = self._clock, self._up, self._batch, self.session, self._queue
        now_ms = clock.now_s * 1000.0
        if queue.next_sequence > session.next_sequence:
            self._feed(now_ms)
        if not batch and not session.waits():
            return
        while True:
            if not batch:
                batch.extend(session.bytes_to_send(_BATCH_BYTES, now_ms))
                if not batch:
                    return
            if pipe.blocked:
                self._waits_for_room = True
                clock.at(pipe.room_at_s(), self._room, transport)
                return
            data = batch.popleft()
            sequence, size = self._sequence(data), self._size(data)
            if sequence:
                self._link.on_sent(sequence, size, now_ms)
            pipe.send(size, self._server.receive, transport, data)
            if not batch:
                if queue.next_sequence > session.next_sequence:
                    self._feed(now_ms)
                if not session.waits():
                    return

    # -- connecting ----------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Opens a transport: TCP's round trip, the HTTP request and its answer, then HELLO."""
        clock = self._clock
        self._ended = None
        self._opened_before = self.connections
        self._batch.clear()
        self._waits_for_room = False
        transport = self._transport = Transport(self)
        clock.at(clock.now_s + self._up.link.rtt_ms(clock.now_s) / 1000.0, self._request, transport)
        clock.at(clock.now_s + self._settings.connect_timeout_s, self._give_up, transport)

    def _request(self, transport: Transport) -> None:
        if transport.alive:
            self._up.send_bytes(REQUEST_BYTES, self._respond, transport)

    def _respond(self, transport: Transport) -> None:
        if transport.alive:
            self._server.accepted(transport)
            self._down.send_bytes(RESPONSE_BYTES, self._greet, transport)

    def _greet(self, transport: Transport) -> None:
        if not transport.alive:
            return
        transport.up = True
        self.session.hello(self._owner.hello(), self._clock.now_ms)
        self._wait_tick(transport, self.session.next_deadline_ms())
        self.flush()

    def _give_up(self, transport: Transport) -> None:
        if transport.alive and not transport.up:
            self._hang_up(0.0)

    # -- receiving and time --------------------------------------------------------------------------------------

    def receive(self, transport: Transport, data: Any) -> None:
        """One WebSocket message from the server."""
        if transport.alive:
            self.session.receive(data, self._clock.now_s * 1000.0)
            self._handle(transport)

    def closed_by_server(self, transport: Transport) -> None:
        """The server's goodbye has arrived."""
        if transport.alive:
            self._hang_up(0.0)

    def _wait_tick(self, transport: Transport, deadline_ms: float | None) -> None:
        """As the live client's ticking task: at the deadline known now, but at least every second."""
        now_ms = self._clock.now_s * 1000.0
        wait_ms = 1000.0 if deadline_ms is None else min(max(deadline_ms - now_ms, 1.0), 1000.0)
        if self.session.min_interval_ms:
            wait_ms = min(wait_ms, float(self.session.min_interval_ms))
        self._clock.at(self._clock.now_s + wait_ms / 1000.0, self._tick, transport)

    def _tick(self, transport: Transport) -> None:
        if not transport.alive:
            return
        now_ms, deadline_ms = self._clock.now_s * 1000.0, self.session.next_deadline_ms()
        # a throttled session's spacing is no deadline of its own: feed it
        if (deadline_ms is not None and deadline_ms <= now_ms) or self.session.min_interval_ms:
            self.session.tick(now_ms)
            self._handle(transport)
            deadline_ms = self.session.next_deadline_ms()
        if transport.alive:
            self._wait_tick(transport, deadline_ms)

    def _room(self, transport: Transport) -> None:
        if transport.alive:
            self._waits_for_room = False
            self.flush()

    def _feed(self, now_ms: float) -> None:
        session, queue = self.session, self._queue
        while queue.next_sequence > session.next_sequence and (credit := session.credit(now_ms)) > 0:
            for row in queue.after(session.next_sequence - 1, min(credit, _FEED_WINDOWS)):
                if not session.send_window(row.frame_type, row.sequence, row.timestamp_ms, row.payload):
                    return

    def _handle(self, transport: Transport) -> None:
        for event in self.session.events():
            if isinstance(event, Acked):
                self._link.on_ack(event, event.now_ms)
                self._queue.acknowledge(event.through)
            elif isinstance(event, MessageReceived):
                self._owner.message(event.message)
            elif isinstance(event, RoundTrip):
                self._link.on_rtt(event.rtt_ms, event.now_ms)
                self._link.on_probe(self.session.probing_since_ms, event.now_ms)
            elif isinstance(event, Opened):
                self.connections += 1
                self._link.on_rtt(event.rtt_ms, self._clock.now_ms)
                self._queue.acknowledge(event.feed_from - 1)
            elif isinstance(event, Closed):
                self._ended = event
        if self._ended is None:
            self.flush()
        else:
            self._last_words(transport)

    # -- the end of a connection ---------------------------------------------------------------------------------

    def _last_words(self, transport: Transport) -> None:
        """Hands over what the session still has to say, then waits for the other end's goodbye in vain."""
        for data in self.session.bytes_to_send(None, self._clock.now_ms):
            self._up.send(self._size(data), self._server.receive, transport, data)
        self._up.send_bytes(CLOSING_BYTES, _nothing)
        self._hang_up(_CLOSE_WAIT_S)

    def _hang_up(self, wait_s: float) -> None:
        """The transport is gone at both ends; another attempt follows after the live client's backoff."""
        transport, ended, clock = self._transport, self._ended, self._clock
        if transport is None:
            return
        self._transport = None
        transport.alive = transport.up = False
        self._server.lost(transport)
        self.session.disconnected(clock.now_ms, self.session.connection)
        self.session.events()
        self._link.lost(clock.now_ms)
        if ended is not None and not ended.retry:
            raise ConnectionRefused(f"the server turned this device away ({ended.code}): {ended.reason}")
        if self.connections > self._opened_before:
            self._attempt = 0
        settings = self._settings
        longest_s = min(settings.first_backoff_s * 2**self._attempt, settings.longest_backoff_s)
        self._attempt = min(self._attempt + 1, 32)
        clock.at(clock.now_s + wait_s + longest_s * (0.5 + 0.5 * self._random.random()), self.connect)


def _nothing() -> None:
    """What happens when a close frame arrives at an end that has gone."""
