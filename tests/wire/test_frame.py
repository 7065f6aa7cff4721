"""Frames: exact bytes, pieces of any size, and every malformed header."""

from __future__ import annotations

import random
import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.errors import ProtocolError
from streamsplit.wire.frame import (
    HEADER_BYTES,
    Frame,
    FrameParser,
    check_frame,
    decode_frame,
    encode_frame,
    numbered_sequence,
)
from streamsplit.wire.types import (
    MAX_CHUNK_BYTES,
    MAX_FRAME_BYTES,
    NUMBERED_TYPES,
    PAYLOAD_LIMITS,
    FrameFlag,
    FrameType,
)


def header(version=1, kind=18, flags=1, reserved=0, sequence=7, timestamp_ms=500, length=3) -> bytes:
    return struct.pack("<BBBBIII", version, kind, flags, reserved, sequence, timestamp_ms, length)


def random_frame(rng: random.Random) -> Frame:
    kind = rng.choice(list(FrameType))
    numbered = kind in NUMBERED_TYPES
    flags = FrameFlag.NUMBERED if numbered else FrameFlag.NONE
    if numbered and rng.random() < 0.3:
        flags |= FrameFlag.REPLAYED
    if kind in (FrameType.WEIGHTS, FrameType.DIALOGUE) and rng.random() < 0.3:
        flags |= FrameFlag.FINAL
    sequence = rng.randrange(1, 1 << 32) if numbered or kind is FrameType.DIALOGUE else 0
    return Frame(kind, flags, sequence, rng.randrange(1 << 32), rng.randbytes(rng.choice([0, 1, 2, 15, 16, 17, 300])))


def test_a_frame_is_sixteen_bytes_and_its_payload_in_the_documented_order():
    frame = Frame(FrameType.EMBEDDING, FrameFlag.NUMBERED, 0x01020304, 0x0A0B0C0D, b"xyz")
    assert encode_frame(frame) == bytes.fromhex("01 12 01 00 04030201 0d0c0b0a 03000000") + b"xyz"
    assert decode_frame(encode_frame(frame)) == frame
    assert frame.wire_bytes == HEADER_BYTES + 3 == 19


def test_numbered_sequence_reads_only_numbered_frames():
    assert numbered_sequence(header(sequence=70000)) == 70000
    assert numbered_sequence(encode_frame(Frame(FrameType.DIALOGUE, FrameFlag.NONE, 9, 0, b""))) == 0


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"version": 0}, "bad_version"),
        ({"version": 2}, "bad_version"),
        ({"version": 255, "kind": 200, "flags": 255, "reserved": 9}, "bad_version"),
        ({"kind": 0}, "unknown_type"),
        ({"kind": 7}, "unknown_type"),
        ({"kind": 255}, "unknown_type"),
        ({"flags": 9}, "bad_flags"),
        ({"flags": 0x81}, "bad_flags"),
        ({"flags": 0}, "bad_flags"),  # EMBEDDING must be numbered
        ({"flags": 3}, "bad_flags"),  # FINAL on EMBEDDING
        ({"kind": 20, "flags": 1}, "bad_flags"),  # STATS must not be numbered
        ({"kind": 37, "flags": 4, "sequence": 0}, "bad_flags"),  # REPLAYED without NUMBERED
        ({"reserved": 1}, "bad_reserved"),
        ({"reserved": 255}, "bad_reserved"),
        ({"sequence": 0}, "bad_sequence"),
        ({"kind": 3, "flags": 0, "sequence": 1}, "bad_sequence"),
        ({"kind": 37, "flags": 0, "sequence": 32768}, "bad_sequence"),
        ({"length": MAX_FRAME_BYTES + 1}, "frame_too_large"),
        ({"length": 0xFFFFFFFF}, "frame_too_large"),
        ({"kind": 37, "flags": 2, "sequence": 0, "length": MAX_CHUNK_BYTES + 1}, "frame_too_large"),
        ({"kind": 1, "flags": 0, "sequence": 0, "length": 4097}, "frame_too_large"),
    ],
)
def test_a_malformed_header_is_refused_by_its_code(changes, code):
    data = header(**changes) + b"xyz"
    for refuse in (lambda: decode_frame(data), lambda: FrameParser().feed(data)):
        with pytest.raises(ProtocolError) as caught:
            refuse()
        assert caught.value.code == code


