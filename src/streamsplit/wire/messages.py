"""Control messages: one msgspec struct per type, msgpack on the wire; unknown fields and wild values are refused."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from streamsplit.errors import ProtocolError
from streamsplit.wire.types import FrameType

U8 = Annotated[int, Meta(ge=0, le=0xFF)]
U16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
U32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
U63 = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
I32 = Annotated[int, Meta(ge=-(1 << 31), le=(1 << 31) - 1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(ge=0, le=1e15)]  # excludes NaN and infinity
Text = Annotated[str, Meta(max_length=1000)]
Name = Annotated[str, Meta(max_length=128)]
DeviceId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]  # safe in paths, labels and pages
Code = Annotated[str, Meta(pattern=r"^[a-z0-9_]{1,64}\Z")]
Hash = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")]  # hex SHA-256, or "" for none
Token = Annotated[bytes, Meta(max_length=64)]


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the control messages; `frame_type` says which frame carries it."""

    frame_type: ClassVar[FrameType]


class Hello(Message, frozen=True, kw_only=True):
    """First message of a device (C -> S)."""

    frame_type: ClassVar[FrameType] = FrameType.HELLO
    protocol: U16
    device_id: DeviceId
    token: Annotated[str, Meta(max_length=512)]
    epoch: U63  # random u63 made with the device's queue; sequence numbers count within it
    oldest_sequence: U32  # lowest uplink sequence the device still holds
    next_sequence: U32  # next uplink sequence it will assign
    received_through: U32 = 0  # highest downlink sequence it has processed
    resume_token: Token = b""
    results_from: U32 = 0  # lowest uplink sequence whose RESULT is still missing; 0 = none missing
    encoder: Name = ""  # "" for a device without an encoder
    revision: Hash = ""  # hex SHA-256 of the weights it holds; "" for none
    sample_rate_hz: U32 = 16000
    mel_bands: U16 = 128
    window_frames: U16 = 100
    stride_frames: U16 = 50
    device_class: Name = ""
    software: Name = ""
    want_embedding: bool = False  # RESULT carries the embedding (fp16) for cuts where the device has none

    def __repr__(self) -> str:
        return f"Hello(device_id={self.device_id!r}, protocol={self.protocol}, epoch={self.epoch}, tokens hidden)"


class Welcome(Message, frozen=True, kw_only=True):
    """The server's answer to HELLO (S -> C)."""

    frame_type: ClassVar[FrameType] = FrameType.WELCOME
    protocol: U16
    session_id: Name
    resume_token: Token
    resume_expires_ms: U32  # how long after a lost connection the token is good
    resumed: bool  # True: downlink frames after received_through follow
    received_through: U32  # highest uplink sequence that the server holds durably
    max_in_flight: U16  # uplink frames that may be unacknowledged
    max_frame_bytes: U32
    revision: Hash = ""  # the server's current encoder revision
    server_ms: U63 = 0  # the server's clock

    def __repr__(self) -> str:
        return f"Welcome(session_id={self.session_id!r}, resumed={self.resumed}, through={self.received_through})"


class Ack(Message, frozen=True, kw_only=True):
    """Cumulative acknowledgement (both ways)."""

    frame_type: ClassVar[FrameType] = FrameType.ACK
    through: U32  # every numbered frame up to here is durable
    echo_ms: U32 = 0  # timestamp field of the frame that caused this ack
    held_ms: Positive = 0.0  # time between receiving that frame and sending this ack
    received_bytes: U63 = 0  # total bytes received in this connection, headers included
    arrived_ms: U63 = 0  # receiver's clock when that frame arrived; differences give the link rate
    credit: U16 = 0  # frames that may be in flight from now on; 0 = unchanged


class Ping(Message, frozen=True, kw_only=True):
    """Keep-alive and clock probe (both ways); answered by the same message with `reply` set."""

    frame_type: ClassVar[FrameType] = FrameType.PING
    nonce: U32
    sent_ms: U63
    reply: bool = False


class Error(Message, frozen=True, kw_only=True):
    """What went wrong (both ways); `fatal` ends the session."""

    frame_type: ClassVar[FrameType] = FrameType.ERROR
    code: Code
    detail: Text
    fatal: bool = False
    sequence: U32 = 0  # the numbered frame it is about; 0 = none


class Bye(Message, frozen=True, kw_only=True):
    """Orderly end (both ways)."""

    frame_type: ClassVar[FrameType] = FrameType.BYE
    reason: Text = ""


