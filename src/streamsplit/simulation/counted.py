"""Sessions that hand over frames instead of their bytes, with short ways for what nearly every frame is.

They are the live sessions: the same state, the same deadlines, the same sizes to the byte. Only writing a frame down
and reading it again is left out, and windows, results and acknowledgements that come as expected take a shorter way to
the same state. Everything else (greeting, resuming, probes, errors) goes the live way. A test holds a fleet over these
sessions against the same fleet over encoded frames.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from streamsplit.wire.client import ClientSession
from streamsplit.wire.events import Acked, MessageReceived, WindowReceived
from streamsplit.wire.frame import HEADER_BYTES, Frame, numbered_sequence
from streamsplit.wire.messages import Ack, Message, Result
from streamsplit.wire.server import ServerSession
from streamsplit.wire.states import ClientState, ServerState
from streamsplit.wire.types import WINDOW_TYPES, FrameFlag, FrameType, Priority

_ack_encoder = msgspec.msgpack.Encoder()
_NUMBERED = FrameFlag.NUMBERED
_SHORT = frozenset({FrameType.ACK, FrameType.STATS})


class _Noted(bytes):
    """A message's payload that remembers the message, so that nobody has to decode it."""

    message: Message


def _noted(message: Message) -> _Noted:
    payload = _Noted(_ack_encoder.encode(message))
    payload.message = message
    return payload


class CountedClient(ClientSession):
    """A `ClientSession` whose `bytes_to_send` gives frames and whose `receive` takes them."""

    def receive(self, data: Any, now_ms: float) -> None:
        """One frame."""
        frame: Frame = data
        kind = frame.type
        if (
            self._state is not ClientState.OPEN
            or (kind is not FrameType.RESULT and kind is not FrameType.ACK)
            or not isinstance(frame.payload, _Noted)
        ):
            self._take_in(lambda: [frame], now_ms)
            return
        size = HEADER_BYTES + len(frame.payload)
        self._now_ms = self._heard_ms = now_ms
        self.received_bytes += size
        self._connection_bytes += size
        message = frame.payload.message
        if kind is FrameType.ACK and isinstance(message, Ack):
            rtt_ms = self._peer_acked(message)
            if rtt_ms is not None:
                self._events.append(
                    Acked(
                        message.through, message.echo_ms, message.held_ms, message.received_bytes, message.arrived_ms,
                        now_ms, rtt_ms,
                    )
                )  # fmt: skip
        elif frame.sequence == self._downlink_through + 1:
            self._downlink_through = frame.sequence
            self._acks.arrived(frame, now_ms, self._connection_bytes)
            self._acks.acknowledge(frame.sequence, now_ms)
            self._events.append(MessageReceived(message))
            if now_ms >= self._acks.deadline_ms:
                self._acknowledge_if_due()
        else:
            self._on_result(frame)

    def send_window(self, frame_type: FrameType, sequence: int, timestamp_ms: float, payload: bytes) -> bool:
        """As the session; the next window within the credit takes the short way."""
        if sequence != self._next or self._state is not ClientState.OPEN or sequence <= self._ever_fed:
            return super().send_window(frame_type, sequence, timestamp_ms, payload)
        if self._next - 1 - self._acked >= self._max_in_flight:
            return False
        if not self._outbox.put(Frame(frame_type, _NUMBERED, sequence, int(timestamp_ms) & 0xFFFF_FFFF, payload)):
            return False
        self._next = sequence + 1
        self._ever_fed = sequence
        self._fed_ms = self._now_ms
        return True

    def bytes_to_send(self, limit_bytes: int | None = None, now_ms: float | None = None) -> list[Any]:
        """Frames, not bytes, in the session's order."""
        outbox = self._outbox
        if now_ms is not None and now_ms > self._now_ms:
            self._now_ms = now_ms
        waiting = len(outbox)
        if not waiting:
            return []
        if waiting == 1:
            frame = outbox.take(Priority.MEDIA) or outbox.take(Priority.CONTROL)
            if frame is not None:
                self.sent_bytes += HEADER_BYTES + len(frame.payload)
                if frame.sequence:
                    self._on_the_way.append((frame.sequence, self._now_ms))
                return [frame]
        return super().bytes_to_send(limit_bytes, None)

    def _encoded(self, frame: Frame) -> Any:
        return frame

    def next_deadline_ms(self) -> float | None:
        """As the session."""
        if self._state is not ClientState.OPEN:
            return super().next_deadline_ms()
        settings = self.settings
        silent = self._heard_ms + settings.silence_timeout_ms
        probe = silent if self._ping else self._pinged_ms + settings.ping_interval_ms
        return min(silent, probe, self._acks.deadline_ms)

    def _put_message(self, message: Message) -> bool:
        if message.frame_type not in _SHORT:
            return super()._put_message(message)
        return self._put(Frame(message.frame_type, FrameFlag.NONE, 0, self._stamp(self._now_ms), _noted(message)))


