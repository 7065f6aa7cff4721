"""HELLO and WELCOME: who may come in, with which versions and positions."""

from __future__ import annotations

import msgspec
import pytest
from wire_pair import TOKEN, Pair, hello, only, result

from streamsplit.errors import ConfigError, ProtocolError
from streamsplit.wire.events import Closed, HelloReceived, MessageReceived, Opened, WindowReceived
from streamsplit.wire.frame import Frame, decode_frame, encode_frame
from streamsplit.wire.messages import (
    Error,
    Hello,
    Ping,
    PolicyPush,
    Throttle,
    Welcome,
    decode_message,
    encode_message,
)  # fmt: skip
from streamsplit.wire.session import ClientSession, ClientState, ServerSession, ServerState, SessionSettings
from streamsplit.wire.types import FrameFlag, FrameType


def frame_of(message) -> bytes:
    return encode_frame(Frame(message.frame_type, FrameFlag.NONE, 0, 0, encode_message(message)))


def last_error(session) -> Error:
    message = decode_message(*decode_frame(session.bytes_to_send()[-1])[::4])
    assert isinstance(message, Error)
    return message


def welcome(**changes) -> Welcome:
    fields = {
        "protocol": 1, "session_id": "s", "resume_token": b"t", "resume_expires_ms": 1000, "resumed": False,
        "received_through": 0, "max_in_flight": 4, "max_frame_bytes": 10000,
    }  # fmt: skip
    return Welcome(**{**fields, **changes})


def test_a_device_says_hello_and_is_welcomed():
    pair = Pair()
    pair.client.hello(hello(next_sequence=4), pair.now_ms)
    assert pair.client.state is ClientState.GREETING and not pair.client.is_open
    pair.pump()
    (event,) = pair.server.events()
    assert isinstance(event, HelloReceived) and event.hello.device_id == "porch" and event.hello.token == "secret"
    assert pair.server.state is ServerState.DECIDING
    pair.later(30)
    sent = pair.server.accept(pair.now_ms, session_id="s-1", resume_token=TOKEN, received_through=2, revision="a" * 64)
    pair.pump()
    (opened,) = pair.client.events()
    assert opened == Opened(sent, feed_from=3, rtt_ms=30.0)
    assert sent.server_ms == 1030 and sent.max_in_flight == pair.server_settings.max_in_flight
    assert pair.client.next_sequence == 3 and pair.client.credit() == sent.max_in_flight


@pytest.mark.parametrize("protocol", [0, 2, 65535])
def test_another_protocol_version_is_refused_by_an_error_naming_both(protocol):
    server = ServerSession(0.0)
    fields = {**msgspec.to_builtins(hello(), builtin_types=(bytes,)), "protocol": protocol, "field_of_the_future": 1}
    data = encode_frame(Frame(FrameType.HELLO, FrameFlag.NONE, 0, 0, msgspec.msgpack.encode(fields)))
    server.receive(data, 1.0)
    (closed,) = server.events()
    assert closed == Closed(f"got protocol version {protocol}, expected 1", True, "bad_version")
    assert not closed.retry and server.state is ServerState.CLOSED
    error = last_error(server)
    assert error.fatal and error.code == "bad_version" and f"{protocol}, expected 1" in error.detail


def test_a_device_of_another_version_learns_why_it_was_refused():
    client = ClientSession()
    client.hello(hello(), 0.0)
    client.receive(frame_of(Error(code="bad_version", detail="got protocol version 1, expected 2", fatal=True)), 1.0)
    (closed,) = client.events()
    assert closed.fatal and not closed.retry and "expected 2" in closed.reason
    assert client.state is ClientState.CLOSED and client.bytes_to_send() == []


def test_a_rejected_device_gets_the_code_and_the_text():
    pair = Pair()
    pair.client.hello(hello(), pair.now_ms)
    pair.pump()
    pair.server.reject("bad_token", "device 'porch' and its token do not match")
    pair.pump()
    (closed,) = pair.client.events()
    assert closed == Closed("device 'porch' and its token do not match", True, "bad_token") and not closed.retry
    assert only(Closed, pair.server.events()) == [closed]
    with pytest.raises(ProtocolError, match="no HELLO to answer in state CLOSED"):
        pair.server.accept(pair.now_ms, session_id="s", resume_token=TOKEN)


def test_a_stranger_gets_room_for_a_greeting_only():
    server = ServerSession(0.0)
    server.receive(encode_frame(Frame(FrameType.AUDIO, FrameFlag.NUMBERED, 1, 0, bytes(5000))), 1.0)
    assert only(Closed, server.events())[0].code == "frame_too_large"
    server = ServerSession(0.0)
    server.receive(encode_frame(Frame(FrameType.AUDIO, FrameFlag.NUMBERED, 1, 0, bytes(50))), 1.0)
    closed = only(Closed, server.events())[0]
    assert closed.code == "unexpected" and "DATA" in closed.reason and "AWAIT_HELLO" in closed.reason


