"""Credit, acknowledgements, priorities, keep-alive: what flows when a session is open."""

from __future__ import annotations

import math

import pytest
from wire_pair import Pair, only, result

from streamsplit.errors import ProtocolError
from streamsplit.wire.events import Acked, Closed, MediaReceived, MessageReceived, RoundTrip, WindowReceived
from streamsplit.wire.frame import Frame, decode_frame, encode_frame
from streamsplit.wire.messages import (
    Ack,
    Error,
    Gmm,
    Ping,
    Policy,
    Result,
    Stats,
    Throttle,
    decode_message,
    encode_message,
)
from streamsplit.wire.session import ClientState, ServerState, SessionSettings
from streamsplit.wire.types import MAX_CHUNK_BYTES, FrameFlag, FrameType, Priority


def frame_of(message) -> bytes:
    return encode_frame(Frame(message.frame_type, FrameFlag.NONE, 0, 0, encode_message(message)))


def types(batch: list[bytes]) -> list[str]:
    return [decode_frame(data).type.name for data in batch]


# -- windows and credit --------------------------------------------------------------------------------------------


def test_windows_go_up_in_order_within_the_credit_and_acks_make_room():
    pair = Pair(server=SessionSettings(max_in_flight=3))
    pair.open()
    pair.feed(1, 2, 3)
    assert pair.client.credit() == 0 and pair.client.in_flight == 3
    assert not pair.client.send_window(FrameType.EMBEDDING, 4, 0, b"")
    pair.pump()
    assert [event.frame.sequence for event in only(WindowReceived, pair.server.events())] == [1, 2, 3]
    assert pair.server.in_flight == 3
    pair.server.acknowledge(2, pair.now_ms)
    pair.later(25)
    pair.server.tick(pair.now_ms)
    pair.pump()
    assert only(Acked, pair.client.events())[0].through == 2
    assert pair.client.credit() == 2 and pair.server.in_flight == 1
    pair.feed(4)


def test_a_window_carries_its_type_its_capture_time_and_its_bytes():
    pair = Pair()
    pair.open()
    assert pair.client.send_window(FrameType.AUDIO, 1, (1 << 32) + 1234.9, b"sound")
    pair.pump()
    (event,) = only(WindowReceived, pair.server.events())
    assert event.frame == Frame(FrameType.AUDIO, FrameFlag.NUMBERED, 1, 1234, b"sound")
    assert event.arrived_ms == pair.now_ms


def test_the_device_may_not_leave_out_a_sequence_nor_send_a_type_that_is_no_window():
    pair = Pair()
    pair.open()
    with pytest.raises(ProtocolError, match="sequence_gap: got window 2, expected 1"):
        pair.client.send_window(FrameType.EMBEDDING, 2, 0, b"")
    with pytest.raises(ProtocolError, match="STATS does not carry a window"):
        pair.client.send_window(FrameType.STATS, 1, 0, b"")
    pair.feed(1)
    assert not pair.client.send_window(FrameType.EMBEDDING, 1, 0, b"")  # already under way


def test_a_gap_in_the_sequence_is_fatal():
    pair = Pair()
    pair.open()
    pair.server.receive(encode_frame(Frame(FrameType.AUDIO, FrameFlag.NUMBERED, 2, 0, b"")), pair.now_ms)
    closed = only(Closed, pair.server.events())[0]
    assert (closed.code, closed.reason, closed.retry) == ("sequence_gap", "got window 2, expected 1", True)
    pair.pump()
    assert only(Closed, pair.client.events())[0].code == "sequence_gap"


def test_a_window_that_comes_again_is_dropped_and_acknowledged_again():
    pair = Pair()
    pair.open()
    pair.feed(1)
    pair.pump()
    pair.server.acknowledge(1, pair.now_ms)
    pair.server.tick(pair.now_ms + 25)
    pair.pump()
    again = encode_frame(Frame(FrameType.EMBEDDING, FrameFlag.NUMBERED | FrameFlag.REPLAYED, 1, 0, b"other"))
    pair.server.events()
    pair.server.receive(again, pair.now_ms + 30)
    assert pair.server.events() == [] and pair.server.duplicates == 1
    pair.server.tick(pair.now_ms + 55)
    assert types(pair.server.bytes_to_send()) == ["ACK"]


def test_a_device_that_ignores_its_credit_is_cut_off():
    pair = Pair(server=SessionSettings(max_in_flight=2))
    pair.open()
    for sequence in (1, 2, 3):
        pair.server.receive(encode_frame(Frame(FrameType.AUDIO, FrameFlag.NUMBERED, sequence, 0, b"")), pair.now_ms)
    events = pair.server.events()
    assert len(only(WindowReceived, events)) == 2 and only(Closed, events)[0].code == "flow_control"


