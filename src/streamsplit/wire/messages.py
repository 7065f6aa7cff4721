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
Mac = Annotated[bytes, Meta(min_length=32, max_length=32)]  # HMAC-SHA256


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of the control messages; `frame_type` says which frame carries it."""

    frame_type: ClassVar[FrameType]


class Hello(Message, frozen=True, kw_only=True):
    """First message of a device (C -> S)."""

    frame_type: ClassVar[FrameType] = FrameType.HELLO
    protocol: U16  # version of the protocol
    device_id: DeviceId  # the device's name, for good
    token: Annotated[str, Meta(max_length=512)]  # the device's secret
    epoch: U63  # random u63 made with the device's queue; sequence numbers count within it
    oldest_sequence: U32  # lowest uplink sequence the device still holds
    next_sequence: U32  # next uplink sequence it will assign
    received_through: U32 = 0  # highest downlink sequence it has processed
    resume_token: Token = b""  # from the last WELCOME; empty for a new session
    results_from: U32 = 0  # lowest uplink sequence whose RESULT is still missing; 0 = none missing
    encoder: Name = ""  # "" for a device without an encoder
    revision: Hash = ""  # hex SHA-256 of the weights it holds; "" for none
    sample_rate_hz: U32 = 16000  # of the audio behind the features
    mel_bands: U16 = 128  # at full resolution
    window_frames: U16 = 100  # length of a window in 10 ms frames
    stride_frames: U16 = 50  # from one window to the next
    device_class: Name = ""  # name of the kind of device, such as 'pi4'
    software: Name = ""  # name and version
    codec: Name = ""  # hex id of the neural codec whose codes it may send; "" for none
    want_embedding: bool = False  # RESULT carries the embedding (fp16) for cuts where the device has none
    want_prototypes: bool = False  # PROTOTYPES come along with GMM
    want_policy: bool = False  # takes a POLICY_FILE: it has the key to check one
    policy_version: U32 = 0  # of the POLICY_FILE it holds; 0 = none

    def __repr__(self) -> str:
        return f"Hello(device_id={self.device_id!r}, protocol={self.protocol}, epoch={self.epoch}, tokens hidden)"


class Welcome(Message, frozen=True, kw_only=True):
    """The server's answer to HELLO (S -> C)."""

    frame_type: ClassVar[FrameType] = FrameType.WELCOME
    protocol: U16  # version of the protocol
    session_id: Name  # name of the session, kept when it is resumed
    resume_token: Token  # secret for coming back after a lost connection
    resume_expires_ms: U32  # how long after a lost connection the token is good
    resumed: bool  # True: downlink frames after received_through follow
    received_through: U32  # highest uplink sequence that the server holds durably
    max_in_flight: U16  # uplink frames that may be unacknowledged
    max_frame_bytes: U32  # largest payload that the server takes
    revision: Hash = ""  # the server's current encoder revision
    server_ms: U63 = 0  # the server's clock

    def __repr__(self) -> str:
        return f"Welcome(session_id={self.session_id!r}, resumed={self.resumed}, through={self.received_through})"


class Ack(Message, frozen=True, kw_only=True):
    """Cumulative acknowledgement (both ways)."""

    frame_type: ClassVar[FrameType] = FrameType.ACK
    through: U32  # every numbered frame up to here is durable
    echo_ms: U32 = 0  # timestamp field of frame `through`; 0 if another connection carried it
    held_ms: Positive = 0.0  # time between receiving that frame and sending this ack
    received_bytes: U63 = 0  # in this connection when that frame had arrived, headers included
    arrived_ms: U63 = 0  # receiver's clock when that frame arrived; differences give the link rate
    credit: U16 = 0  # frames that may be in flight from now on; 0 = unchanged


class Ping(Message, frozen=True, kw_only=True):
    """Keep-alive and clock probe (both ways); answered by the same message with `reply` set."""

    frame_type: ClassVar[FrameType] = FrameType.PING
    nonce: U32  # tells probes apart
    sent_ms: U63  # the prober's clock
    reply: bool = False  # True in the answer


class Error(Message, frozen=True, kw_only=True):
    """What went wrong (both ways); `fatal` ends the session."""

    frame_type: ClassVar[FrameType] = FrameType.ERROR
    code: Code  # one of the error codes
    detail: Text  # for people: got X, expected Y, what to do
    fatal: bool = False  # True: the session is over
    sequence: U32 = 0  # the numbered frame it is about, or the question (bad_dialogue, no_answer); 0 = none


class Bye(Message, frozen=True, kw_only=True):
    """Orderly end (both ways)."""

    frame_type: ClassVar[FrameType] = FrameType.BYE
    reason: Text = ""  # for people


