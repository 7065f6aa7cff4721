"""Writes the golden vectors of the wire protocol: `python tests/vectors/make_wire_vectors.py`.

The files are shared with the JavaScript and C sides. A change here is a change of the protocol: think of the version.

- frames.json      one frame of every type: hex of the bytes, the header's fields, the decoded payload
- malformed.json   bytes that must be refused, and the error code
- session.json     a conversation with a lost connection, frame by frame, with the clock

In decoded payloads {"hex": ...} stands for bytes and {"float": "nan"} for what JSON cannot write. Every MessagePack map
has its keys in the order of the documentation; readers must take any order.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import msgspec

from streamsplit.wire.dialogue import Kind, Utterance, pack_utterance
from streamsplit.wire.frame import Frame, decode_frame, encode_frame
from streamsplit.wire.media import Encoding, MediaFlag, MediaHeader, Resolution, pack_media, unpack_media
from streamsplit.wire.messages import (
    MESSAGES,
    Ack,
    Bye,
    Error,
    Gmm,
    Hello,
    Message,
    Ping,
    Policy,
    PolicyPush,
    Prototypes,
    Result,
    Revision,
    Stats,
    Throttle,
    WeightsRequest,
    Welcome,
    decode_message,
    encode_message,
)
from streamsplit.wire.session import ClientSession, ServerSession, SessionSettings
from streamsplit.wire.types import WINDOW_TYPES, FrameFlag, FrameType

FOLDER = Path(__file__).parent / "wire"
REVISION = "00112233445566778899aabbccddeeff" * 2
HELLO = Hello(
    protocol=1, device_id="porch-1", token="s3cret", epoch=0x0123456789ABCDEF, oldest_sequence=41, next_sequence=44,
    received_through=17, resume_token=bytes(range(16)), results_from=40, encoder="mobilenet", revision=REVISION,
    device_class="pi4", software="streamsplit 0.1.0", codec="dac9e773", want_embedding=True, want_prototypes=True,
    want_policy=True, policy_version=3,
)  # fmt: skip
SPOKEN = pack_utterance(Utterance(0x01020304, 6, Kind.OPUS, 20.0, (b"\xfc\xff", b"\xfe"), 35, True))
SPOKEN_END = pack_utterance(Utterance(0x01020304, 8, Kind.OPUS, 20.0, ()))
WELCOME = Welcome(
    protocol=1, session_id="c0ffee", resume_token=bytes(range(16, 32)), resume_expires_ms=120_000, resumed=True,
    received_through=41, max_in_flight=64, max_frame_bytes=1 << 20, revision=REVISION, server_ms=1_700_000_000_000,
)  # fmt: skip
WINDOW = MediaHeader(43, 0x00112233, 0, Encoding.LOGMEL_INT8, Resolution.FULL, 0, 1.5, 50, 3.25, 2)

MESSAGE_SAMPLES: dict[str, Message] = {
    "hello": HELLO,
    "hello with defaults": Hello(
        protocol=1, device_id="d", token="", epoch=0, oldest_sequence=1, next_sequence=1
    ),
    "welcome": WELCOME,
    "ack": Ack(through=43, echo_ms=21_500, held_ms=12.5, received_bytes=70_000, arrived_ms=99_000, credit=32),
    "ping": Ping(nonce=7, sent_ms=123_456),
    "pong": Ping(nonce=7, sent_ms=123_456, reply=True),
    "error about a window": Error(code="bad_window", detail="features: NaN", sequence=43),
    "fatal error": Error(code="bad_version", detail="got protocol version 2, expected 1", fatal=True),
    "bye": Bye(reason="switched off"),
    "stats": Stats(
        cpu=0.5, memory=0.25, battery=1.0, thermal=0.0, bandwidth_bps=2e6, rtt_ms=35.5, queue_windows=3,
        queue_bytes=12_000, windows_seen=100, windows_sent=40, windows_skipped=60, uplink_bytes=500_000,
        downlink_bytes=60_000, latency_ms=80.5, cut="0:logmel-int8", uncertainty=1.5, energy_mj=250.0,
        policy="greedy", cut_changes=7, regret=0.25, collapsed=True,
    ),
    "result": Result(
        sequence=43, window=43, capture_ms=21_500, uncertainty=2.25, cluster=5, label="rain", confidence=0.75,
        server_ms=4.5, queue_ms=1.25, embedding=struct.pack("<4e", 0.5, -0.5, 0.5, -0.5),
    ),
    "gmm": Gmm(version=3, revision=REVISION, components=2, dim=1, data=struct.pack("<6e", 0.5, 0.5, -1, 1, 0.25, 0.25)),
    "prototypes": Prototypes(revision=REVISION, count=2, dim=2, data=struct.pack("<4e", 0.5, -0.5, 1.0, 0.0)),
    "policy": Policy(policy="greedy", cut="6:int8", uncertainty_threshold=1.5),
    "policy that changes nothing": Policy(),
    "policy file": PolicyPush(version=3, encoder="mobilenet", data=b"PK\x05\x06", signature=bytes(range(32))),
    "revision": Revision(
        revision=REVISION, base="ff" * 32, kind="delta", total_bytes=610_000, breaks_space=False, samples=0
    ),
    "weights request": WeightsRequest(revision=REVISION, base="ff" * 32, offset=8192),
    "throttle": Throttle(max_in_flight=4, min_interval_ms=250, reason="the queue is long"),
}  # fmt: skip


def plain(value: Any) -> Any:
    """What JSON can write."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def decoded(frame: Frame) -> dict[str, Any]:
    """A frame's payload as its fields."""
    if frame.type in MESSAGES:
        message = decode_message(frame.type, frame.payload)
        return {"message": plain(msgspec.to_builtins(message, builtin_types=(bytes,)))}
    if frame.type in WINDOW_TYPES:
        header, rest = unpack_media(frame.payload)
        return {"media": plain(header._asdict()), "rest": plain(bytes(rest))}
    return {"payload": plain(frame.payload)}