def test_an_ack_of_what_was_never_sent_is_fatal_at_both_ends():
    pair = Pair()
    pair.open()
    pair.feed(1)
    pair.client.receive(frame_of(Ack(through=2)), pair.now_ms)
    assert only(Closed, pair.client.events())[0].code == "bad_ack"
    pair = Pair()
    pair.open()
    pair.server.send(result(1))  # queued, not sent yet
    pair.server.receive(frame_of(Ack(through=1)), pair.now_ms)
    assert only(Closed, pair.server.events())[0].code == "bad_ack"


def test_throttle_lowers_the_credit_and_spaces_windows():
    pair = Pair()
    pair.open()
    assert pair.server.send(Throttle(max_in_flight=2, min_interval_ms=500, reason="the queue is long"))
    pair.pump()
    assert isinstance(only(MessageReceived, pair.client.events())[0].message, Throttle)
    assert pair.client.credit() == 2 and pair.client.credit(pair.now_ms) == 1
    pair.client.tick(pair.now_ms)
    pair.feed(1)
    assert pair.client.credit(pair.now_ms + 499) == 0 and pair.client.credit(pair.now_ms + 500) == 1
    pair.server.send(Throttle(max_in_flight=0))
    pair.pump()
    assert pair.client.credit() == 0  # paused


def test_an_ack_may_carry_new_credit():
    pair = Pair(server=SessionSettings(max_in_flight=1))
    pair.open()
    pair.feed(1)
    pair.pump()
    pair.server.acknowledge(1, pair.now_ms, credit=5)
    pair.server.tick(pair.now_ms + 25)
    pair.pump()
    assert pair.client.credit() == 5
    pair.feed(2, 3, 4, 5, 6)
    pair.pump()
    assert pair.server.is_open and pair.server.received_through == 6


# -- acknowledgements ----------------------------------------------------------------------------------------------


def acks(frames: list[Frame]) -> list[Ack]:
    return [decode_message(frame.type, frame.payload) for frame in frames if frame.type is FrameType.ACK]


def test_acks_gather_until_there_are_enough_or_the_first_has_waited_long_enough():
    pair = Pair(server=SessionSettings(ack_every_frames=4, ack_delay_ms=30))
    pair.open()
    pair.feed(*range(1, 10))
    pair.pump()
    for sequence in (1, 2, 3):
        pair.server.acknowledge(sequence, pair.now_ms)
    pair.pump()
    assert acks(pair.down) == []
    assert pair.server.next_deadline_ms() == pair.now_ms + 30
    pair.server.acknowledge(4, pair.now_ms + 1)
    pair.pump()
    assert [ack.through for ack in acks(pair.down)] == [4]
    pair.server.acknowledge(5, pair.now_ms + 10)
    pair.server.tick(pair.now_ms + 39)
    pair.pump()
    assert len(acks(pair.down)) == 1
    pair.server.tick(pair.now_ms + 40)
    pair.pump()
    assert [ack.through for ack in acks(pair.down)] == [4, 5]
    assert pair.server.acked_through == pair.client.acked_through == 5


def test_an_unsent_ack_is_replaced_by_a_newer_one():
    pair = Pair(server=SessionSettings(ack_every_frames=1))
    pair.open()
    pair.feed(1, 2, 3)
    pair.pump()
    for sequence in (1, 2, 3):
        pair.server.acknowledge(sequence, pair.now_ms)
    pair.pump()
    assert [ack.through for ack in acks(pair.down)] == [3]


def test_an_ack_tells_times_and_bytes_so_that_the_device_can_estimate_the_link():
    pair = Pair(server=SessionSettings(ack_delay_ms=50))
    pair.open()
    hello_bytes = pair.up[0].wire_bytes
    pair.client.send_window(FrameType.EMBEDDING, 1, 123_456, bytes(100))
    pair.client.send_window(FrameType.EMBEDDING, 2, 123_956, bytes(100))
    first, second = pair.client.bytes_to_send(now_ms=2000.0)
    pair.server.receive(first, 2040.0)
    pair.server.receive(second, 2044.0)
    pair.server.acknowledge(2, 2060.0)
    pair.server.tick(2110.0)
    (data,) = pair.server.bytes_to_send()
    (ack,) = acks([decode_frame(data)])
    assert ack == Ack(
        through=2, echo_ms=123_956, held_ms=66.0, received_bytes=hello_bytes + 2 * 116, arrived_ms=2044, credit=0
    )
    pair.client.receive(data, 2150.0)
    (acked,) = only(Acked, pair.client.events())
    assert acked == Acked(2, 123_956, 66.0, hello_bytes + 232, 2044, 2150.0, rtt_ms=2150.0 - 2000.0 - 66.0)