def test_a_version_error_names_both_versions():
    with pytest.raises(ProtocolError, match="got protocol version 9, expected 1"):
        decode_frame(header(version=9) + b"xyz")


def test_a_message_must_hold_exactly_one_frame():
    whole = header() + b"xyz"
    for cut in range(len(whole)):
        with pytest.raises(ProtocolError, match=r"^truncated"):
            decode_frame(whole[:cut])
    with pytest.raises(ProtocolError, match=r"^trailing_bytes"):
        decode_frame(whole + b"!")


def test_the_sender_is_refused_what_a_receiver_would_refuse():
    good = Frame(FrameType.WEIGHTS, FrameFlag.FINAL, 0, 0, bytes(MAX_CHUNK_BYTES))
    check_frame(good)
    for bad in (
        good._replace(payload=bytes(MAX_CHUNK_BYTES + 1)),
        good._replace(flags=FrameFlag.NUMBERED),
        good._replace(sequence=5),
        good._replace(timestamp_ms=1 << 32),
        good._replace(timestamp_ms=-1),
    ):
        with pytest.raises(ProtocolError):
            encode_frame(bad)
    with pytest.raises(ProtocolError, match="allowed 100"):
        check_frame(good, max_frame_bytes=100)


def test_every_type_has_a_limit_and_takes_a_payload_of_just_that_size():
    for kind in FrameType:
        flags, sequence = (FrameFlag.NUMBERED, 1) if kind in NUMBERED_TYPES else (FrameFlag.NONE, 0)
        frame = Frame(kind, flags, sequence, 0, bytes(PAYLOAD_LIMITS[kind]))
        assert decode_frame(encode_frame(frame)) == frame
        with pytest.raises(ProtocolError, match="frame_too_large"):
            encode_frame(frame._replace(payload=bytes(PAYLOAD_LIMITS[kind] + 1)))


def test_one_byte_at_a_time_gives_the_same_frames():
    rng = random.Random(1)
    frames = [random_frame(rng) for _ in range(60)]
    stream = b"".join(map(encode_frame, frames))
    assert FrameParser().feed(stream) == frames
    parser, got = FrameParser(), []
    for byte in stream:
        got += parser.feed(bytes([byte]))
    assert got == frames and parser.buffered_bytes == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.data())
def test_any_chunking_gives_the_same_frames(seed, data):
    rng = random.Random(seed)
    frames = [random_frame(rng) for _ in range(8)]
    stream = b"".join(map(encode_frame, frames))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    parser, got = FrameParser(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += parser.feed(memoryview(stream)[start:end])
    assert got == frames


def test_frames_before_a_malformed_header_are_delivered_and_the_parser_stays_broken():
    good = header() + b"xyz"
    parser = FrameParser()
    assert len(parser.feed(good + good + header(reserved=1) + b"xyz" + good)) == 2
    assert parser.error is not None and parser.error.code == "bad_reserved"
    for data in (b"", good):
        with pytest.raises(ProtocolError, match="bad_reserved"):
            parser.feed(data)


def test_nothing_is_allocated_for_a_length_that_is_only_announced():
    tracemalloc.start()
    try:
        parsers = [FrameParser() for _ in range(100)]
        before, _ = tracemalloc.get_traced_memory()
        for parser in parsers:
            assert parser.feed(header(length=MAX_FRAME_BYTES) + b"only this") == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 100 * 2000  # 100 MiB were announced


def test_an_oversized_length_is_refused_with_its_header_before_any_payload():
    parser = FrameParser(max_frame_bytes=1000)
    head = header(length=1001)
    for byte in head[:-1]:
        assert parser.feed(bytes([byte])) == []
    with pytest.raises(ProtocolError, match="got 1001 payload bytes, allowed 1000"):
        parser.feed(head[-1:])
    assert parser.buffered_bytes == 0