class Stats(Message, frozen=True, kw_only=True):
    """A device's state, about once a second, not numbered (C -> S); shares are in [0, 1], NaN where not known."""

    frame_type: ClassVar[FrameType] = FrameType.STATS
    cpu: float = 0.0  # share in use
    memory: float = 0.0  # share in use
    battery: float = 1.0  # 1.0 on mains
    thermal: float = 0.0  # 0 cool, 1 throttling
    bandwidth_bps: float = 0.0  # estimated uplink rate
    rtt_ms: float = 0.0  # estimated round trip
    queue_windows: U63 = 0  # waiting in the offline queue
    queue_bytes: U63 = 0  # their size
    windows_seen: U63 = 0  # since the device started
    windows_sent: U63 = 0  # of those, accepted for sending
    windows_skipped: U63 = 0  # of those, kept to itself
    windows_dropped: U63 = 0  # lost to the bound of the offline queue
    uplink_bytes: U63 = 0  # on the socket, headers included
    downlink_bytes: U63 = 0  # the same for the other way
    latency_ms: float = 0.0  # capture to result, moving average
    cut: Name = ""  # the present one, such as '6:int8'
    resolution: U8 = 0  # 0 full, 1 reduced
    uncertainty: float = math.nan  # nats, of the last window
    loss: float = math.nan  # contrastive loss, of the last optimiser step
    effective_rank: float = math.nan  # of recent embeddings
    learner_steps: U63 = 0  # optimiser steps so far
    energy_mj: float = 0.0  # so far, by the device model
    revision: Hash = ""  # encoder revision in use
    policy: Name = ""  # what chooses the cuts, such as 'greedy' or 'ppo v3'
    cut_changes: U63 = 0  # windows whose cut was not that of the window before
    fallbacks: U63 = 0  # decisions made in place of the policy: outside of what it knows, or without a usable one
    regret: float = math.nan  # mean cost above the best cut's in hindsight, in units of the reward
    collapsed: bool = False  # the alarm is on: the embeddings fall onto few directions


class Result(Message, frozen=True, kw_only=True):
    """The server's answer for one window, numbered (S -> C)."""

    frame_type: ClassVar[FrameType] = FrameType.RESULT
    sequence: U32  # the uplink frame it answers
    window: U32  # its window index, from the media header
    capture_ms: U32  # timestamp field of that frame, echoed
    uncertainty: float  # nats, by the mixture of the server
    cluster: I32 = -1  # nearest component of the server's mixture
    label: Name = ""  # nearest labelled prototype, where the server has any
    confidence: Share = 0.0  # of the label
    server_ms: Positive = 0.0  # compute
    queue_ms: Positive = 0.0  # wait before compute
    embedding: bytes = b""  # fp16, only where asked for


class Gmm(Message, frozen=True, kw_only=True):
    """Mixture statistics for a device's memory, latest wins (S -> C)."""

    frame_type: ClassVar[FrameType] = FrameType.GMM
    version: U63  # grows with every change
    revision: Hash  # encoder revision of the embedding space
    components: U16  # C
    dim: U16  # d
    data: bytes  # fp16: weights [C], means [C, d], variances [C, d]


class Prototypes(Message, frozen=True, kw_only=True):
    """The server's k-means prototypes for a device's uncertainty, latest wins (S -> C); only where asked for."""

    frame_type: ClassVar[FrameType] = FrameType.PROTOTYPES
    revision: Hash  # encoder revision of the embedding space
    count: U16  # k
    dim: U16  # d
    data: bytes  # fp16: centres [k, d]


class Policy(Message, frozen=True, kw_only=True):
    """What the server asks of a device's splitting policy; empty fields change nothing (S -> C)."""

    frame_type: ClassVar[FrameType] = FrameType.POLICY
    policy: Name = ""  # name of the policy to use; 'own' gives policy and threshold back to the device
    cut: Name = ""  # cut to use, such as '0:opus24'
    uncertainty_threshold: float = math.nan  # nats above which windows are sent; NaN changes nothing


class PolicyPush(Message, frozen=True, kw_only=True):
    """A trained splitting policy, latest wins (S -> C); only where asked for, and never without a good signature."""

    frame_type: ClassVar[FrameType] = FrameType.POLICY_FILE
    version: U32  # grows with every change; a device takes none that is not newer than what it holds
    encoder: Name  # whose cuts it chooses
    data: bytes  # the .npz that `streamsplit train-policy` writes, at most 35 KiB
    signature: Mac  # HMAC-SHA256 over context, version and data, see Pushed policies


class Revision(Message, frozen=True, kw_only=True):
    """Announces encoder weights: the server's newest (S -> C), or a device's local learning (C -> S, kind 'local')."""

    frame_type: ClassVar[FrameType] = FrameType.REVISION
    revision: Hash  # hex SHA-256 of the full weights that result
    base: Hash  # revision that a delta applies to; "" for full weights
    kind: Name  # 'full', 'delta' or 'local'
    total_bytes: U32  # of the transfer
    breaks_space: bool = False  # embeddings before and after do not compare: memories start anew
    samples: U63 = 0  # windows learned from ('local')


class WeightsRequest(Message, frozen=True, kw_only=True):
    """Asks for an announced transfer from an offset on (either way)."""

    frame_type: ClassVar[FrameType] = FrameType.WEIGHTS_REQ
    revision: Hash  # as announced
    base: Hash = ""  # as announced; "" asks for the full weights
    offset: U32 = 0  # bytes already there


class Throttle(Message, frozen=True, kw_only=True):
    """Load control (S -> C): frames in flight and least spacing between windows."""

    frame_type: ClassVar[FrameType] = FrameType.THROTTLE
    max_in_flight: U16  # windows that may be unacknowledged; 0 = pause
    min_interval_ms: U32 = 0  # least time between windows; 0 = none
    reason: Text = ""  # for people


MESSAGES: dict[FrameType, type[Message]] = {
    kind.frame_type: kind
    for kind in (
        Hello,
        Welcome,
        Ack,
        Ping,
        Error,
        Bye,
        Stats,
        Result,
        Gmm,
        Prototypes,
        Policy,
        PolicyPush,
        Revision,
        WeightsRequest,
        Throttle,
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
