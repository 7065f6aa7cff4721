"""Control messages: one msgspec struct per type, msgpack on the wire, unknown fields refused."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import msgspec

from streamsplit.errors import ProtocolError
from streamsplit.wire.types import FrameType


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the control messages; `frame_type` says which frame carries it."""

    frame_type: ClassVar[FrameType]


class Hello(Message):
    """First message of a device (C -> S)."""

    frame_type: ClassVar[FrameType] = FrameType.HELLO
    protocol: int
    device_id: str
    token: str
    epoch: int  # random u63 made with the device's queue; sequence numbers count within it
    oldest_sequence: int  # lowest uplink sequence the device still holds
    next_sequence: int  # next uplink sequence it will assign
    received_through: int = 0  # highest downlink sequence it has processed
    resume_token: bytes = b""
    results_from: int = 0  # lowest uplink sequence whose RESULT is still missing; 0 = none missing
    encoder: str = ""  # "" for a device without an encoder
    revision: str = ""  # hex SHA-256 of the weights it holds; "" for none
    sample_rate_hz: int = 16000
    mel_bands: int = 128
    window_frames: int = 100
    stride_frames: int = 50
    device_class: str = ""
    software: str = ""
    want_embedding: bool = False  # RESULT carries the embedding (fp16) for cuts where the device has none


class Welcome(Message):
    """The server's answer to HELLO (S -> C)."""

    frame_type: ClassVar[FrameType] = FrameType.WELCOME
    protocol: int
    session_id: str
    resume_token: bytes
    resume_expires_ms: int  # how long after a lost connection the token is good
    resumed: bool  # True: downlink frames after received_through follow
    received_through: int  # highest uplink sequence that the server holds durably
    max_in_flight: int  # uplink frames that may be unacknowledged
    max_frame_bytes: int
    revision: str = ""  # the server's current encoder revision
    server_ms: int = 0


class Ack(Message):
    """Cumulative acknowledgement (both ways)."""

    frame_type: ClassVar[FrameType] = FrameType.ACK
    through: int  # every numbered frame up to here is durable
    echo_ms: int = 0  # timestamp field of the frame that caused this ack
    held_ms: float = 0.0  # time between receiving that frame and sending this ack
    received_bytes: int = 0  # total bytes received in this connection, headers included
    arrived_ms: int = 0  # receiver's clock when that frame arrived; differences give the link rate
    credit: int = 0  # frames that may be in flight from now on; 0 = unchanged


class Ping(Message):
    """Keep-alive and clock probe (both ways); answered by the same message with `reply` set."""

    frame_type: ClassVar[FrameType] = FrameType.PING
    nonce: int
    sent_ms: int
    reply: bool = False


class Error(Message):
    """What went wrong (both ways); `fatal` ends the session."""

    frame_type: ClassVar[FrameType] = FrameType.ERROR
    code: str
    detail: str
    fatal: bool = False
    sequence: int = 0  # the numbered frame it is about; 0 = none


class Bye(Message):
    """Orderly end (both ways)."""

    frame_type: ClassVar[FrameType] = FrameType.BYE
    reason: str = ""


class Stats(Message):
    """A device's state, about once a second, not numbered (C -> S); shares are in [0, 1]."""

    frame_type: ClassVar[FrameType] = FrameType.STATS
    cpu: float = 0.0
    memory: float = 0.0
    battery: float = 1.0
    thermal: float = 0.0
    bandwidth_bps: float = 0.0
    rtt_ms: float = 0.0
    queue_windows: int = 0
    queue_bytes: int = 0
    windows_seen: int = 0
    windows_sent: int = 0
    windows_skipped: int = 0
    windows_dropped: int = 0  # lost to the bound of the offline queue
    uplink_bytes: int = 0  # on the socket, headers included
    downlink_bytes: int = 0
    latency_ms: float = 0.0  # capture to result, moving average
    cut: str = ""
    resolution: int = 0
    uncertainty: float = math.nan
    loss: float = math.nan
    effective_rank: float = math.nan
    learner_steps: int = 0
    energy_mj: float = 0.0
    revision: str = ""


class Result(Message):
    """The server's answer for one window, numbered (S -> C)."""

    frame_type: ClassVar[FrameType] = FrameType.RESULT
    sequence: int  # the uplink frame it answers
    window: int
    capture_ms: int  # timestamp field of that frame, echoed
    uncertainty: float
    cluster: int = -1  # nearest component of the server's mixture
    label: str = ""  # nearest labelled prototype, where the server has any
    confidence: float = 0.0
    server_ms: float = 0.0  # compute
    queue_ms: float = 0.0  # wait before compute
    embedding: bytes = b""  # fp16, only where asked for


class Gmm(Message):
    """Mixture statistics for a device's memory, latest wins (S -> C)."""

    frame_type: ClassVar[FrameType] = FrameType.GMM
    version: int
    revision: str
    components: int
    dim: int
    data: bytes  # fp16: weights [C], means [C, d], variances [C, d]


class Policy(Message):
    """What the server asks of a device's splitting policy; empty fields change nothing (S -> C)."""

    frame_type: ClassVar[FrameType] = FrameType.POLICY
    policy: str = ""
    cut: str = ""
    uncertainty_threshold: float = math.nan


class Revision(Message):
    """Announces encoder weights: the server's newest (S -> C), or a device's local learning (C -> S, kind 'local')."""

    frame_type: ClassVar[FrameType] = FrameType.REVISION
    revision: str  # hex SHA-256 of the full weights that result
    base: str  # revision that a delta applies to; "" for full weights
    kind: str  # 'full', 'delta' or 'local'
    total_bytes: int
    breaks_space: bool = False  # embeddings before and after do not compare: memories start anew
    samples: int = 0  # windows learned from ('local')


class WeightsRequest(Message):
    """Asks for an announced transfer from an offset on (either way)."""

    frame_type: ClassVar[FrameType] = FrameType.WEIGHTS_REQ
    revision: str
    base: str = ""
    offset: int = 0


class Throttle(Message):
    """Load control (S -> C): frames in flight and least spacing between windows."""

    frame_type: ClassVar[FrameType] = FrameType.THROTTLE
    max_in_flight: int
    min_interval_ms: int = 0
    reason: str = ""


MESSAGES: dict[FrameType, type[Message]] = {
    kind.frame_type: kind
    for kind in (
        Hello, Welcome, Ack, Ping, Error, Bye, Stats, Result, Gmm, Policy, Revision, WeightsRequest, Throttle,
    )
}

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[FrameType, Any] = {kind: msgspec.msgpack.Decoder(cls) for kind, cls in MESSAGES.items()}


def encode_message(message: Message) -> bytes:
    """The msgpack payload of a control message."""
    return _encoder.encode(message)


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