class Stats(Message, frozen=True, kw_only=True):
    """A device's state, about once a second, not numbered (C -> S); shares are in [0, 1], NaN where not known."""

    frame_type: ClassVar[FrameType] = FrameType.STATS
    cpu: float = 0.0
    memory: float = 0.0
    battery: float = 1.0  # 1.0 on mains
    thermal: float = 0.0
    bandwidth_bps: float = 0.0
    rtt_ms: float = 0.0
    queue_windows: U63 = 0
    queue_bytes: U63 = 0
    windows_seen: U63 = 0
    windows_sent: U63 = 0
    windows_skipped: U63 = 0
    windows_dropped: U63 = 0  # lost to the bound of the offline queue
    uplink_bytes: U63 = 0  # on the socket, headers included
    downlink_bytes: U63 = 0
    latency_ms: float = 0.0  # capture to result, moving average
    cut: Name = ""
    resolution: U8 = 0
    uncertainty: float = math.nan
    loss: float = math.nan
    effective_rank: float = math.nan
    learner_steps: U63 = 0
    energy_mj: float = 0.0
    revision: Hash = ""


class Result(Message, frozen=True, kw_only=True):
    """The server's answer for one window, numbered (S -> C)."""

    frame_type: ClassVar[FrameType] = FrameType.RESULT
    sequence: U32  # the uplink frame it answers
    window: U32
    capture_ms: U32  # timestamp field of that frame, echoed
    uncertainty: float
    cluster: I32 = -1  # nearest component of the server's mixture
    label: Name = ""  # nearest labelled prototype, where the server has any
    confidence: Share = 0.0
    server_ms: Positive = 0.0  # compute
    queue_ms: Positive = 0.0  # wait before compute
    embedding: bytes = b""  # fp16, only where asked for


class Gmm(Message, frozen=True, kw_only=True):
    """Mixture statistics for a device's memory, latest wins (S -> C)."""

    frame_type: ClassVar[FrameType] = FrameType.GMM
    version: U63
    revision: Hash
    components: U16
    dim: U16
    data: bytes  # fp16: weights [C], means [C, d], variances [C, d]


class Policy(Message, frozen=True, kw_only=True):
    """What the server asks of a device's splitting policy; empty fields change nothing (S -> C)."""

    frame_type: ClassVar[FrameType] = FrameType.POLICY
    policy: Name = ""
    cut: Name = ""
    uncertainty_threshold: float = math.nan


class Revision(Message, frozen=True, kw_only=True):
    """Announces encoder weights: the server's newest (S -> C), or a device's local learning (C -> S, kind 'local')."""

    frame_type: ClassVar[FrameType] = FrameType.REVISION
    revision: Hash  # hex SHA-256 of the full weights that result
    base: Hash  # revision that a delta applies to; "" for full weights
    kind: Name  # 'full', 'delta' or 'local'
    total_bytes: U32
    breaks_space: bool = False  # embeddings before and after do not compare: memories start anew
    samples: U63 = 0  # windows learned from ('local')


class WeightsRequest(Message, frozen=True, kw_only=True):
    """Asks for an announced transfer from an offset on (either way)."""

    frame_type: ClassVar[FrameType] = FrameType.WEIGHTS_REQ
    revision: Hash
    base: Hash = ""
    offset: U32 = 0


class Throttle(Message, frozen=True, kw_only=True):
    """Load control (S -> C): frames in flight and least spacing between windows."""

    frame_type: ClassVar[FrameType] = FrameType.THROTTLE
    max_in_flight: U16
    min_interval_ms: U32 = 0
    reason: Text = ""


MESSAGES: dict[FrameType, type[Message]] = {
    kind.frame_type: kind
    for kind in (
        Hello, Welcome, Ack, Ping, Error, Bye, Stats, Result, Gmm, Policy, Revision, WeightsRequest, Throttle,
    )
}

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[FrameType, Any] = {kind: msgspec.msgpack.Decoder(cls) for kind, cls in MESSAGES.items()}


def encode_message(message: Message) -> bytes:
    """The msgpack payload of a control message; raises ProtocolError('bad_message') on what a receiver would refuse."""
    payload = _encoder.encode(message)
    decode_message(message.frame_type, payload)
    return payload


def decode_message(frame_type: FrameType, payload: bytes | memoryview) -> Message:
    """Checks and decodes a control payload; raises ProtocolError('bad_message')."""
    decoder = _decoders.get(frame_type)
    if decoder is None:
        raise ProtocolError("bad_message", f"{frame_type.name} carries media, not a message")
    try:
        message: Message = decoder.decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError("bad_message", f"{frame_type.name}: {error}") from None
    return message
