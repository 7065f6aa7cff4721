"""What both ends of a session share: frames in and out, keep-alive, acknowledgements, orderly and disorderly ends."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from streamsplit.errors import ProtocolError
from streamsplit.wire.acks import AckPlanner
from streamsplit.wire.dialogue import may_be_lost
from streamsplit.wire.events import Acked, Closed, Event, MediaReceived, MessageReceived, RoundTrip
from streamsplit.wire.frame import HEADER_BYTES, Frame, FrameParser, check_frame, decode_frame, encode_frame
from streamsplit.wire.limits import SessionSettings
from streamsplit.wire.messages import Ack, Bye, Error, Message, Ping, decode_message, encode_message
from streamsplit.wire.outbox import Outbox
from streamsplit.wire.states import Input, S, next_state
from streamsplit.wire.types import (
    MAX_MESSAGE_BYTES,
    MEDIA_TYPES,
    NUMBERED_TYPES,
    OPTIONAL_TYPES,
    FrameFlag,
    FrameType,
    Priority,
)

_OWN_TYPES = frozenset({FrameType.HELLO, FrameType.WELCOME, FrameType.ACK, FrameType.PING, FrameType.BYE})
_LAST_WORDS = frozenset({FrameType.ACK, FrameType.ERROR, FrameType.BYE})
_MAX_DETAIL = 500
_PRIORITIES = tuple(Priority)
M = TypeVar("M", bound=Message)


class Endpoint(ABC, Generic[S]):
    """Base of ClientSession and ServerSession; see `session.py` for how to drive one.

    No method here does IO or reads a clock; `now_ms` is any clock that never runs backwards. `receive` never raises on
    what the peer sent: a broken protocol becomes a fatal ERROR to send and a `Closed` event.
    """

    _sends: frozenset[FrameType]
    _receives: frozenset[FrameType]
    _table: dict[tuple[S, Input], S]
    _detached_states: tuple[S, S]
    _greeting_state: S
    _open_state: S

    def __init__(self, settings: SessionSettings, state: S, now_ms: float, refuses: frozenset[FrameType]) -> None:
        if refuses - OPTIONAL_TYPES:
            raise ProtocolError("unexpected", f"only {sorted(t.name for t in OPTIONAL_TYPES)} may be refused")
        self.settings = settings
        self.connection = 0  # counts connections, so that a stale transport can be told from the present one
        self.received_bytes = 0  # over all connections, frame headers included
        self.sent_bytes = 0
        self.duplicates = 0  # numbered frames that came again and were dropped
        self.strays = 0  # datagrams that were none, came too early, or may not travel as such
        self._state = state
        self._refuses = refuses
        self._now_ms = now_ms
        self._ping: tuple[int, float] | None = None  # nonce, sent at
        self._nonce = 0
        self._events: deque[Event] = deque()
        self._outbox = Outbox()
        self._acks = AckPlanner(settings.ack_every_frames, settings.ack_delay_ms)
        self._max_out_bytes = settings.max_frame_bytes
        self._connect(now_ms)

    # -- where the session stands --------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether the handshake is done and the connection stands."""
        return self._state is self._open_state

    @property
    def probing_since_ms(self) -> float | None:
        """When the probe left that is still without an answer; None: none is under way."""
        return None if self._ping is None else self._ping[1]

    @property
    def _attached(self) -> bool:
        """Whether frames from the transport belong to a living connection."""
        return self._state not in self._detached_states  # a tuple: members are compared by identity, not hashed

    def _happened(self, happened: Input) -> None:
        if happened is Input.DATA and self._state is self._open_state:
            return  # nearly every frame: the table says that it stays open
        self._state = next_state(self._table, self._state, happened)

    @abstractmethod
    def _on_frame(self, frame: Frame) -> None:
        """Handles a frame that is neither PING, ERROR nor BYE."""

    @abstractmethod
    def _peer_acked(self, ack: Ack) -> float | None:
        """Applies an ack; returns the round trip (NaN if unknown), or None if it says nothing new."""

    @abstractmethod
    def _ping_due_ms(self) -> float:
        """When to probe the peer next."""

    # -- bytes and events ----------------------------------------------------------------------------------------

    def receive(self, data: bytes | bytearray | memoryview, now_ms: float) -> None:
        """Takes one WebSocket binary message, which is exactly one frame. Ignored once the connection is over."""
        self._take_in(lambda: [decode_frame(data, self._parser.max_frame_bytes)], now_ms)

    def receive_stream(self, data: bytes | bytearray | memoryview, now_ms: float) -> None:
        """Takes bytes of a transport without message borders (TCP, a pipe), in pieces of any size."""
        self._take_in(lambda: self._parser.each(data), now_ms)

    def receive_datagram(self, data: bytes | bytearray | memoryview, now_ms: float) -> None:
        """Takes one message of a way on which messages are lost, repeated and overtake each other. What has no place
        there is passed over and counted in `strays`: it cannot break the session, nor begin one."""
        if self.is_open and may_be_lost(data):
            with contextlib.suppress(ProtocolError):
                frame = decode_frame(data, self._parser.max_frame_bytes)
                self._take_in(lambda: [frame], now_ms)
                return
        self.strays += 1

    def events(self) -> list[Event]:
        """What happened since the last call. Ask after every `receive`, `tick` and `disconnected`."""
        happened = list(self._events)
        self._events.clear()
        return happened

    def bytes_to_send(self, limit_bytes: int | None = None, now_ms: float | None = None) -> list[bytes]:
        """Encoded frames in order of priority, each one WebSocket message; call again until the list is empty.

        At most `limit_bytes` (but at least one frame), and at most one bulk frame, which is the last of the list: hand
        these to the transport, wait until it has drained, ask again. What became urgent meanwhile comes first.
        """
        if now_ms is not None:
            self._at(now_ms)
        batch: list[bytes] = []
        size = 0
        if not self.waits():
            return batch
        for priority in _PRIORITIES:
            while (need := self._next_bytes(priority)) > 0:
                if batch and limit_bytes is not None and size + need > limit_bytes:
                    return self._handed_over(batch, size)
                frame = self._take(priority)
                batch.append(self._encoded(frame))
                size += need
                self._sent(frame)
                if priority is Priority.BULK:
                    break
        return self._handed_over(batch, size)

    def waits(self) -> bool:
        """Whether `bytes_to_send` has something to give."""
        return len(self._outbox) > 0

    def queued_bytes(self, priority: Priority) -> int:
        """Bytes that wait at one priority: feed a transfer while BULK is low instead of queueing all of it."""
        return self._outbox.queued_bytes(priority)

    # -- time ----------------------------------------------------------------------------------------------------

    def next_deadline_ms(self) -> float | None:
        """When `tick` has something to do even if nothing is received; None if never."""
        deadline = self._deadline_ms()
        return None if math.isinf(deadline) else deadline

    def tick(self, now_ms: float) -> None:
        """Does what is due: acknowledgements, probes, time-outs. Calling it early or late does no harm."""
        self._at(now_ms)
        if not self._attached:
            return
        if self._state is self._greeting_state and now_ms >= self._connected_ms + self.settings.hello_timeout_ms:
            self._silence(now_ms - self._connected_ms)
        elif self.is_open and now_ms >= self._heard_ms + self.settings.silence_timeout_ms:
            self._silence(now_ms - self._heard_ms)
        elif self.is_open:
            self._acknowledge_if_due()
            if now_ms >= self._ping_due_ms():
                self.ping(now_ms)

    # -- what the owner asks for ---------------------------------------------------------------------------------

    def send(self, message: Message) -> bool:
        """Queues a control message. False: not open or no room, nothing was queued. Raises ProtocolError on a message
        that this end may not send or that the peer would refuse."""
        if isinstance(message, Error) and message.fatal:
            self.fail(message.code, message.detail)
            return True
        kind = message.frame_type
        if kind in _OWN_TYPES or kind not in self._sends:
            raise ProtocolError("unexpected", f"{kind.name} is not for the owner of this end to send")
        return self.is_open and self._put_message(message)

    def send_media(
        self,
        frame_type: FrameType,
        payload: bytes,
        timestamp_ms: float | None = None,
        flags: FrameFlag = FrameFlag.NONE,
        sequence: int = 0,
    ) -> bool:
        """Queues an unnumbered media frame; `sequence` is the counter of a DIALOGUE frame.

        False: not open, or too much of this priority is waiting; nothing was queued.
        """
        if frame_type not in MEDIA_TYPES - NUMBERED_TYPES or frame_type not in self._sends:
            raise ProtocolError("unexpected", f"{frame_type.name} is not unnumbered media that this end sends")
        stamp = self._stamp(self._now_ms if timestamp_ms is None else timestamp_ms)
        frame = Frame(frame_type, flags, sequence, stamp, payload)
        check_frame(frame, self._max_out_bytes)  # the owner hears of a bad frame here, not on the way out
        return self.is_open and self._put(frame)

    def ping(self, now_ms: float) -> None:
        """Probes the round trip now, unless a probe is under way; the answer comes as `RoundTrip`."""
        self._at(now_ms)
        if self.is_open and self._ping is None:
            self._nonce = (self._nonce + 1) & 0xFFFF_FFFF
            self._ping = (self._nonce, now_ms)
            self._pinged_ms = now_ms
            self._put_message(Ping(nonce=self._nonce, sent_ms=max(0, int(now_ms))))

    def close(self, reason: str = "") -> None:
        """Ends the session in good order: a last ack, BYE, and no resuming. `bytes_to_send` still hands those out."""
        attached, ack_owed = self._attached, self.is_open and not math.isinf(self._acks.deadline_ms)
        self._happened(Input.CLOSE)
        if attached:
            self._detach()
            if ack_owed:
                self._put_message(self._acks.compose(self._now_ms))
            self._put_message(Bye(reason=reason[:_MAX_DETAIL]))
            self._events.append(Closed(reason or "closed by this end", False, "bye"))

    def fail(self, code: str, detail: str) -> None:
        """Ends the session because of an error of this end's own finding; the peer gets a fatal ERROR."""
        if self._attached:
            self._break(ProtocolError(code, detail))
        else:
            self._happened(Input.CLOSE)

    def disconnected(self, now_ms: float, connection: int | None = None) -> None:
        """The transport is gone. With `connection`, ignored unless it is the present one."""
        if connection is not None and connection != self.connection:
            return
        self._at(now_ms)
        self._happened(Input.DISCONNECT)
        self._detach()

    # -- inside --------------------------------------------------------------------------------------------------

    def _connect(self, now_ms: float) -> None:
        """Starts the bookkeeping of a new connection."""
        self._connected_ms = self._heard_ms = self._pinged_ms = now_ms
        self._connection_bytes = 0
        self._parser = FrameParser(MAX_MESSAGE_BYTES)  # a stranger gets no more room than a greeting needs
        self._ping = None

    def _detach(self) -> None:
        """The connection is over, the session may live on."""
        self._outbox.clear()
        self._ping = None

    def _at(self, now_ms: float) -> None:
        self._now_ms = max(self._now_ms, now_ms)

    @staticmethod
    def _stamp(now_ms: float) -> int:
        return int(now_ms) & 0xFFFF_FFFF

    def _deadline_ms(self) -> float:
        if not self._attached:
            return math.inf
        if self._state is self._greeting_state:
            return self._connected_ms + self.settings.hello_timeout_ms
        if not self.is_open:
            return math.inf
        return min(self._heard_ms + self.settings.silence_timeout_ms, self._acks.deadline_ms, self._ping_due_ms())

    def _take_in(self, frames: Callable[[], Iterable[Frame]], now_ms: float) -> None:
        self._at(now_ms)
        try:
            if not self._attached:
                return
            for frame in frames():
                if not self._attached:
                    return
                self.received_bytes += frame.wire_bytes
                self._connection_bytes += frame.wire_bytes
                self._heard_ms = self._now_ms
                self._dispatch(frame)
        except ProtocolError as error:
            self._break(error)

    def _dispatch(self, frame: Frame) -> None:
        kind = frame.type
        if kind not in self._receives:
            raise ProtocolError("unexpected", f"{kind.name} does not travel in this direction")
        if kind is FrameType.PING:
            self._happened(Input.PING)
            self._on_ping(read_message(Ping, frame))
        elif kind is FrameType.BYE:
            bye = read_message(Bye, frame)
            self._end(Input.BYE, Closed(bye.reason or "the peer said goodbye", False, "bye"))
        elif kind is FrameType.ERROR:
            error = read_message(Error, frame)
            if error.fatal:
                self._end(Input.FATAL_ERROR, Closed(error.detail, True, error.code))
            else:
                self._happened(Input.DATA)
                self._events.append(MessageReceived(error))
        elif kind in self._refuses:
            self._happened(Input.DATA)
            self._put_message(Error(code="unsupported", detail=f"{kind.name} is not implemented here; frame dropped"))
        else:
            self._on_frame(frame)

    def _on_ping(self, ping: Ping) -> None:
        if not ping.reply:
            self._put_message(Ping(nonce=ping.nonce, sent_ms=ping.sent_ms, reply=True))
        elif self._ping is not None and ping.nonce == self._ping[0]:
            self._events.append(RoundTrip(self._now_ms - self._ping[1], self._now_ms))
            self._ping = None

    def _on_ack(self, ack: Ack) -> None:
        rtt_ms = self._peer_acked(ack)
        if rtt_ms is not None:
            self._events.append(
                Acked(ack.through, ack.echo_ms, ack.held_ms, ack.received_bytes, ack.arrived_ms, self._now_ms, rtt_ms)
            )

    def _deliver(self, frame: Frame) -> None:
        """An unnumbered frame for the owner."""
        if frame.type in MEDIA_TYPES:
            self._events.append(MediaReceived(frame))
        else:
            self._events.append(MessageReceived(decode_message(frame.type, frame.payload)))

    def _put_message(self, message: Message) -> bool:
        frame = Frame(message.frame_type, FrameFlag.NONE, 0, self._stamp(self._now_ms), encode_message(message))
        check_frame(frame, self._max_out_bytes)
        return self._put(frame)

    def _put(self, frame: Frame) -> bool:
        try:
            return self._outbox.put(frame)
        except ProtocolError as error:
            self._break(error)
            return False

    def _next_bytes(self, priority: Priority) -> int:
        frame = self._outbox.peek(priority)
        return 0 if frame is None else HEADER_BYTES + len(frame.payload)

    def _take(self, priority: Priority) -> Frame:
        frame = self._outbox.take(priority)
        if frame is None:
            raise ProtocolError("internal", f"nothing waits at {priority.name}")
        return frame

    def _sent(self, frame: Frame) -> None:
        """A frame is on its way to the transport."""

    def _encoded(self, frame: Frame) -> bytes:
        """What the transport gets for a frame."""
        return encode_frame(frame)

    def _handed_over(self, batch: list[bytes], size: int) -> list[bytes]:
        self.sent_bytes += size
        return batch

    def _acknowledge_if_due(self) -> None:
        if self._now_ms >= self._acks.deadline_ms:
            self._put_message(self._acks.compose(self._now_ms, self._take_credit()))

    def _take_credit(self) -> int:
        """Credit that the next ack tells; 0 = unchanged."""
        return 0

    def _end(self, happened: Input, closed: Closed) -> None:
        self._happened(happened)
        self._detach()
        self._events.append(closed)

    def _break(self, error: ProtocolError) -> None:
        detail = error.detail[:_MAX_DETAIL]
        self._end(Input.BREAK, Closed(error.detail, True, error.code))
        self._put_message(Error(code=error.code, detail=detail, fatal=True))

    def _silence(self, waited_ms: float) -> None:
        self._end(Input.SILENCE, Closed(f"nothing heard for {waited_ms:.0f} ms", False, "timeout"))


def read_message(kind: type[M], frame: Frame) -> M:
    message = decode_message(frame.type, frame.payload)
    if not isinstance(message, kind):
        raise ProtocolError("bad_message", f"got {type(message).__name__}, expected {kind.__name__}")
    return message
