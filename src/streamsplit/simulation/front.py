"""The server's end of every device's connection: the gateway's order of calls around live sessions."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from streamsplit.server.settings import LimitSettings
from streamsplit.simulation.clock import EventClock
from streamsplit.simulation.compute import Answered, Arrived, ComputeThread, Price
from streamsplit.simulation.counted import Wire
from streamsplit.simulation.pipe import Pipe
from streamsplit.splitting.cut import Cut
from streamsplit.wire import events
from streamsplit.wire.frame import Frame
from streamsplit.wire.limits import SessionSettings
from streamsplit.wire.messages import Hello, Result, Throttle
from streamsplit.wire.session import ServerSession, ServerState

_SEND_BYTES = 32 << 10  # asked of the session at once, as server.connection does
_CLOSING_BYTES = 4
_RELAX_S, _TOLD_S, _LIFT_S = 1.0, 1.0, 2.0  # as server.backpressure
_THROTTLED_IN_FLIGHT = 4


class Transport:
    """One connection; both ends lose it together."""

    def __init__(self, device: Any) -> None:
        self.device = device  # its DeviceEnd
        self.session: ServerSession | None = None
        self.alive = True
        self.up = False  # the WebSocket is open at the device
        self.waits_for_room = False
        self.timers: list[float] = []  # heap: when somebody will look at the session's deadline


class ServerEnd:
    """What the server holds of one device: its session, how far its stream is durable, the results not yet heard.

    `want(sequence)` names the cut of a window and its price; `tokens()` gives 16 new bytes for a session.
    """

    def __init__(
        self,
        clock: EventClock,
        compute: ComputeThread,
        down: Pipe,
        limits: LimitSettings,
        *,
        gmm_every_windows: int,
        admit_ms: float,
        wire: Wire,
        cut_of: Callable[[Frame], tuple[Cut, Price]],
        tokens: Callable[[], bytes],
    ) -> None:
        self._clock, self._compute, self._down = clock, compute, down
        self._limits, self._gmm_every, self._cut_of, self._tokens = limits, gmm_every_windows, cut_of, tokens
        self._wire = wire
        self._admit_s = admit_ms / 1000.0
        self._settings = SessionSettings(
            hello_timeout_ms=int(1000 * limits.hello_timeout_s),
            max_in_flight=limits.max_in_flight,
            max_frame_bytes=limits.max_frame_bytes,
            resume_expires_ms=int(1000 * limits.resume_expires_s),
            replay_frames=max(512, 2 * limits.max_in_flight),
        )
        self._session: ServerSession | None = None
        self._transport: Transport | None = None
        self._batch: deque[Any] = deque()
        self._received = 0  # highest sequence handed to compute
        self._through = 0  # every sequence up to here is durable
        self._beyond: set[int] = set()
        self._since_gmm = 0
        self._unheard: deque[tuple[int, Result]] = deque()  # (downlink sequence, result) that the device has not acked
        self._stored: dict[int, Result] = {}  # the same of sessions before this one
        self._throttled = False
        self._told_s = float("-inf")

    # -- connections ---------------------------------------------------------------------------------------------

    def accepted(self, transport: Transport) -> None:
        """The WebSocket has been asked for."""
        transport.session = self._wire.server(self._clock.now_ms, self._settings)
        self._look_at_deadline(transport)

    def lost(self, transport: Transport) -> None:
        """The connection is gone."""
        session = transport.session
        if session is not None:
            session.disconnected(self._clock.now_ms, session.connection)
            session.events()
        if transport is self._transport:
            self._transport = None
            self._batch.clear()

    def _admit(self, transport: Transport, hello: Hello) -> None:
        """The database has been asked: the device comes in."""
        old, fresh, now_ms = self._session, transport.session, self._clock.now_ms
        if not transport.alive or fresh is None or fresh.state is not ServerState.DECIDING:
            return
        if old is not None and old.can_resume(hello, now_ms):
            old.resume(fresh, now_ms)
            transport.session = old
        else:
            token = self._tokens()
            fresh.accept(now_ms, session_id=token[:8].hex(), resume_token=token, received_through=self._through)
            self._session = fresh
            self._stored |= {result.sequence: result for _, result in self._unheard}
            self._stored = {
                sequence: result for sequence, result in self._stored.items() if 0 < hello.results_from <= sequence
            }
            self._unheard.clear()
        self._transport = transport
        self._batch.clear()
        self._send_again()
        self._flush(transport)

    def _send_again(self) -> None:
        session = self._session
        wanted = session.results_wanted() if session is not None else range(0)
        if session is None or not wanted:
            return
        for sequence in wanted:
            result = self._stored.pop(sequence, None)
            if result is not None and session.send(result):
                self._unheard.append((session.replay.last, result))

    # -- what comes in -------------------------------------------------------------------------------------------

    def receive(self, transport: Transport, data: Any) -> None:
        """One WebSocket message from the device."""
        if not transport.alive or transport.session is None:
            return
        transport.session.receive(data, self._clock.now_s * 1000.0)
        self._handle(transport)

    def _handle(self, transport: Transport) -> None:
        session = transport.session
        assert session is not None
        ended, windows_only = False, True
        happened = session.events()
        for event in happened:
            if isinstance(event, events.WindowReceived):
                self._on_window(session, event.frame)
                continue
            windows_only = False
            if isinstance(event, events.Acked):
                self._heard(session)
                self._send_again()
            elif isinstance(event, events.HelloReceived):
                self._clock.at(self._clock.now_s + self._admit_s, self._admit, transport, event.hello)
            elif isinstance(event, events.ReplayDropped):
                self._send_again()
            elif isinstance(event, events.Closed):
                ended = True
        if self._compute.waiting > self._limits.max_waiting:
            self._throttle()
        # a window only moves the session's deadlines away (unless it comes again, which has no event)
        if not windows_only or session.waits() or not happened:
            self._flush(transport)
        if ended:
            self._down.send_bytes(_CLOSING_BYTES, transport.device.closed_by_server, transport)

    def _on_window(self, session: ServerSession, frame: Frame) -> None:
        if frame.sequence <= self._received:  # on its way since an earlier connection, or durable already
            session.acknowledge(self._through, self._clock.now_ms)
            return
        self._received = frame.sequence
        self._since_gmm += 1
        want_gmm = bool(self._gmm_every) and self._since_gmm >= self._gmm_every
        if want_gmm:
            self._since_gmm = 0
        cut, price = self._cut_of(frame)
        self._compute.submit(
            Arrived(self, frame.sequence, cut, price, self._clock.now_s, frame.timestamp_ms, frame, want_gmm)
        )

    def _heard(self, session: ServerSession) -> None:
        """Forgets results that the device has."""
        unheard, through = self._unheard, session.replay.acked_through
        while unheard and unheard[0][0] <= through:
            unheard.popleft()

    # -- what comes out ------------------------------------------------------------------------------------------

    def answer(self, answered: Answered, compute_ms: float, taken_s: float) -> None:
        """A window is durable: queues its result."""
        window, session = answered.window, self._session
        self._beyond.add(window.sequence)
        while self._through + 1 in self._beyond:
            self._through += 1
            self._beyond.remove(self._through)
        if session is None:
            return
        message = answered.answer
        if isinstance(message, Result):
            queue_ms = 1000.0 * (taken_s - window.arrived_s)
            message = msgspec.structs.replace(message, server_ms=compute_ms, queue_ms=queue_ms)
            if session.send(message):
                self._unheard.append((session.replay.last, message))
        else:
            session.send(message)
        if answered.gmm is not None:
            session.send(answered.gmm)

    def acknowledge(self) -> None:
        """Tells the device how far its stream is durable, and hands over the results."""
        if self._session is not None:
            self._session.acknowledge(self._through, self._clock.now_s * 1000.0)
            if self._transport is not None:
                self._flush(self._transport)

    def _flush(self, transport: Transport) -> None:
        session, clock, pipe, batch = transport.session, self._clock, self._down, self._batch
        if session is None or transport.waits_for_room:
            return
        now_ms = clock.now_s * 1000.0
        while True:
            if not batch:
                batch.extend(session.bytes_to_send(_SEND_BYTES, now_ms))
                if not batch:
                    break
            if pipe.blocked:
                transport.waits_for_room = True
                clock.at(pipe.room_at_s(), self._room, transport)
                break
            data = batch.popleft()
            pipe.send(self._wire.size(data), transport.device.receive, transport, data)
        self._look_at_deadline(transport)

    def _room(self, transport: Transport) -> None:
        transport.waits_for_room = False
        if transport.alive:
            self._flush(transport)

    def _look_at_deadline(self, transport: Transport) -> None:
        """Has somebody look at the session when its next deadline comes, unless somebody looks before that anyway."""
        session, timers = transport.session, transport.timers
        assert session is not None
        deadline_ms = session.next_deadline_ms()
        if deadline_ms is not None:
            # a microsecond late: milliseconds and back may come out a hair early, and the tick would do nothing
            due_s = max(deadline_ms / 1000.0 + 1e-6, self._clock.now_s)
            if not timers or due_s < timers[0]:
                heapq.heappush(timers, due_s)
                self._clock.at(due_s, self._on_deadline, transport)

    def _on_deadline(self, transport: Transport) -> None:
        session = transport.session
        if not transport.alive or session is None:
            return
        heapq.heappop(transport.timers)
        deadline_ms, now_ms = session.next_deadline_ms(), self._clock.now_s * 1000.0
        if deadline_ms is not None and deadline_ms <= now_ms:
            session.tick(now_ms)
            self._handle(transport)
        else:
            self._look_at_deadline(transport)

    # -- load ----------------------------------------------------------------------------------------------------

    def _throttle(self) -> None:
        """The compute thread is far behind: the device may have few windows in flight until it has caught up."""
        now_s = self._clock.now_s
        if self._session is None or now_s - self._told_s < _TOLD_S:
            return
        self._told_s = now_s
        in_flight = min(_THROTTLED_IN_FLIGHT, self._limits.max_in_flight)
        self._session.send(Throttle(max_in_flight=in_flight, reason="busy"))
        if not self._throttled:
            self._throttled = True
            self._clock.at(now_s + _RELAX_S, self._relax)

    def _relax(self) -> None:
        relaxed = self._compute.waiting < self._limits.max_waiting // 2
        if not relaxed or self._clock.now_s - self._told_s <= _LIFT_S:
            self._clock.at(self._clock.now_s + _RELAX_S, self._relax)
            return
        self._throttled = False
        if self._session is not None:
            self._session.send(Throttle(max_in_flight=self._limits.max_in_flight, reason="over"))
            if self._transport is not None:
                self._flush(self._transport)
