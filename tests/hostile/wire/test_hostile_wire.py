"""Hostile bytes: whatever arrives, a session answers with the protocol's own error, in bounded memory and time."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.errors import ProtocolError
from streamsplit.wire.codes import ERROR_CODES
from streamsplit.wire.events import Closed, Event, HelloReceived, WindowReceived
from streamsplit.wire.frame import Frame, FrameParser, decode_frame, encode_frame
from streamsplit.wire.media import unpack_media
from streamsplit.wire.messages import MESSAGES, Hello, Ping, Stats, decode_message, encode_message
from streamsplit.wire.session import ClientSession, ServerSession
from streamsplit.wire.types import MAX_FRAME_BYTES, MEDIA_TYPES, NUMBERED_TYPES, FrameFlag, FrameType

HELLO = Hello(protocol=1, device_id="d", token="t", epoch=1, oldest_sequence=1, next_sequence=100)
STATES = ["fresh", "deciding", "open", "detached", "closed"]


def raw(kind: int, payload: bytes, flags: int = 0, sequence: int = 0, length: int | None = None) -> bytes:
    """Header and payload, unchecked."""
    announced = len(payload) if length is None else length
    return struct.pack("<BBBBIII", 1, kind, flags, 0, sequence, 0, announced) + payload


def numbering(kind: FrameType) -> tuple[int, int]:
    return (int(FrameFlag.NUMBERED), 1) if kind in NUMBERED_TYPES else (0, 0)


def server_in(state: str) -> ServerSession:
    server = ServerSession(0.0)
    if state != "fresh":
        server.receive(raw(FrameType.HELLO, encode_message(HELLO)), 1.0)
    if state in ("open", "detached", "closed"):
        server.accept(2.0, session_id="s", resume_token=b"t")
    if state == "detached":
        server.disconnected(3.0)
    if state == "closed":
        server.close()
    server.events(), server.bytes_to_send()
    return server


def client_in(state: str) -> ClientSession:
    client = ClientSession()
    if state != "fresh":
        client.hello(HELLO, 0.0)
    if state in ("open", "detached", "closed"):
        server = ServerSession(0.0)
        server.receive(client.bytes_to_send()[0], 1.0)
        server.accept(2.0, session_id="s", resume_token=b"t")
        client.receive(server.bytes_to_send()[0], 3.0)
    if state == "detached":
        client.disconnected(4.0)
    if state == "closed":
        client.close()
    client.events(), client.bytes_to_send()
    return client


def survive(session: ClientSession | ServerSession, act: Callable[[], object]) -> list[Event]:
    """Runs `act`, which must not raise, and checks that the session is still in order."""
    act()
    events = session.events()
    for event in events:
        if isinstance(event, Closed) and event.fatal and event.code not in ERROR_CODES:
            # only what a peer's own ERROR said may be unknown here
            assert not [d for d in session.bytes_to_send() if decode_frame(d).type is FrameType.ERROR]
    for data in session.bytes_to_send():
        frame = decode_frame(data)  # what it says is well-formed
        if frame.type not in MEDIA_TYPES:
            decode_message(frame.type, frame.payload)
    session.tick(10.0)
    assert session.next_deadline_ms() is None or session.next_deadline_ms() > 0
    return events


# -- fuzzing -------------------------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@st.composite
def almost_messages(draw: st.DrawFn) -> bytes:
    """A frame of a real type whose payload is a real message with some fields made strange."""
    kind = draw(st.sampled_from(sorted(MESSAGES)))
    fields: dict[str, object] = {}
    for field in msgspec.structs.fields(MESSAGES[kind]):
        choice = draw(st.integers(0, 9))
        if choice == 0:
            fields[field.encode_name] = draw(values)
        elif choice < 8 and not field.required:
            fields[field.encode_name] = field.default
        elif field.required:
            fields[field.encode_name] = draw(st.sampled_from([0, 1, 2, 100, "a", b"x", True, 0.5, "0" * 64]))
    flags, sequence = numbering(kind)
    return raw(kind, msgspec.msgpack.encode(fields), flags, sequence)


@st.composite
def almost_frames(draw: st.DrawFn) -> bytes:
    """Header fields near the valid ones, payload of any bytes, sometimes a wrong length."""
    payload = draw(st.binary(max_size=60))
    length = draw(st.none() | st.integers(0, 0xFFFFFFFF))
    header = (
        draw(st.sampled_from([1, 1, 1, 1, 0, 2, 255])),
        draw(st.sampled_from([*map(int, FrameType), 0, 7, 255])),
        draw(st.sampled_from([0, 1, 1, 2, 4, 5, 8, 255])),
        draw(st.sampled_from([0, 0, 0, 1])),
        draw(st.sampled_from([0, 1, 1, 2, 3, 0xFFFFFFFF])),
        draw(st.integers(0, 0xFFFFFFFF)),
        len(payload) if length is None else length,
    )
    return struct.pack("<BBBBIII", *header) + payload


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(STATES), st.lists(almost_messages() | almost_frames() | st.binary(max_size=40), max_size=6))
def test_a_server_session_survives_any_messages_in_any_state(state, messages):
    server = server_in(state)
    for data in messages:
        survive(server, lambda data=data: server.receive(data, 5.0))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(STATES), st.lists(almost_messages() | almost_frames() | st.binary(max_size=40), max_size=6))
def test_a_client_session_survives_any_messages_in_any_state(state, messages):
    client = client_in(state)
    for data in messages:
        survive(client, lambda data=data: client.receive(data, 5.0))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(STATES), st.lists(st.binary(max_size=64) | almost_frames(), max_size=8))
def test_sessions_survive_any_byte_stream(state, pieces):
    for session in (server_in(state), client_in(state)):
        for data in pieces:
            survive(session, lambda data=data, session=session: session.receive_stream(data, 5.0))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=64) | almost_frames(), max_size=8))
def test_the_parser_raises_nothing_but_the_protocols_error(pieces):
    parser = FrameParser()
    for data in pieces:
        try:
            parser.feed(data)
        except ProtocolError as error:
            assert error.code in ERROR_CODES
            assert parser.error is error


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80) | almost_frames() | almost_messages())
def test_decoders_raise_nothing_but_the_protocols_error(data):
    for decode in (decode_frame, unpack_media):
        try:
            decode(data)
        except ProtocolError as error:
            assert error.code in ERROR_CODES


def test_flipped_bits_in_a_real_conversation_are_an_error_or_a_valid_frame():
    rng = random.Random(5)
    hello = raw(FrameType.HELLO, encode_message(HELLO))
    stats = raw(FrameType.STATS, encode_message(Stats(cpu=0.5)))
    ping = raw(FrameType.PING, encode_message(Ping(nonce=1, sent_ms=2)))
    window = encode_frame(Frame(FrameType.AUDIO, FrameFlag.NUMBERED, 1, 0, bytes(40)))
    outcomes = {"closed": 0, "open": 0}
    for _ in range(1500):
        server = server_in("fresh")
        for data in (hello, stats, ping, window):
            broken = bytearray(data)
            for _ in range(rng.choice([0, 0, 1, 1, 2])):
                broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
            events = survive(server, lambda broken=broken, server=server: server.receive(broken, 1.0))
            if any(isinstance(event, HelloReceived) for event in events):
                server.accept(2.0, session_id="s", resume_token=b"t")
        outcomes["open" if server.is_open else "closed"] += 1
    assert min(outcomes.values()) > 50, outcomes


# -- bombs ---------------------------------------------------------------------------------------------------------

BOMBS = {
    "nested lists": b"\x91" * 4000 + b"\xc0",
    "nested maps": b"\x81\xa1a" * 1300 + b"\xc0",
    "an unknown field of nested lists": b"\x81\xa1q" + b"\x91" * 4000 + b"\xc0",
    "a known field of nested lists": b"\x81\xa6reason" + b"\x91" * 4000 + b"\xc0",
    "a string of 4 GiB": b"\x81\xa6reason\xdb\xff\xff\xff\xff",
    "bytes of 4 GiB": b"\x81\xacresume_token\xc6\xff\xff\xff\xff",
    "a list of 4 G items": b"\xdd\xff\xff\xff\xff",
    "a map of 4 G items": b"\xdf\xff\xff\xff\xff",
    "a map of 4 G items with a start": b"\xdf\xff\xff\xff\xff" + b"\xa5nonce\x01" * 400,
    "an extension of 4 GiB": b"\xc9\xff\xff\xff\xff\x01",
    "a field said a thousand times": b"\xde\x01\xf4" + b"\xa6reason\xa1x" * 500,
    "bad UTF-8": b"\x81\xa6reason\xa2\xff\xfe",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_msgpack_bomb_costs_next_to_nothing(name):
    payload = BOMBS[name]
    tracemalloc.start()
    started = time.process_time()
    try:
        for kind in MESSAGES:
            try:
                decode_message(kind, payload)
            except ProtocolError as error:
                assert error.code == "bad_message"
                assert len(error.detail) < 500
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000 and time.process_time() - started < 1.0


@pytest.mark.parametrize("name", BOMBS)
def test_a_msgpack_bomb_ends_that_session_only(name):
    for kind in (FrameType.HELLO, FrameType.BYE, FrameType.PING):
        server = server_in("fresh" if kind is FrameType.HELLO else "open")
        events = survive(server, lambda kind=kind, server=server: server.receive(raw(kind, BOMBS[name]), 1.0))
        assert isinstance(events[0], Closed)


def test_deep_nesting_at_the_largest_size_does_not_exhaust_the_stack():
    for kind in MESSAGES:
        for opener in (b"\x91", b"\x81\xa1a"):
            with pytest.raises(ProtocolError, match="bad_message"):
                decode_message(kind, opener * (MAX_FRAME_BYTES // len(opener)))


# -- sizes ---------------------------------------------------------------------------------------------------------


def test_an_announced_length_costs_nothing_before_its_bytes_come():
    sessions = [server_in("open") for _ in range(50)]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for session in sessions:
            session.receive_stream(raw(FrameType.AUDIO, b"", flags=1, sequence=1, length=MAX_FRAME_BYTES), 1.0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(session.is_open for session in sessions)
    assert peak - before < 50 * 4000  # 50 MiB were announced


@pytest.mark.parametrize("kind", list(FrameType))
def test_an_oversized_length_is_refused_from_the_header_alone(kind):
    flags, sequence = numbering(kind)
    head = raw(kind, b"", flags, sequence, length=MAX_FRAME_BYTES + 1)
    with pytest.raises(ProtocolError, match="frame_too_large"):
        FrameParser().feed(head)
    server = server_in("open")
    events = survive(server, lambda: server.receive_stream(head, 1.0))
    assert isinstance(events[0], Closed) and events[0].code == "frame_too_large"


def test_a_stranger_cannot_make_the_server_hold_more_than_a_greeting():
    server = server_in("fresh")
    survive(server, lambda: server.receive_stream(raw(FrameType.AUDIO, b"", 1, 1, length=5000), 1.0))
    assert server.bytes_to_send() == [] and not server.is_open
    parser = server._parser
    server = server_in("fresh")
    server.receive_stream(raw(FrameType.HELLO, bytes(4000), length=4096), 1.0)
    assert parser.buffered_bytes == 0 and server._parser.buffered_bytes <= 16 + 4096


def test_a_truncated_frame_in_a_message_is_named_so():
    whole = encode_frame(Frame(FrameType.AUDIO, FrameFlag.NUMBERED, 1, 0, bytes(100)))
    for length in (0, 1, 15, 16, 17, 115):
        server = server_in("open")
        events = survive(server, lambda server=server, length=length: server.receive(whole[:length], 1.0))
        assert isinstance(events[0], Closed) and events[0].code == "truncated"


# -- floods --------------------------------------------------------------------------------------------------------


def test_floods_of_small_frames_are_answered_in_bounded_memory():
    flood = {
        "pings": raw(FrameType.PING, encode_message(Ping(nonce=1, sent_ms=0))),
        "dialogue": raw(FrameType.DIALOGUE, b""),
    }
    for name, data in flood.items():
        server = server_in("open")
        for _ in range(3000):
            server.receive(data, 1.0)
        assert not server.is_open, name
        assert len(server._outbox) == 1  # the ERROR
        assert [event.code for event in server.events() if isinstance(event, Closed)] == ["slow_peer"]


def test_windows_that_never_become_durable_stop_at_the_credit():
    server = server_in("open")
    for sequence in range(1, 1000):
        server.receive(encode_frame(Frame(FrameType.AUDIO, FrameFlag.NUMBERED, sequence, 0, bytes(100))), 1.0)
    events = server.events()
    assert sum(isinstance(event, WindowReceived) for event in events) == server.settings.max_in_flight
    assert isinstance(events[-1], Closed) and events[-1].code == "flow_control"


def test_windows_sent_again_and_again_cost_one_ack_at_most():
    server = server_in("open")
    data = encode_frame(Frame(FrameType.AUDIO, FrameFlag.NUMBERED, 1, 0, b"x"))
    for _ in range(5000):
        server.receive(data, 1.0)
    server.acknowledge(1, 1.0)
    for _ in range(5000):
        server.receive(data, 1.0)
    server.tick(100.0)
    assert server.is_open and server.duplicates == 9999
    assert [decode_frame(d).type for d in server.bytes_to_send()] == [FrameType.ACK]
