"""Control messages: round trips, refused values, hidden secrets."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_pair import hello, result

from streamsplit.errors import ProtocolError
from streamsplit.splitting.policy_push import MAX_PUSHED_BYTES
from streamsplit.wire.messages import (
    MESSAGES,
    Ack,
    Bye,
    Error,
    Gmm,
    Ping,
    Policy,
    PolicyPush,
    Prototypes,
    Revision,
    Stats,
    Throttle,
    WeightsRequest,
    Welcome,
    decode_message,
    encode_message,
)
from streamsplit.wire.types import MAX_GMM_BYTES, MEDIA_TYPES, PAYLOAD_LIMITS, FrameType

SAMPLES = [
    hello(),
    Welcome(
        protocol=1, session_id="s", resume_token=b"t", resume_expires_ms=1, resumed=False, received_through=0,
        max_in_flight=1, max_frame_bytes=1000,
    ),
    Ack(through=3),
    Ping(nonce=1, sent_ms=2),
    Error(code="bad_window", detail="NaN"),
    Bye(),
    Stats(),
    result(1),
    Gmm(version=1, revision="", components=64, dim=128, data=bytes(2 * 64 * (1 + 128 + 128))),
    Prototypes(revision="", count=50, dim=128, data=bytes(2 * 50 * 128)),
    Policy(),
    PolicyPush(version=1, encoder="e" * 128, data=bytes(MAX_PUSHED_BYTES), signature=bytes(32)),
    Revision(revision="0" * 64, base="", kind="full", total_bytes=9),
    WeightsRequest(revision="f" * 64),
    Throttle(max_in_flight=3),
]  # fmt: skip


def test_there_is_a_message_for_every_type_that_is_no_media():
    assert set(MESSAGES) == set(FrameType) - MEDIA_TYPES
    assert {type(sample) for sample in SAMPLES} == set(MESSAGES.values())


@pytest.mark.parametrize("message", SAMPLES, ids=lambda m: type(m).__name__)
def test_a_message_survives_the_wire_and_fits_its_limit(message):
    payload = encode_message(message)
    back = decode_message(message.frame_type, payload)
    assert repr(back) == repr(message)  # repr: NaN is not equal to itself
    assert encode_message(back) == payload
    assert len(payload) <= PAYLOAD_LIMITS[message.frame_type]


def test_a_mixture_of_the_default_size_stays_below_35_kilobytes_with_its_header():
    gmm = next(sample for sample in SAMPLES if isinstance(sample, Gmm))
    assert 16 + len(encode_message(gmm)) < 35_000 < MAX_GMM_BYTES


@pytest.mark.parametrize("message", SAMPLES, ids=lambda m: type(m).__name__)
def test_an_unknown_field_a_missing_field_and_a_wrong_type_are_refused(message):
    fields = msgspec.to_builtins(message, builtin_types=(bytes,))
    required = [f.encode_name for f in msgspec.structs.fields(type(message)) if f.required]
    for broken in (
        {**fields, "extra": 1},
        *({k: v for k, v in fields.items() if k != name} for name in required),
        *({**fields, name: {"nested": []}} for name in fields),
        list(fields.values()),
    ):
        with pytest.raises(ProtocolError, match=r"^bad_message"):
            decode_message(message.frame_type, msgspec.msgpack.encode(broken))


@pytest.mark.parametrize(
    "message",
    [
        hello(device_id=""),
        hello(device_id="../../etc/passwd"),
        hello(device_id="line\n"),
        hello(device_id="x" * 65),
        hello(token="x" * 513),
        hello(epoch=-1),
        hello(epoch=1 << 63),
        hello(next_sequence=1 << 32),
        hello(oldest_sequence=-1),
        hello(resume_token=bytes(65)),
        hello(revision="not hex"),
        Ack(through=-1),
        Ack(through=1, held_ms=math.nan),
        Ack(through=1, held_ms=math.inf),
        Ack(through=1, held_ms=-1.0),
        Error(code="Not A Code", detail=""),
        Error(code="bad_window", detail="x" * 1001),
        Revision(revision="0" * 63, base="", kind="full", total_bytes=9),
        Throttle(max_in_flight=-1),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused_at_both_ends(message):
    with pytest.raises(ProtocolError, match=r"^bad_message"):
        encode_message(message)
    with pytest.raises(ProtocolError, match=r"^bad_message"):
        decode_message(message.frame_type, msgspec.msgpack.encode(message))


def test_what_a_device_does_not_know_travels_as_nan():
    stats = decode_message(FrameType.STATS, encode_message(Stats(bandwidth_bps=math.nan, rtt_ms=math.nan)))
    assert isinstance(stats, Stats) and math.isnan(stats.bandwidth_bps) and math.isnan(stats.loss)


def test_tokens_stay_out_of_logs():
    welcome = next(sample for sample in SAMPLES if isinstance(sample, Welcome))
    shown = repr(hello(token="my-secret", resume_token=b"my-resume")) + f"{hello(token='my-secret')}" + repr(welcome)
    assert "my-secret" not in shown and "my-resume" not in shown and "resume_token" not in shown


def test_media_types_do_not_decode_as_messages():
    for kind in MEDIA_TYPES:
        with pytest.raises(ProtocolError, match="carries media"):
            decode_message(kind, b"\x80")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(MESSAGES)), st.binary(max_size=200))
def test_random_bytes_decode_or_raise_the_protocols_own_error(kind, data):
    try:
        message = decode_message(kind, data)
    except ProtocolError as error:
        assert error.code == "bad_message"
    else:
        assert isinstance(message, MESSAGES[kind])


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_signature_of_another_length_is_refused(length):
    with pytest.raises(ProtocolError, match="signature"):
        encode_message(PolicyPush(version=1, encoder="", data=b"", signature=bytes(length)))
