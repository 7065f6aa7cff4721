"""The server's end of one device's session."""

from __future__ import annotations

import hmac
import math

import msgspec

from streamsplit.errors import ProtocolError
from streamsplit.wire.endpoint import Endpoint, read_message
from streamsplit.wire.events import Closed, HelloReceived, ReplayDropped, WindowReceived
from streamsplit.wire.frame import Frame, check_frame
from streamsplit.wire.limits import SessionSettings
from streamsplit.wire.messages import Ack, Error, Hello, Message, Result, Throttle, Welcome, encode_message
from streamsplit.wire.replay import ReplayWindow
from streamsplit.wire.states import SERVER_TABLE, Input, ServerState
from streamsplit.wire.types import (
    DOWNLINK_TYPES,
    OPTIONAL_TYPES,
    PROTOCOL_VERSION,
    UPLINK_TYPES,
    WINDOW_TYPES,
    FrameFlag,
    FrameType,
    Priority,
)


class _AnyHello(msgspec.Struct):
    """What HELLO of every version says first."""

    protocol: int


_any_hello = msgspec.msgpack.Decoder(_AnyHello)


class ServerSession(Endpoint[ServerState]):
    """One per device session. A new transport gets a fresh one, which answers HELLO with `HelloReceived`; the owner
    then calls `accept` or `reject` on it, or `resume(fresh, ...)` on the session that the device comes back to."""

    _sends = DOWNLINK_TYPES
    _receives = UPLINK_TYPES
    _table = SERVER_TABLE
    _detached_states = (ServerState.DETACHED, ServerState.CLOSED)
    _greeting_state = ServerState.AWAIT_HELLO
    _open_state = ServerState.OPEN

    def __init__(
        self,
        now_ms: float,
        settings: SessionSettings = SessionSettings(),
        refuses: frozenset[FrameType] = OPTIONAL_TYPES,
    ) -> None:
        super().__init__(settings, ServerState.AWAIT_HELLO, now_ms, refuses)
        self.hello: Hello | None = None  # of the present connection
        self.session_id = ""
        self.replay = ReplayWindow(settings.replay_frames, settings.replay_bytes)
        self._resume_token = b""
        self._expires_ms = math.inf
        self._received = 0  # uplink: highest sequence given to the owner
        self._granted = settings.max_in_flight  # largest number of windows in flight ever allowed
        self._credit = 0
        self._wanted = range(0)  # uplink sequences whose RESULTs the store must send again

    @property
    def state(self) -> ServerState:
        """Where the session stands."""
        return self._state

    @property
    def received_through(self) -> int:
        """Highest uplink sequence given to the owner."""
        return self._received

    @property
    def acked_through(self) -> int:
        """Highest uplink sequence that the owner called durable."""
        return self._acks.through

    @property
    def in_flight(self) -> int:
        """Windows given to the owner and not yet durable."""
        return self._received - self._acks.through

    # -- the owner's answer to HELLO -----------------------------------------------------------------------------

    def accept(
        self,
        now_ms: float,
        *,
        session_id: str,
        resume_token: bytes,
        received_through: int = 0,
        revision: str = "",
    ) -> Welcome | None:
        """Opens a new session. `received_through` is the highest sequence the store holds for (device, epoch), 0 for
        none. None: the store is ahead of the device ('bad_epoch'), and the device was told so."""
        self._at(now_ms)
        hello = self._asked()
        if received_through >= hello.next_sequence:
            self.reject(
                "bad_epoch",
                f"the server holds windows through {received_through} of epoch {hello.epoch}, the device would assign "
                f"{hello.next_sequence} next: start a new epoch",
            )
            return None
        self._happened(Input.ACCEPT)
        self.session_id = session_id
        self._received = max(received_through, hello.oldest_sequence - 1)  # what the device dropped will never come
        return self._open(hello, resume_token, revision, resumed=False)

    def reject(self, code: str, detail: str) -> None:
        """Turns the device away; it gets a fatal ERROR."""
        self._happened(Input.REJECT)
        self._detach()
        self._events.append(Closed(detail, True, code))
        self._put_message(Error(code=code, detail=detail[:500], fatal=True))

    def can_resume(self, hello: Hello, now_ms: float) -> bool:
        """Whether `hello` comes back to this session: same device, epoch and token (compared in constant time), not
        expired, and no position that this session never reached."""
        mine = self.hello
        return (
            mine is not None
            and self._state in (ServerState.OPEN, ServerState.DETACHED)
            and now_ms < self._expires_ms
            and hmac.compare_digest(hello.resume_token, self._resume_token)
            and bool(hello.resume_token)
            and (hello.device_id, hello.epoch) == (mine.device_id, mine.epoch)
            and self._acks.through < hello.next_sequence
            and hello.received_through <= self.replay.last
        )

    def resume(
        self, fresh: ServerSession, now_ms: float, *, resume_token: bytes | None = None, revision: str = ""
    ) -> Welcome:
        """Takes over the transport on which `fresh` got a HELLO that `can_resume`; from here on the owner gives the
        transport's frames to this session and forgets `fresh`. Unacknowledged results follow the WELCOME."""
        hello = fresh._asked()
        if not self.can_resume(hello, now_ms):
            raise ProtocolError("unexpected", f"this HELLO does not resume session {self.session_id!r}")
        self._at(now_ms)
        self._happened(Input.RESUME)
        self._detach()
        self._connect(now_ms)
        fresh._happened(Input.HAND_OVER)
        self._parser = fresh._parser
        self._connection_bytes = fresh._connection_bytes
        self.received_bytes += fresh.received_bytes
        self._received = max(self._received, hello.oldest_sequence - 1)
        self._granted = max(self._granted, self.settings.max_in_flight)
        self._acks.acknowledge(hello.oldest_sequence - 1, now_ms)
        self.replay.rewind(hello.received_through)
        return self._open(hello, self._resume_token if resume_token is None else resume_token, revision, resumed=True)

    # -- windows up, results down --------------------------------------------------------------------------------

    def acknowledge(self, through: int, now_ms: float, credit: int = 0) -> None:
        """Windows up to `through` are durable; the device may delete them. `credit`, if not 0, is how many may be in
        flight from now on. Holds in every state; while no connection stands the next WELCOME tells it."""
        self._at(now_ms)
        self._received = max(self._received, through)
        if credit:
            self._credit = credit
            self._granted = max(self._granted, credit)
        if self.is_open:
            self._acks.acknowledge(through, now_ms)
            self._acknowledge_if_due()
        elif through > self._acks.through:
            self._acks.restart(through)

    def send(self, message: Message) -> bool:
        """As for every end; a RESULT is numbered and kept until the device has acknowledged it, also while detached."""
        if isinstance(message, Result):
            return self._send_result(message)
        if isinstance(message, Throttle):
            self._granted = max(self._granted, message.max_in_flight)
        return super().send(message)

    def results_wanted(self) -> range:
        """Uplink sequences whose RESULTs the device lacks and this session does not hold: those that HELLO asked for
        and those that fell out of the replay window. Each is named once, as room comes up: ask after accept, resume,
        `Acked` and `ReplayDropped`, and send what the store has for them. A device may get one twice."""
        room = (self.replay.max_frames + 1) // 2 - len(self.replay)  # the other half is for new results
        if not self.is_open or room <= 0:
            return range(0)
        now, self._wanted = self._wanted[:room], self._wanted[room:]
        return now

    def want_results(self, first: int, last: int) -> None:
        """Adds uplink sequences to those that `results_wanted` will name; an empty span changes nothing."""
        if first > last:
            return
        if self._wanted:
            first, last = min(first, self._wanted[0]), max(last, self._wanted[-1])
        self._wanted = range(first, last + 1)

    def tick(self, now_ms: float) -> None:
        """Also forgets a detached session whose time is over."""
        super().tick(now_ms)
        if self._state is ServerState.DETACHED and now_ms >= self._expires_ms:
            self._end(Input.EXPIRE, Closed("the device did not come back in time", False, "resume_expired"))

    # -- inside --------------------------------------------------------------------------------------------------

    def _asked(self) -> Hello:
        if self.hello is None or self._state is not ServerState.DECIDING:
            raise ProtocolError("unexpected", f"no HELLO to answer in state {self._state.name}")
        return self.hello

    def _open(self, hello: Hello, resume_token: bytes, revision: str, *, resumed: bool) -> Welcome:
        through = self._acks.through if resumed else self._received
        self._acks.restart(through)
        self.hello = hello
        self.connection += 1
        if hello.results_from:  # a replayed result needs no second copy from the store
            self.want_results(hello.results_from, (self.replay.oldest_answer or through + 1) - 1)
        self._resume_token = resume_token
        self._expires_ms = math.inf
        self._parser.max_frame_bytes = self.settings.max_frame_bytes
        welcome = Welcome(
            protocol=PROTOCOL_VERSION,
            session_id=self.session_id,
            resume_token=resume_token,
            resume_expires_ms=self.settings.resume_expires_ms,
            resumed=resumed,
            received_through=through,
            max_in_flight=self.settings.max_in_flight,
            max_frame_bytes=self.settings.max_frame_bytes,
            revision=revision,
            server_ms=max(0, int(self._now_ms)),
        )
        self._put_message(welcome)
        return welcome

    def _send_result(self, result: Result) -> bool:
        if self._state not in (ServerState.OPEN, ServerState.DETACHED):
            return False
        payload = encode_message(result)
        stamp = self._stamp(self._now_ms)
        check_frame(Frame(FrameType.RESULT, FrameFlag.NUMBERED, 1, stamp, payload), self.settings.max_frame_bytes)
        dropped = self.replay.append(FrameType.RESULT, stamp, payload, result.sequence)
        if dropped is not None:
            self.want_results(dropped.first_answer, dropped.last_answer)
            last = self._events[-1] if self._events else None
            if isinstance(last, ReplayDropped):  # one report for a run of them
                self._events[-1] = ReplayDropped(last.first, dropped.last)
            else:
                self._events.append(ReplayDropped(dropped.first, dropped.last))
        return True

    def _detach(self) -> None:
        super()._detach()
        if self._state is ServerState.DETACHED and math.isinf(self._expires_ms):
            self._expires_ms = self._now_ms + self.settings.resume_expires_ms

    def _deadline_ms(self) -> float:
        return self._expires_ms if self._state is ServerState.DETACHED else super()._deadline_ms()

    def _ping_due_ms(self) -> float:
        return math.inf if self._ping else self._heard_ms + self.settings.ping_interval_ms

    def waits(self) -> bool:
        """As for every end; unsent RESULTs wait in the replay window."""
        return super().waits() or (self.is_open and self.replay.peek_bytes() > 0)

    def _next_bytes(self, priority: Priority) -> int:
        if priority is Priority.RESULT and self.is_open and (need := self.replay.peek_bytes()):
            return need
        return super()._next_bytes(priority)

    def _take(self, priority: Priority) -> Frame:
        if priority is Priority.RESULT and self.is_open and (frame := self.replay.take()) is not None:
            return frame
        return super()._take(priority)

    def _take_credit(self) -> int:
        credit, self._credit = self._credit, 0
        return credit

    def _on_frame(self, frame: Frame) -> None:
        if frame.type is FrameType.HELLO:
            self._happened(Input.HELLO)
            self._on_hello(frame)
            return
        self._happened(Input.DATA)
        if frame.type in WINDOW_TYPES:
            self._on_window(frame)
        elif frame.type is FrameType.ACK:
            self._on_ack(read_message(Ack, frame))
        else:
            self._deliver(frame)

    def _on_hello(self, frame: Frame) -> None:
        try:  # first of all the version: the fields of another one may differ
            protocol = _any_hello.decode(frame.payload).protocol
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise ProtocolError("bad_message", f"HELLO: {error}") from None
        if protocol != PROTOCOL_VERSION:
            raise ProtocolError("bad_version", f"got protocol version {protocol}, expected {PROTOCOL_VERSION}")
        hello = read_message(Hello, frame)
        if not 1 <= hello.oldest_sequence <= hello.next_sequence:
            raise ProtocolError(
                "bad_message",
                f"got sequences {hello.oldest_sequence}..{hello.next_sequence}, expected 1 <= oldest <= next",
            )
        self.hello = hello
        self._events.append(HelloReceived(hello))

    def _on_window(self, frame: Frame) -> None:
        sequence = frame.sequence
        if sequence <= self._received:
            self.duplicates += 1
            if sequence <= self._acks.through:
                self._acks.repeat(self._now_ms)
            else:  # still on its way into the store; its ack belongs to this connection
                self._acks.arrived(frame, self._now_ms, self._connection_bytes)
            return
        if sequence != self._received + 1:
            raise ProtocolError("sequence_gap", f"got window {sequence}, expected {self._received + 1}")
        if sequence - self._acks.through > self._granted:
            raise ProtocolError(
                "flow_control", f"got window {sequence} with {self._acks.through} durable, granted {self._granted}"
            )
        self._received = sequence
        self._acks.arrived(frame, self._now_ms, self._connection_bytes)
        self._events.append(WindowReceived(frame, self._now_ms))

    def _peer_acked(self, ack: Ack) -> float | None:
        if ack.through > self.replay.ever_sent:
            raise ProtocolError("bad_ack", f"got ack through {ack.through}, expected at most {self.replay.ever_sent}")
        if ack.through <= self.replay.acked_through:
            return None
        self.replay.acknowledge(ack.through)
        return math.nan
