"""Golden vectors: the committed bytes, which other languages read too, are what this code writes and reads."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import msgspec
import pytest

from streamsplit.errors import ProtocolError
from streamsplit.wire.frame import Frame, FrameParser, decode_frame, encode_frame
from streamsplit.wire.media import MediaHeader, pack_media
from streamsplit.wire.messages import MESSAGES, decode_message, encode_message
from streamsplit.wire.types import FrameFlag, FrameType

VECTORS = Path(__file__).parents[1] / "vectors"
sys.path.insert(0, str(VECTORS))

import make_wire_vectors  # noqa: E402


def load(name: str) -> list[dict]:
    return json.loads((VECTORS / "wire" / name).read_text(encoding="utf-8"))


def rich(value):
    """Undoes what JSON cannot write."""
    if isinstance(value, dict):
        if set(value) == {"hex"}:
            return bytes.fromhex(value["hex"])
        if set(value) == {"float"}:
            return float(value["float"])
        return {key: rich(item) for key, item in value.items()}
    return value


def rebuild(vector: dict) -> Frame:
    """The frame from the vector's fields alone, not from its bytes."""
    kind = FrameType[vector["type"]]
    if "message" in vector:
        payload = encode_message(msgspec.convert(rich(vector["message"]), MESSAGES[kind]))
    elif "media" in vector:
        payload = pack_media(MediaHeader(**rich(vector["media"])), rich(vector["rest"]))
    else:
        payload = rich(vector["payload"])
    return Frame(kind, FrameFlag(vector["flags"]), vector["sequence"], vector["timestamp_ms"], payload)


@pytest.mark.parametrize("name", ["frames.json", "malformed.json", "session.json"])
def test_the_committed_vectors_are_what_the_script_writes(name):
    committed = (VECTORS / "wire" / name).read_text(encoding="utf-8")
    assert committed == make_wire_vectors.vectors()[name]


@pytest.mark.parametrize(
    "vector", [*load("frames.json"), *load("session.json")], ids=lambda v: v.get("name", v["type"])
)
def test_fields_and_bytes_of_a_vector_say_the_same(vector):
    data = bytes.fromhex(vector["hex"])
    frame = rebuild(vector)
    assert encode_frame(frame) == data
    assert decode_frame(data) == frame
    assert len(frame.payload) == vector["payload_length"] == len(data) - 16


def test_every_frame_type_has_a_vector():
    assert {vector["type"] for vector in load("frames.json")} == {kind.name for kind in FrameType}


def test_all_vectors_in_one_stream_of_single_bytes_are_the_same_frames():
    parser, frames = FrameParser(), []
    stream = b"".join(bytes.fromhex(vector["hex"]) for vector in load("frames.json"))
    for byte in stream:
        frames += parser.feed(bytes([byte]))
    assert frames == [rebuild(vector) for vector in load("frames.json")]


@pytest.mark.parametrize("vector", load("malformed.json"), ids=lambda v: v["name"])
def test_a_malformed_vector_is_refused_by_its_code(vector):
    with pytest.raises(ProtocolError) as caught:
        frame = decode_frame(bytes.fromhex(vector["hex"]))
        decode_message(frame.type, frame.payload)
    assert caught.value.code == vector["code"]


def test_messages_are_read_whatever_the_order_of_their_keys():
    for vector in load("frames.json"):
        if "message" in vector:
            kind = FrameType[vector["type"]]
            turned = dict(reversed(list(rich(vector["message"]).items())))
            message = decode_message(kind, msgspec.msgpack.encode(turned))
            assert encode_message(message) == bytes.fromhex(vector["hex"])[16:]


def test_the_conversation_shows_a_resumed_session_in_which_nothing_is_lost_or_doubled():
    steps = load("session.json")
    assert [step["type"] for step in steps if step["way"] == "up" and step["type"] != "ACK"] == [
        "HELLO", "EMBEDDING", "EMBEDDING", "EMBEDDING", "HELLO", "BYE",
    ]  # fmt: skip
    welcomes = [step["message"] for step in steps if step["type"] == "WELCOME"]
    assert [(w["resumed"], w["received_through"]) for w in welcomes] == [(False, 0), (True, 3)]
    arrived = [step["sequence"] for step in steps if step["type"] == "RESULT" and not step["lost"]]
    assert arrived == [1, 2, 3] and sum(step["lost"] for step in steps) == 1


def test_what_is_at_its_default_is_left_out_and_read_back():
    policy = next(vector for vector in load("frames.json") if vector["name"] == "policy that changes nothing")
    assert policy["message"] == {}
    read = decode_message(FrameType.POLICY, decode_frame(bytes.fromhex(policy["hex"]), 4096).payload)
    assert read.cut == "" and math.isnan(read.uncertainty_threshold)