def described(frame: Frame) -> dict[str, Any]:
    """Header fields and payload of a frame."""
    return {
        "type": frame.type.name,
        "flags": int(frame.flags),
        "sequence": frame.sequence,
        "timestamp_ms": frame.timestamp_ms,
        "payload_length": len(frame.payload),
        **decoded(frame),
    }


def frame_vectors() -> list[dict[str, Any]]:
    """One frame of every type and some more."""
    numbered = FrameFlag.NUMBERED
    frames = {
        name: Frame(
            message.frame_type,
            numbered if message.frame_type is FrameType.RESULT else FrameFlag.NONE,
            18 if message.frame_type is FrameType.RESULT else 0,
            99_012,
            encode_message(message),
        )
        for name, message in MESSAGE_SAMPLES.items()
    }
    starts = int(MediaFlag.STARTS)
    audio = WINDOW._replace(encoding=Encoding.PCM16, revision=0, uncertainty=math.nan, new_frames=100, flags=starts)
    activation = WINDOW._replace(block=6, encoding=Encoding.INT8, new_frames=0, resolution=Resolution.REDUCED)
    narrowed = WINDOW._replace(block=5, encoding=Encoding.BOTTLENECK_INT8, new_frames=0)
    early = WINDOW._replace(block=4, encoding=Encoding.EXIT_FP16, new_frames=0, uncertainty=0.25)
    embedding = WINDOW._replace(block=13, encoding=Encoding.EMBEDDING_FP16, new_frames=0, edge_ms=70_000.0)
    frames |= {
        "audio": Frame(FrameType.AUDIO, numbered, 41, 20_500, pack_media(audio, struct.pack("<4h", 0, 1, -1, 32767))),
        "features": Frame(FrameType.FEATURES, numbered, 42, 21_000, pack_media(WINDOW, b"\x00\x7f\x80\xff")),
        "features sent again": Frame(
            FrameType.FEATURES, numbered | FrameFlag.REPLAYED, 42, 21_000, pack_media(activation, b"\x01\x02\x03")
        ),
        "embedding": Frame(
            FrameType.EMBEDDING, numbered, 43, 21_500, pack_media(embedding, struct.pack("<2e", 0.6, -0.8))
        ),
        "narrowed activation": Frame(
            FrameType.FEATURES, numbered, 44, 22_000,
            pack_media(narrowed, struct.pack("<BBHHHHf4b2e", 19, 1, 2, 1, 2, 2, 0.5, 64, -127, 32, 0, 3.0, -0.25)),
        ),
        "early exit": Frame(
            FrameType.EMBEDDING, numbered, 45, 22_500, pack_media(early, struct.pack("<BBH2e", 34, 0, 2, 0.6, -0.8))
        ),
        "gradient": Frame(FrameType.GRADIENT, numbered, 44, 22_000, pack_media(embedding, b"\x09")),
        "the last sequence and time": Frame(FrameType.AUDIO, numbered, 0xFFFFFFFF, 0xFFFFFFFF, pack_media(audio, b"")),
        "gradient back": Frame(FrameType.GRAD_BACK, FrameFlag.NONE, 0, 99_012, b"\x0a\x0b"),
        "weights": Frame(FrameType.WEIGHTS, FrameFlag.NONE, 0, 99_012, bytes.fromhex("3322110000000000") + b"abc"),
        "last weights": Frame(FrameType.WEIGHTS, FrameFlag.FINAL, 0, 99_012, bytes.fromhex("3322110003000000") + b"d"),
        "dialogue": Frame(FrameType.DIALOGUE, FrameFlag.NONE, 900, 99_012, SPOKEN),
        "end of an utterance": Frame(FrameType.DIALOGUE, FrameFlag.FINAL, 901, 99_012, SPOKEN_END),
    }  # fmt: skip
    return [{"name": name, "hex": encode_frame(frame).hex(), **described(frame)} for name, frame in frames.items()]