def test_nothing_but_a_ping_is_heard_while_the_server_decides():
    pair = Pair()
    pair.client.hello(hello(), pair.now_ms)
    pair.pump()
    pair.server.receive(frame_of(Ping(nonce=1, sent_ms=2)), pair.now_ms)
    assert pair.server.state is ServerState.DECIDING
    pair.server.receive(frame_of(hello()), pair.now_ms)
    assert only(Closed, pair.server.events())[0].code == "unexpected"


def test_messages_of_the_other_direction_are_refused():
    pair = Pair()
    pair.open()
    pair.server.receive(frame_of(welcome()), pair.now_ms)
    assert "WELCOME does not travel in this direction" in only(Closed, pair.server.events())[0].reason
    pair = Pair()
    pair.open()
    pair.client.receive(frame_of(hello()), pair.now_ms)
    assert "HELLO does not travel in this direction" in only(Closed, pair.client.events())[0].reason
    with pytest.raises(ProtocolError, match="THROTTLE"):
        pair.client.send(Throttle(max_in_flight=1))


def test_a_server_that_is_ahead_of_the_device_asks_for_a_new_epoch():
    pair = Pair()
    pair.client.hello(hello(next_sequence=5), pair.now_ms)
    pair.pump()
    assert pair.server.accept(pair.now_ms, session_id="s", resume_token=TOKEN, received_through=5) is None
    pair.pump()
    (closed,) = pair.client.events()
    assert closed.code == "bad_epoch" and not closed.retry and "5 next" in closed.reason


def test_what_a_full_queue_dropped_is_not_waited_for():
    pair = Pair()
    pair.open(received_through=4, oldest_sequence=10, next_sequence=12)
    assert pair.client.welcome.received_through == 9 and pair.client.next_sequence == 10
    pair.feed(10, 11)
    pair.pump()
    assert [event.frame.sequence for event in only(WindowReceived, pair.server.events())] == [10, 11]


@pytest.mark.parametrize(
    "changes", [{"oldest_sequence": 0}, {"oldest_sequence": 3, "next_sequence": 2}, {"next_sequence": 0}]
)
def test_a_hello_with_impossible_positions_is_refused_at_both_ends(changes):
    with pytest.raises(ProtocolError, match="expected 1 <= oldest <= next"):
        ClientSession().hello(hello(**changes), 0.0)
    server = ServerSession(0.0)
    server.receive(frame_of(hello(**changes)), 1.0)
    assert only(Closed, server.events())[0].code == "bad_message"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"protocol": 2}, "bad_version"),
        ({"received_through": 3}, "bad_welcome"),  # the device assigned 1 and 2 only
        ({"resumed": True}, "bad_welcome"),
        ({"max_in_flight": 0}, "bad_welcome"),
        ({"max_frame_bytes": 1000}, "bad_welcome"),
        ({"max_frame_bytes": 1 << 30}, "bad_welcome"),
    ],
)
def test_a_welcome_that_does_not_fit_the_hello_ends_the_session(changes, code):
    client = ClientSession()
    client.hello(hello(next_sequence=3), 0.0)
    client.receive(frame_of(welcome(**changes)), 1.0)
    (closed,) = client.events()
    assert closed.code == code and closed.fatal and last_error(client).code == code


def test_a_welcome_nobody_asked_for_is_refused():
    client = ClientSession()
    client.receive(frame_of(welcome()), 1.0)
    assert only(Closed, client.events())[0].code == "unexpected"
    pair = Pair()
    pair.open()
    pair.client.receive(frame_of(welcome()), 1.0)
    assert "WELCOME" in only(Closed, pair.client.events())[0].reason


def test_payloads_respect_the_limit_that_the_server_told():
    pair = Pair(server=SessionSettings(max_frame_bytes=5000))
    pair.open()
    with pytest.raises(ProtocolError, match="got 5001 payload bytes, allowed 5000"):
        pair.client.send_window(FrameType.AUDIO, 1, 0, bytes(5001))
    pair.feed(1, payload=bytes(5000))
    pair.pump()
    assert len(only(WindowReceived, pair.server.events())) == 1