def test_results_are_acknowledged_by_the_device_and_leave_the_servers_window():
    pair = Pair(client=SessionSettings(ack_every_frames=2))
    pair.open()
    for sequence in (1, 2, 3):
        assert pair.server.send(result(sequence))
    pair.pump()
    assert [event.message.sequence for event in only(MessageReceived, pair.client.events())] == [1, 2, 3]
    (acked,) = only(Acked, pair.server.events())
    assert acked.through == 2 and math.isnan(acked.rtt_ms)
    assert len(pair.server.replay) == 1 and pair.client.received_through == 3


# -- priorities ----------------------------------------------------------------------------------------------------


def test_frames_leave_by_priority_and_bulk_leaves_alone_and_last():
    pair = Pair()
    pair.open()
    server = pair.server
    for _ in range(3):
        assert server.send_media(FrameType.WEIGHTS, bytes(MAX_CHUNK_BYTES))
    server.send(result(1))
    server.send_media(FrameType.DIALOGUE, b"voice", sequence=1)
    server.send(Policy(cut="0:opus24"))
    assert types(server.bytes_to_send()) == ["POLICY", "DIALOGUE", "RESULT", "WEIGHTS"]
    server.send(result(2))
    assert types(server.bytes_to_send()) == ["RESULT", "WEIGHTS"]
    assert types(server.bytes_to_send()) == ["WEIGHTS"]
    assert server.bytes_to_send() == []


def test_media_never_waits_behind_more_than_one_chunk():
    pair = Pair()
    pair.open()
    for _ in range(20):
        pair.client.send_media(FrameType.WEIGHTS, bytes(MAX_CHUNK_BYTES))
    for sequence in range(1, 21):  # a window becomes ready while a batch is with the transport
        batch = pair.client.bytes_to_send(limit_bytes=1 << 20)
        ahead = sum(len(data) for data in batch if types([data]) == ["WEIGHTS"])
        assert ahead <= 16 + MAX_CHUNK_BYTES
        pair.feed(sequence)
        assert types(pair.client.bytes_to_send(limit_bytes=100)) == ["EMBEDDING"]


def test_the_limit_on_handed_out_bytes_holds_but_one_frame_always_goes():
    pair = Pair()
    pair.open()
    pair.feed(1, 2, 3, payload=bytes(84))
    assert [len(batch) for batch in iter(lambda: pair.client.bytes_to_send(limit_bytes=250), [])] == [2, 1]
    pair.feed(4, payload=bytes(1000))
    assert len(pair.client.bytes_to_send(limit_bytes=10)) == 1


def test_a_newer_state_replaces_an_unsent_older_one():
    pair = Pair()
    pair.open()
    for version in (1, 2, 3):
        pair.server.send(Gmm(version=version, revision="", components=1, dim=1, data=bytes(6)))
        pair.client.send(Stats(windows_seen=version))
    pair.pump()
    (gmm,) = only(MessageReceived, pair.client.events())
    (stats,) = only(MessageReceived, pair.server.events())
    assert gmm.message.version == 3 and stats.message.windows_seen == 3


def test_bulk_is_refused_when_too_much_waits_and_taken_again_when_it_has_gone():
    pair = Pair()
    pair.open()
    queued = 0
    while pair.server.send_media(FrameType.WEIGHTS, bytes(MAX_CHUNK_BYTES)):
        queued += 1
    assert queued == (4 << 20) // (16 + MAX_CHUNK_BYTES)
    assert pair.server.queued_bytes(Priority.BULK) == queued * (16 + MAX_CHUNK_BYTES)
    pair.server.bytes_to_send()
    assert pair.server.send_media(FrameType.WEIGHTS, bytes(MAX_CHUNK_BYTES), flags=FrameFlag.FINAL)


def test_a_chunk_arrives_as_it_was_sent():
    pair = Pair()
    pair.open()
    pair.client.send_media(FrameType.WEIGHTS, b"chunk", timestamp_ms=7, flags=FrameFlag.FINAL)
    pair.pump()
    (event,) = only(MediaReceived, pair.server.events())
    assert event.frame == Frame(FrameType.WEIGHTS, FrameFlag.FINAL, 0, 7, b"chunk")