def malformed_vectors() -> list[dict[str, Any]]:
    """Whole WebSocket messages that a receiver refuses, with the code of its ERROR."""
    good = encode_frame(Frame(FrameType.EMBEDDING, FrameFlag.NUMBERED, 7, 500, b"xyz"))

    def patched(offset: int, value: bytes) -> bytes:
        return good[:offset] + value + good[offset + len(value) :]

    def frame(kind: FrameType, payload: bytes) -> bytes:
        return struct.pack("<BBBBIII", 1, kind, 0, 0, 0, 0, len(payload)) + payload

    cases = [
        ("nothing", b"", "truncated"),
        ("half a header", good[:9], "truncated"),
        ("a payload that ends early", good[:-1], "truncated"),
        ("bytes after the frame", good + b"!", "trailing_bytes"),
        ("version 2", patched(0, b"\x02"), "bad_version"),
        ("type 0", patched(1, b"\x00"), "unknown_type"),
        ("type 255", patched(1, b"\xff"), "unknown_type"),
        ("an unknown flag", patched(2, b"\x09"), "bad_flags"),
        ("a window that is not numbered", patched(2, b"\x00"), "bad_flags"),
        ("a final window", patched(2, b"\x03"), "bad_flags"),
        ("a reserved byte", patched(3, b"\x01"), "bad_reserved"),
        ("a window without a sequence", patched(4, bytes(4)), "bad_sequence"),
        ("a payload of 1 MiB and a byte", patched(12, struct.pack("<I", (1 << 20) + 1)), "frame_too_large"),
        ("a payload of 4 GiB", patched(12, b"\xff\xff\xff\xff"), "frame_too_large"),
        ("not MessagePack", frame(FrameType.PING, b"\xc1"), "bad_message"),
        ("an empty message", frame(FrameType.PING, b""), "bad_message"),
        ("a list instead of a map", frame(FrameType.PING, b"\x92\x01\x02"), "bad_message"),
        ("a missing field", frame(FrameType.PING, b"\x81\xa5nonce\x01"), "bad_message"),
        ("an unknown field", frame(FrameType.BYE, b"\x81\xa1x\x01"), "bad_message"),
        ("a negative count", frame(FrameType.ACK, b"\x81\xa7through\xff"), "bad_message"),
        ("a string that ends early", frame(FrameType.BYE, b"\x81\xa6reason\xdb\xff\xff\xff\xff"), "bad_message"),
    ]
    return [{"name": name, "hex": data.hex(), "code": code} for name, data, code in cases]


def session_vectors() -> list[dict[str, Any]]:
    """Handshake, windows, a result, a lost connection, resuming: every frame in the order of its sending."""
    steps: list[dict[str, Any]] = []
    settings = SessionSettings(ack_every_frames=2)
    client, server = ClientSession(now_ms=1000), ServerSession(1000, settings)
    greeting = Hello(protocol=1, device_id="porch-1", token="s3cret", epoch=9, oldest_sequence=1, next_sequence=4)
    token = bytes(range(16))

    def carry(now_ms: float, lose_down: bool = False) -> None:
        moved = True
        while moved:
            moved = False
            for way, sender, receiver in (("up", client, server), ("down", server, client)):
                for data in sender.bytes_to_send(now_ms=now_ms):
                    moved = True
                    lost = lose_down and way == "down"
                    step = {"at_ms": now_ms, "way": way, "lost": lost, "hex": data.hex()}
                    steps.append(step | described(decode_frame(data)))
                    if not lost:
                        receiver.receive(data, now_ms)

    def result(sequence: int) -> Result:
        return Result(sequence=sequence, window=sequence, capture_ms=500 * sequence, uncertainty=0.5)

    client.hello(greeting, 1000)
    carry(1010)
    server.accept(1020, session_id="c0ffee", resume_token=token)
    carry(1030)
    for sequence in (1, 2):
        client.send_window(FrameType.EMBEDDING, sequence, 500 * sequence, pack_media(WINDOW, b"z"))
    carry(1100)
    server.acknowledge(2, 1110)
    server.send(result(1))
    carry(1120)
    server.send(result(2))
    client.send_window(FrameType.EMBEDDING, 3, 1500, pack_media(WINDOW, b"z"))
    carry(1200, lose_down=True)
    client.disconnected(1300)
    server.disconnected(1300)
    server.acknowledge(3, 1400)
    server.send(result(3))
    client.hello(greeting, 2000)
    fresh = ServerSession(2000, settings)
    for data in client.bytes_to_send(now_ms=2000):
        steps.append({"at_ms": 2000, "way": "up", "lost": False, "hex": data.hex()} | described(decode_frame(data)))
        fresh.receive(data, 2010)
    server.resume(fresh, 2020)
    carry(2030)
    client.close("switched off")
    carry(2040)
    return steps


def vectors() -> dict[str, str]:
    """File name to content."""
    content = {
        "frames.json": frame_vectors(),
        "malformed.json": malformed_vectors(),
        "session.json": session_vectors(),
    }
    return {name: json.dumps(value, indent=1, ensure_ascii=False) + "\n" for name, value in content.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in vectors().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(f"{FOLDER / name}: {len(text)} bytes")