def test_goodbye_is_orderly_acknowledges_what_is_durable_and_ends_the_session():
    pair = Pair()
    pair.open()
    pair.feed(1)
    pair.pump()
    pair.server.acknowledge(1, pair.now_ms)
    pair.server.close("the server is restarted")
    pair.pump()
    acked, closed = pair.client.events()
    assert acked.through == 1
    assert closed == Closed("the server is restarted", False, "bye") and closed.retry
    assert pair.client.state is ClientState.CLOSED and pair.server.state is ServerState.CLOSED
    assert not pair.server.send(result(1)) and not pair.client.send_window(FrameType.AUDIO, 2, 0, b"")
    fresh = pair.come_back(oldest_sequence=2, next_sequence=2)
    assert fresh.hello.resume_token == b"" and not pair.server.can_resume(fresh.hello, pair.now_ms)


def test_an_end_that_fails_tells_the_other_why():
    pair = Pair()
    pair.open()
    pair.server.fail("internal", "the store cannot be written: disk full")
    pair.pump()
    assert only(Closed, pair.client.events()) == [Closed("the store cannot be written: disk full", True, "internal")]
    assert only(Closed, pair.server.events())[0].code == "internal"


def test_silence_instead_of_a_greeting_ends_the_wait():
    pair = Pair()
    pair.client.hello(hello(), 1000.0)
    for session in (pair.client, pair.server):
        assert session.next_deadline_ms() == 11_000.0
        session.tick(10_999.0)
        assert session.events() == []
        session.tick(11_000.0)
        (closed,) = session.events()
        assert closed.code == "timeout" and closed.retry
        assert session.next_deadline_ms() is None
    assert pair.client.state is ClientState.LOST and pair.server.state is ServerState.CLOSED


def test_frames_that_come_after_the_end_are_ignored():
    pair = Pair()
    pair.open()
    pair.server.close()
    pair.server.receive(b"garbage", pair.now_ms)
    pair.server.receive_stream(b"garbage", pair.now_ms)
    assert [event.code for event in pair.server.events()] == ["bye"]
    pair.client.disconnected(pair.now_ms)
    pair.client.receive(b"garbage", pair.now_ms)
    assert pair.client.events() == [] and pair.client.state is ClientState.LOST


def test_sessions_work_over_a_transport_without_message_borders():
    pair = Pair()
    pair.client.hello(hello(), 0.0)
    for byte in b"".join(pair.client.bytes_to_send()):
        pair.server.receive_stream(bytes([byte]), 1.0)
    assert isinstance(pair.server.events()[0], HelloReceived)
    pair.server.accept(2.0, session_id="s", resume_token=TOKEN)
    for byte in b"".join(pair.server.bytes_to_send()):
        pair.client.receive_stream(bytes([byte]), 3.0)
    assert pair.client.is_open
    pair.feed(1, 2, 3)
    stream = b"".join(pair.client.bytes_to_send()) + b"\x02" * 16
    pair.server.receive_stream(stream, 4.0)
    events = pair.server.events()
    assert [e.frame.sequence for e in only(WindowReceived, events)] == [1, 2, 3]
    assert only(Closed, events)[0].code == "bad_version"


def test_settings_that_make_no_sense_are_refused():
    for bad in ({"max_in_flight": 0}, {"max_frame_bytes": 1 << 21}, {"silence_timeout_ms": 5}, {"ack_delay_ms": 2.5}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            SessionSettings(**bad)
    with pytest.raises(ProtocolError, match="may be refused"):
        ClientSession(refuses=frozenset({FrameType.RESULT}))


def test_only_the_sessions_own_greeting_is_sent():
    pair = Pair()
    pair.open()
    for message in (hello(), Ping(nonce=1, sent_ms=0)):
        with pytest.raises(ProtocolError, match="not for the owner"):
            pair.client.send(message)
    assert isinstance(pair.server.hello, Hello)


def test_what_follows_welcome_in_the_same_bytes_of_a_stream_may_be_as_large_as_after_it() -> None:
    """Before WELCOME nothing above 4 KiB is taken; a transport without borders may bring it and more at once."""
    pair = Pair()
    pair.client.hello(hello(want_policy=True), pair.now_ms)
    for data in pair.client.bytes_to_send():
        pair.server.receive(data, pair.now_ms)
    pair.server.accept(pair.now_ms, session_id="s", resume_token=TOKEN)
    push = PolicyPush(version=1, encoder="mobilenet", data=bytes(20_000), signature=bytes(32))
    assert pair.server.send(push)
    down: list[bytes] = []
    while batch := pair.server.bytes_to_send():
        down += batch
    pair.client.receive_stream(b"".join(down), pair.now_ms)
    assert only(MessageReceived, pair.client.events())[0].message == push and pair.client.is_open
    early = Pair()
    early.client.hello(hello(), early.now_ms)
    early.client.receive_stream(down[1], early.now_ms)
    assert [event.code for event in only(Closed, early.client.events())] == ["frame_too_large"]