def test_nothing_is_queued_when_the_session_is_not_open():
    pair = Pair()
    assert not pair.client.send(Stats())
    assert not pair.client.send_media(FrameType.WEIGHTS, b"x")
    assert not pair.client.send_window(FrameType.AUDIO, 1, 0, b"x") and pair.client.credit() == 0
    assert pair.client.bytes_to_send() == []


def test_types_that_an_end_does_not_implement_are_refused_and_the_session_goes_on():
    pair = Pair()
    pair.open()
    pair.client.send_media(FrameType.DIALOGUE, b"hello?", sequence=1)
    pair.server.send_media(FrameType.GRAD_BACK, b"gradient")
    pair.pump()
    for session, name in ((pair.client, "DIALOGUE"), (pair.server, "GRAD_BACK")):
        (event,) = session.events()
        assert isinstance(event.message, Error) and not event.message.fatal
        assert event.message.code == "unsupported" and name in event.message.detail
    assert pair.client.is_open and pair.server.is_open


# -- keep-alive ----------------------------------------------------------------------------------------------------


def test_a_device_probes_the_round_trip_and_the_answer_says_how_long_it_took():
    pair = Pair()
    pair.open()
    opened_ms = pair.now_ms
    assert pair.client.next_deadline_ms() == opened_ms + 2_000
    pair.client.tick(opened_ms + 2_000)
    (ping,) = pair.client.bytes_to_send()
    pair.client.tick(opened_ms + 2_001)
    assert pair.client.bytes_to_send() == []  # one probe at a time
    pair.server.receive(ping, opened_ms + 2_020)
    (pong,) = pair.server.bytes_to_send()
    pair.client.receive(pong, opened_ms + 2_050)
    assert pair.client.events() == [RoundTrip(50.0, opened_ms + 2_050)]
    pair.client.receive(pong, opened_ms + 2_060)
    pair.client.receive(frame_of(Ping(nonce=999, sent_ms=1, reply=True)), opened_ms + 2_060)
    assert pair.client.events() == []  # an answer to nothing says nothing


def test_a_silent_peer_is_probed_and_then_given_up():
    pair = Pair()
    pair.open()
    start_ms = pair.now_ms
    for session in (pair.client, pair.server):
        session.tick(start_ms + 10_000)
        assert types(session.bytes_to_send()) == ["PING"]
        assert session.next_deadline_ms() == start_ms + 30_000
        session.tick(start_ms + 30_000)
        (closed,) = session.events()
        assert closed.code == "timeout" and not closed.fatal and closed.retry
    assert pair.client.state is ClientState.LOST and pair.server.state is ServerState.DETACHED


def test_traffic_keeps_the_server_from_probing():
    pair = Pair()
    pair.open()
    for sequence in range(1, 6):
        pair.later(9_000)
        pair.feed(sequence)
        pair.pump()
        pair.server.tick(pair.now_ms)
    assert pair.server.is_open and FrameType.PING not in {frame.type for frame in pair.down}


def test_a_peer_that_never_reads_cannot_make_control_frames_pile_up():
    pair = Pair()
    pair.open()
    for nonce in range(1000):
        pair.server.receive(frame_of(Ping(nonce=nonce, sent_ms=0)), pair.now_ms)
    assert only(Closed, pair.server.events())[0].code == "slow_peer"
    assert types(pair.server.bytes_to_send()) == ["ERROR"]


def test_an_error_that_is_not_fatal_reaches_the_owner_with_its_sequence():
    pair = Pair()
    pair.open()
    assert pair.server.send(Error(code="bad_window", detail="NaN in features", sequence=7))
    pair.pump()
    (event,) = pair.client.events()
    assert event.message == Error(code="bad_window", detail="NaN in features", sequence=7)
    assert pair.server.send(Error(code="internal", detail="boom", fatal=True))
    pair.pump()
    assert only(Closed, pair.client.events())[0].code == "internal" and not pair.server.is_open


def test_bytes_are_counted_with_their_headers():
    pair = Pair()
    pair.open()
    pair.feed(1, 2)
    pair.server.send(Result(sequence=1, window=1, capture_ms=0, uncertainty=0.0))
    pair.pump()
    assert pair.client.sent_bytes == pair.server.received_bytes == sum(frame.wire_bytes for frame in pair.up)
    assert pair.server.sent_bytes == pair.client.received_bytes == sum(frame.wire_bytes for frame in pair.down)


def test_a_clock_that_stands_still_or_ticks_early_does_no_harm():
    pair = Pair()
    pair.open()
    pair.client.tick(0.0)
    pair.client.tick(-5.0)
    pair.feed(1)
    pair.pump()
    assert pair.client.is_open and pair.server.received_through == 1
