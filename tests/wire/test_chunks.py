"""The weight stream's two ends without a socket: every reply finds its request, and nothing malformed passes."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsplit.errors import ProtocolError
from streamsplit.wire.chunks import MAX_PENDING, Asked, ChunkClient, ChunkServer, Failed, Open, State

DIGEST = "ab" * 32


def pair() -> tuple[ChunkClient, ChunkServer]:
    """Both ends, opened."""
    client, server = ChunkClient(), ChunkServer()
    client.open("pi", "secret")
    (hello,) = client.bytes_to_send()
    assert server.receive(hello) == Open(protocol=1, device_id="pi", token="secret")
    assert client.receive(server.accept("cd" * 32, 100)) == []
    return client, server


def frame(kind: int, request: int, payload: bytes, *, version: int = 1, flags: int = 0, reserved: int = 0) -> bytes:
    return struct.pack("<BBBBIII", version, kind, flags, reserved, request, 0, len(payload)) + payload


def test_the_bytes_of_a_request_are_these():
    client, _ = pair()
    assert client.request(DIGEST, 5, 7) == 1
    payload = msgspec.msgpack.encode({"digest": DIGEST, "offset": 5, "length": 7})
    assert client.bytes_to_send() == [
        b"\x01\x43\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00" + struct.pack("<I", len(payload)) + payload
    ]


def test_replies_that_mingle_find_their_requests():
    client, server = pair()
    first, second = client.request(DIGEST, 0, 6), client.request(DIGEST, 10, 2)
    asked = [server.receive(data) for data in client.bytes_to_send()]
    assert asked == [Asked(first, DIGEST, 0, 6), Asked(second, DIGEST, 10, 2)]
    got = [
        client.receive(server.data(number, data, last))[0]
        for number, data, last in ((first, b"abc", False), (second, b"xy", True), (first, b"def", True))
    ]
    assert [(p.request, p.offset, bytes(p.data), p.last) for p in got] == [
        (first, 0, b"abc", False), (second, 0, b"xy", True), (first, 3, b"def", True),
    ]  # fmt: skip
    assert client.pending == 0


@pytest.mark.parametrize(
    ("sent", "last"), [(b"abcdefg", False), (b"abcdefg", True), (b"abcde", True), (b"", True), (b"abcdef", False)]
)
def test_a_reply_of_another_length_than_asked_for_is_refused(sent: bytes, last: bool):
    client, server = pair()
    request = client.request(DIGEST, 0, 6)
    with pytest.raises(ProtocolError, match="bad_transfer"):
        client.receive(server.data(request, sent, last))


def test_a_reply_that_nobody_asked_for_is_refused():
    client, server = pair()
    request = client.request(DIGEST, 0, 6)
    with pytest.raises(ProtocolError, match="request 2, which is not pending"):
        client.receive(server.data(request + 1, b"abcdef", True))
    client.receive(server.data(request, b"abcdef", True))
    with pytest.raises(ProtocolError, match="not pending"):
        client.receive(server.data(request, b"abcdef", True))


def test_a_refused_request_leaves_the_others():
    client, server = pair()
    first, second = client.request(DIGEST, 0, 1), client.request(DIGEST, 0, 1)
    assert client.receive(server.fault("bad_transfer", "no", first)) == [Failed(first, "bad_transfer", "no")]
    assert client.receive(server.data(second, b"x", True))[0].last
    assert client.receive(server.fault("shutting_down", "bye")) == [Failed(0, "shutting_down", "bye")]
    assert client.state is State.CLOSED
    with pytest.raises(ProtocolError):
        client.request(DIGEST, 0, 1)


def test_no_more_requests_than_agreed_are_pending():
    client, server = pair()
    for _ in range(MAX_PENDING):
        client.request(DIGEST, 0, 1)
    with pytest.raises(ProtocolError, match="flow_control"):
        client.request(DIGEST, 0, 1)
    for data in client.bytes_to_send():
        server.receive(data)
    with pytest.raises(ProtocolError, match="flow_control"):
        server.receive(frame(67, 99, msgspec.msgpack.encode({"digest": DIGEST, "length": 1})))


def chunk_request(**fields: object) -> bytes:
    return msgspec.msgpack.encode({"digest": DIGEST, "offset": 0, "length": 1, **fields})


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "truncated"),
        (frame(67, 1, chunk_request())[:-1], "truncated"),
        (frame(67, 1, chunk_request()) + b"x", "trailing_bytes"),
        (frame(67, 1, chunk_request(), version=2), "bad_version"),
        (frame(67, 1, chunk_request(), flags=2), "bad_flags"),
        (frame(67, 1, chunk_request(), reserved=1), "bad_reserved"),
        (frame(67, 0, chunk_request()), "bad_sequence"),
        (frame(16, 1, b""), "unknown_type"),
        (frame(64, 0, b""), "unexpected"),
        (frame(67, 1, b"x" * 5000), "frame_too_large"),
        (frame(67, 1, chunk_request(digest="../../etc/passwd")), "bad_message"),
        (frame(67, 1, chunk_request(digest="AB" * 32)), "bad_message"),
        (frame(67, 1, chunk_request(offset=-1)), "bad_message"),
        (frame(67, 1, chunk_request(length=0)), "bad_message"),
        (frame(67, 1, chunk_request(name="x")), "bad_message"),
        (frame(67, 1, b"\xc1"), "bad_message"),
    ],
)
def test_a_malformed_request_is_refused_with_its_code(data: bytes, code: str):
    _, server = pair()
    with pytest.raises(ProtocolError) as caught:
        server.receive(data)
    assert caught.value.code == code


def test_nothing_is_served_before_open_and_no_second_open_is_taken():
    server = ChunkServer()
    with pytest.raises(ProtocolError, match="expected OPEN"):
        server.receive(frame(67, 1, chunk_request()))
    opened = frame(64, 0, msgspec.msgpack.encode({"protocol": 1, "device_id": "pi"}))
    server.receive(opened)
    with pytest.raises(ProtocolError, match="expected OPEN, once"):
        server.receive(opened)
    with pytest.raises(ProtocolError, match="bad_version"):
        ChunkServer().receive(frame(64, 0, msgspec.msgpack.encode({"protocol": 2, "device_id": "pi"})))


def test_the_token_is_not_in_the_text_of_an_open():
    assert "secret" not in repr(Open(protocol=1, device_id="pi", token="secret"))


@given(st.binary(max_size=200))
def test_any_bytes_give_a_request_or_a_protocol_error(data: bytes):
    _, server = pair()
    for candidate in (data, frame(67, 1, data), frame(66, 2, data)):
        try:
            assert isinstance(server.receive(candidate), Asked)
        except ProtocolError as error:
            assert error.detail


@given(st.binary(max_size=60), st.integers(0, 255), st.integers(0, 3))
def test_any_bytes_from_a_server_give_pieces_or_a_protocol_error(data: bytes, kind: int, request: int):
    client, _ = pair()
    client.request(DIGEST, 0, 30)
    for flags in (0, 2):
        try:
            for event in client.receive(frame(kind, request, data, flags=flags)):
                assert event.request in (0, 1)
        except ProtocolError as error:
            assert error.detail


def test_a_packed_piece_counts_by_its_size_unpacked():
    client, server = pair()
    request = client.request(DIGEST, 0, 100)
    (piece,) = client.receive(server.data(request, b"packed", True, packed_bytes=100))
    assert (bytes(piece.data), piece.packed_bytes, piece.last, client.pending) == (b"packed", 100, True, 0)
    again = client.request(DIGEST, 0, 100)
    with pytest.raises(ProtocolError, match="bad_transfer"):
        client.receive(server.data(again, b"packed", True, packed_bytes=101))
    with pytest.raises(ProtocolError, match="bad_flags"):
        client.receive(struct.pack("<BBBBIII", 1, 68, 10, 0, again, (1 << 20) + 1, 1) + b"x")
