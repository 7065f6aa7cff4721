"""The device's end of a session."""

from __future__ import annotations

import math
from collections import deque

import msgspec

from streamsplit.errors import ProtocolError
from streamsplit.wire.endpoint import Endpoint, read_message
from streamsplit.wire.events import MessageReceived, Missed, Opened
from streamsplit.wire.frame import Frame, check_frame
from streamsplit.wire.limits import CLIENT_SETTINGS, SessionSettings
from streamsplit.wire.messages import Ack, Hello, Throttle, Welcome, decode_message
from streamsplit.wire.states import CLIENT_TABLE, ClientState, Input
from streamsplit.wire.types import (
    DOWNLINK_TYPES,
    MAX_FRAME_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_SEQUENCE,
    OPTIONAL_TYPES,
    PROTOCOL_VERSION,
    UPLINK_TYPES,
    WINDOW_TYPES,
    FrameFlag,
    FrameType,
)


class ClientSession(Endpoint[ClientState]):
    """One object for the life of a device: it greets on every new transport and resumes where it can.

    The durable queue of windows is the owner's. After `Opened` the owner deletes what the server holds and feeds from
    `feed_from` on, as far as `credit` goes; `Acked` says what to delete and makes room for more.
    """

    _sends = UPLINK_TYPES
    _receives = DOWNLINK_TYPES
    _table = CLIENT_TABLE
    _detached_states = (ClientState.LOST, ClientState.CLOSED)
    _greeting_state = ClientState.GREETING
    _open_state = ClientState.OPEN

    def __init__(
        self,
        settings: SessionSettings = CLIENT_SETTINGS,
        now_ms: float = 0.0,
        refuses: frozenset[FrameType] = OPTIONAL_TYPES,
    ) -> None:
        super().__init__(settings, ClientState.IDLE, now_ms, refuses)
        self.welcome: Welcome | None = None  # of the present or last connection
        self.min_interval_ms = 0  # least spacing between windows, as the server asked by THROTTLE
        self._hello: Hello | None = None
        self._resume_token = b""
        self._resume_until_ms = -math.inf
        self._downlink_through = 0
        self._acked = 0
        self._next = 1
        self._ever_fed = 0  # highest sequence fed in this epoch, over all connections
        self._max_in_flight = 0
        self._fed_ms = -math.inf
        self._on_the_way: deque[tuple[int, float]] = deque()  # sequence, handed to the transport at

    @property
    def state(self) -> ClientState:
        """Where the session stands."""
        return self._state

    @property
    def next_sequence(self) -> int:
        """The sequence that `send_window` takes next."""
        return self._next

    @property
    def acked_through(self) -> int:
        """The server holds every window up to here."""
        return self._acked

    @property
    def in_flight(self) -> int:
        """Windows fed and not yet acknowledged."""
        return self._next - 1 - self._acked

    @property
    def received_through(self) -> int:
        """Highest downlink sequence received in this session."""
        return self._downlink_through

    def hello(self, hello: Hello, now_ms: float) -> None:
        """Greets on a new transport, first or again; fills in protocol, resume token and downlink position."""
        if not 1 <= hello.oldest_sequence <= hello.next_sequence:
            raise ProtocolError(
                "bad_message",
                f"got sequences {hello.oldest_sequence}..{hello.next_sequence}, expected 1 <= oldest <= next",
            )
        self._at(now_ms)
        before = self._hello
        same = before is not None and (before.device_id, before.epoch) == (hello.device_id, hello.epoch)
        if not same or now_ms > self._resume_until_ms:
            self._resume_token = b""
        if not same:
            self._ever_fed = 0
        greeting = msgspec.structs.replace(
            hello,
            protocol=PROTOCOL_VERSION,
            received_through=self._downlink_through if self._resume_token else 0,
            resume_token=self._resume_token,
        )
        self._happened(Input.CONNECT)
        self._hello = greeting
        self._max_out_bytes = self.settings.max_frame_bytes
        self._connect(now_ms)
        self._put_message(greeting)

    def credit(self, now_ms: float | None = None) -> int:
        """How many windows `send_window` takes now; with `now_ms` the spacing asked by THROTTLE counts too."""
        if not self.is_open:
            return 0
        room = max(0, self._max_in_flight - self.in_flight)
        if now_ms is not None and self.min_interval_ms:
            return min(room, 1) if now_ms >= self._fed_ms + self.min_interval_ms else 0
        return room

    def send_window(self, frame_type: FrameType, sequence: int, timestamp_ms: float, payload: bytes) -> bool:
        """Queues the window with the next sequence; `timestamp_ms` is its capture time (kept mod 2^32).

        False: not open, no credit, or the server turned out to have it (`sequence < next_sequence`). Raises
        ProtocolError on a gap ('sequence_gap': after dropping queued windows, reconnect), an over-long payload or a
        type that is no window.
        """
        if frame_type not in WINDOW_TYPES:
            raise ProtocolError("unexpected", f"{frame_type.name} does not carry a window")
        if not self.is_open or sequence < self._next:
            return False
        if sequence > self._next:
            raise ProtocolError("sequence_gap", f"got window {sequence}, expected {self._next}")
        if sequence > MAX_SEQUENCE:
            raise ProtocolError("bad_sequence", f"got window {sequence}, expected at most {MAX_SEQUENCE}: new epoch")
        flags = FrameFlag.NUMBERED | (FrameFlag.REPLAYED if sequence <= self._ever_fed else FrameFlag.NONE)
        frame = Frame(frame_type, flags, sequence, self._stamp(timestamp_ms), payload)
        check_frame(frame, self._max_out_bytes)
        if self.credit() < 1 or not self._put(frame):
            return False
        self._next = sequence + 1
        self._ever_fed = max(self._ever_fed, sequence)
        self._fed_ms = self._now_ms
        return True

    # -- inside --------------------------------------------------------------------------------------------------

    def _connect(self, now_ms: float) -> None:
        super()._connect(now_ms)
        self.connection += 1

    def _detach(self) -> None:
        super()._detach()
        self._on_the_way.clear()
        if self._state is ClientState.CLOSED:
            self._resume_token = b""
        elif self.welcome is not None:
            self._resume_until_ms = self._now_ms + self.welcome.resume_expires_ms

    def _ping_due_ms(self) -> float:
        return math.inf if self._ping else self._pinged_ms + self.settings.ping_interval_ms

    def _sent(self, frame: Frame) -> None:
        if frame.type in WINDOW_TYPES:
            self._on_the_way.append((frame.sequence, self._now_ms))

    def _on_frame(self, frame: Frame) -> None:
        if frame.type is FrameType.WELCOME:
            self._happened(Input.WELCOME)
            self._on_welcome(read_message(Welcome, frame))
            return
        self._happened(Input.DATA)
        if frame.type is FrameType.ACK:
            self._on_ack(read_message(Ack, frame))
        elif frame.type is FrameType.RESULT:
            self._on_result(frame)
        else:
            if frame.type is FrameType.THROTTLE:
                throttle = read_message(Throttle, frame)
                self._max_in_flight = throttle.max_in_flight
                self.min_interval_ms = throttle.min_interval_ms
            self._deliver(frame)

    def _on_welcome(self, welcome: Welcome) -> None:
        hello = self._hello
        if hello is None:
            raise ProtocolError("unexpected", "WELCOME without HELLO")
        if welcome.protocol != PROTOCOL_VERSION:
            raise ProtocolError("bad_version", f"got protocol version {welcome.protocol}, expected {PROTOCOL_VERSION}")
        if not hello.oldest_sequence - 1 <= welcome.received_through < hello.next_sequence:
            raise ProtocolError(
                "bad_welcome",
                f"got received_through {welcome.received_through}, "
                f"expected {hello.oldest_sequence - 1}..{hello.next_sequence - 1}",
            )
        if welcome.max_in_flight < 1 or not MAX_MESSAGE_BYTES <= welcome.max_frame_bytes <= MAX_FRAME_BYTES:
            raise ProtocolError(
                "bad_welcome", f"got max_in_flight {welcome.max_in_flight}, max_frame_bytes {welcome.max_frame_bytes}"
            )
        if welcome.resumed and (
            not hello.resume_token or self.welcome is None or welcome.session_id != self.welcome.session_id
        ):
            raise ProtocolError("bad_welcome", f"session {welcome.session_id!r} resumed, but it was not asked for")
        if not welcome.resumed:
            self._downlink_through = 0
        self.welcome = welcome
        self.min_interval_ms = 0
        self._resume_token = welcome.resume_token
        self._parser.max_frame_bytes = self.settings.max_frame_bytes
        self._max_out_bytes = min(self.settings.max_frame_bytes, welcome.max_frame_bytes)
        self._max_in_flight = welcome.max_in_flight
        self._acked = welcome.received_through
        self._next = self._acked + 1
        self._on_the_way.clear()
        self._acks.restart(self._downlink_through)
        self._events.append(Opened(welcome, self._next, self._now_ms - self._connected_ms))

    def _on_result(self, frame: Frame) -> None:
        if frame.sequence <= self._downlink_through:
            self.duplicates += 1
            self._acks.repeat(self._now_ms)
            return
        message = decode_message(frame.type, frame.payload)
        if frame.sequence > self._downlink_through + 1:
            self._events.append(Missed(self._downlink_through + 1, frame.sequence - 1))
        self._downlink_through = frame.sequence
        self._acks.arrived(frame, self._now_ms, self._connection_bytes)
        self._acks.acknowledge(frame.sequence, self._now_ms)
        self._events.append(MessageReceived(message))
        self._acknowledge_if_due()

    def _peer_acked(self, ack: Ack) -> float | None:
        known = max(self._next - 1, self._hello.next_sequence - 1 if self._hello else 0)
        if ack.through > known:
            raise ProtocolError("bad_ack", f"got ack through {ack.through}, expected at most {known}")
        if ack.credit:
            self._max_in_flight = ack.credit
        if ack.through <= self._acked:
            return None
        self._acked = ack.through
        if self._next <= ack.through:  # committed from what an earlier connection carried
            self._next = ack.through + 1
        self._outbox.drop_windows_through(ack.through)
        sent: tuple[int, float] = (0, math.nan)
        while self._on_the_way and self._on_the_way[0][0] <= ack.through:
            sent = self._on_the_way.popleft()
        return max(0.0, self._now_ms - sent[1] - ack.held_ms) if sent[0] == ack.through and ack.arrived_ms else math.nan