class CountedServer(ServerSession):
    """A `ServerSession` whose `bytes_to_send` gives frames and whose `receive` takes them."""

    def receive(self, data: Any, now_ms: float) -> None:
        """One frame."""
        frame: Frame = data
        sequence = frame.sequence
        if frame.type is FrameType.STATS and self._state is ServerState.OPEN and isinstance(frame.payload, _Noted):
            self._now_ms = self._heard_ms = now_ms
            self.received_bytes += HEADER_BYTES + len(frame.payload)
            self._connection_bytes += HEADER_BYTES + len(frame.payload)
            self._events.append(MessageReceived(frame.payload.message))
            return
        if (
            self._state is not ServerState.OPEN
            or sequence != self._received + 1
            or frame.type not in WINDOW_TYPES
            or sequence - self._acks.through > self._granted
        ):
            self._take_in(lambda: [frame], now_ms)
            return
        size = HEADER_BYTES + len(frame.payload)
        self._now_ms = self._heard_ms = now_ms
        self.received_bytes += size
        self._connection_bytes += size
        self._received = sequence
        self._acks.arrived(frame, now_ms, self._connection_bytes)
        self._events.append(WindowReceived(frame, now_ms))

    def bytes_to_send(self, limit_bytes: int | None = None, now_ms: float | None = None) -> list[Any]:
        """Frames, not bytes, in the session's order."""
        if now_ms is not None and now_ms > self._now_ms:
            self._now_ms = now_ms
        replay = self.replay
        unsent = replay.last - replay.sent_through if self._state is ServerState.OPEN else 0
        waiting = len(self._outbox)
        if not (unsent or waiting):
            return []
        frame = None
        if not waiting and unsent == 1:
            frame = replay.take()
        elif waiting == 1 and not unsent:
            frame = self._outbox.take(Priority.CONTROL)
        if frame is not None:
            self.sent_bytes += HEADER_BYTES + len(frame.payload)
            return [frame]
        return super().bytes_to_send(limit_bytes, None)

    def next_deadline_ms(self) -> float | None:
        """As the session."""
        if self._state is not ServerState.OPEN:
            return super().next_deadline_ms()
        settings = self.settings
        probe_ms = settings.silence_timeout_ms if self._ping else settings.ping_interval_ms
        return min(self._heard_ms + probe_ms, self._acks.deadline_ms)

    def _send_result(self, result: Result) -> bool:
        if self._state is not ServerState.OPEN or len(self.replay) >= self.replay.max_frames:
            return super()._send_result(result)
        self.replay.append(FrameType.RESULT, self._stamp(self._now_ms), _noted(result), result.sequence)
        return True

    def _put_message(self, message: Message) -> bool:
        if message.frame_type not in _SHORT:
            return super()._put_message(message)
        return self._put(Frame(message.frame_type, FrameFlag.NONE, 0, self._stamp(self._now_ms), _noted(message)))

    def _encoded(self, frame: Frame) -> Any:
        return frame


class Wire(NamedTuple):
    """How the two ends of a simulated connection speak: which sessions, and what is known of what they hand over."""

    client: type[ClientSession]
    server: type[ServerSession]
    size: Any  # bytes of one WebSocket message
    sequence: Any  # of a numbered frame, else 0


WIRES = {
    "frames": Wire(ClientSession, ServerSession, len, numbered_sequence),
    "counted": Wire(CountedClient, CountedServer, lambda frame: HEADER_BYTES + len(frame[4]), attrgetter("sequence")),
}
