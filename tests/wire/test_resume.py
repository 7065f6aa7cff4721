"""Lost connections: what is resumed, replayed, forgotten, and who may resume."""

from __future__ import annotations

import pytest
from wire_pair import TOKEN, Pair, hello, only, result

from streamsplit.errors import ProtocolError
from streamsplit.wire.events import Closed, MessageReceived, Missed, Opened, ReplayDropped, WindowReceived
from streamsplit.wire.messages import Stats
from streamsplit.wire.session import ClientSession, ClientState, ServerState, SessionSettings
from streamsplit.wire.types import FrameFlag, FrameType


def results(pair: Pair) -> list[int]:
    return [event.message.sequence for event in only(MessageReceived, pair.client.events())]


def test_a_session_resumes_where_it_stood_in_both_directions():
    pair = Pair()
    pair.open(next_sequence=5)
    pair.feed(1, 2, 3)
    pair.pump()
    pair.server.acknowledge(2, pair.now_ms)  # the ack is never sent
    pair.server.send(result(1))
    pair.pump()
    pair.server.send(result(2))
    lost = pair.server.bytes_to_send()  # handed over, then the link dies
    assert len(lost) == 1
    pair.cut()
    assert pair.client.state is ClientState.LOST and pair.server.state is ServerState.DETACHED
    assert results(pair) == [1]
    pair.server.acknowledge(3, pair.now_ms)  # stored while nobody is there
    assert pair.server.send(result(3))
    assert pair.server.bytes_to_send() == []
    pair.later(5_000)
    fresh = pair.come_back(next_sequence=5)
    assert fresh.hello.resume_token == TOKEN and fresh.hello.received_through == 1
    assert pair.server.can_resume(fresh.hello, pair.now_ms)
    pair.server.events()
    told = pair.server.resume(fresh, pair.now_ms)
    assert told.resumed and told.received_through == 3 and told.session_id == "s-1"
    pair.down.clear()
    pair.pump()
    opened, *rest = pair.client.events()
    assert isinstance(opened, Opened) and opened.feed_from == 4
    assert [event.message.sequence for event in rest] == [2, 3]
    flags = [frame.flags for frame in pair.down if frame.type is FrameType.RESULT]
    assert flags == [FrameFlag.NUMBERED | FrameFlag.REPLAYED, FrameFlag.NUMBERED]
    pair.feed(4)
    pair.pump()
    assert [event.frame.sequence for event in only(WindowReceived, pair.server.events())] == [4]


def test_windows_still_on_their_way_into_the_store_are_not_given_out_twice():
    pair = Pair()
    pair.open(next_sequence=4)
    pair.feed(1, 2, 3)
    pair.pump()
    assert len(only(WindowReceived, pair.server.events())) == 3
    pair.server.acknowledge(1, pair.now_ms)
    pair.cut()
    told = pair.server.resume(pair.come_back(next_sequence=4), pair.now_ms)
    assert told.received_through == 1
    pair.pump()
    pair.up.clear()
    pair.feed(2, 3)
    pair.pump()
    assert [frame.flags for frame in pair.up] == [FrameFlag.NUMBERED | FrameFlag.REPLAYED] * 2
    assert pair.server.events() == [] and pair.server.duplicates == 2
    pair.server.acknowledge(3, pair.now_ms)
    pair.server.tick(pair.now_ms + 25)
    pair.client.events()
    pair.pump()
    assert pair.client.acked_through == 3


def test_an_ack_of_windows_carried_by_an_earlier_connection_moves_the_feed_forward():
    pair = Pair()
    pair.open(next_sequence=4)
    pair.feed(1, 2, 3)
    pair.pump()
    pair.cut()
    pair.server.resume(pair.come_back(next_sequence=4), pair.now_ms)
    pair.pump()
    pair.feed(1)  # queued again, not sent yet
    pair.server.acknowledge(3, pair.now_ms)
    pair.server.tick(pair.now_ms + 25)
    for data in pair.server.bytes_to_send():
        pair.client.receive(data, pair.now_ms)
    assert pair.client.acked_through == 3 and pair.client.next_sequence == 4 and pair.client.in_flight == 0
    assert pair.client.bytes_to_send() == []  # what the server has is not sent again
    assert not pair.client.send_window(FrameType.EMBEDDING, 2, 0, b"")


def test_a_device_may_come_back_before_the_server_noticed_that_it_was_gone():
    pair = Pair()
    pair.open(next_sequence=2)
    old_connection = pair.server.connection
    pair.client.disconnected(pair.now_ms)
    fresh = pair.come_back(next_sequence=2)
    assert pair.server.is_open and pair.server.can_resume(fresh.hello, pair.now_ms)
    pair.server.resume(fresh, pair.now_ms)
    pair.pump()
    assert pair.client.is_open
    pair.server.disconnected(pair.now_ms, old_connection)  # the old transport ends at last
    assert pair.server.is_open
    pair.server.disconnected(pair.now_ms, pair.server.connection)
    assert pair.server.state is ServerState.DETACHED


@pytest.mark.parametrize(
    "changes",
    [
        {"resume_token": b"resume-token-002"},
        {"resume_token": b""},
        {"resume_token": TOKEN[:-1]},
        {"device_id": "garden"},
        {"epoch": 78},
        {"received_through": 1},  # the session never sent anything
        {"oldest_sequence": 1, "next_sequence": 3},  # the store holds 3
    ],
)
def test_only_the_same_device_with_the_same_token_and_possible_positions_resumes(changes):
    pair = Pair()
    pair.open(next_sequence=5)
    pair.feed(1, 2, 3)
    pair.pump()
    pair.server.acknowledge(3, pair.now_ms)
    pair.cut()
    good = hello(resume_token=TOKEN, next_sequence=5)
    assert pair.server.can_resume(good, pair.now_ms)
    fields = {"resume_token": TOKEN, "next_sequence": 5, **changes}
    assert not pair.server.can_resume(hello(**fields), pair.now_ms)


def test_a_hello_that_does_not_resume_is_an_error_of_the_caller():
    pair = Pair()
    pair.open()
    pair.cut()
    fresh = pair.come_back(epoch=78)
    with pytest.raises(ProtocolError, match="does not resume session 's-1'"):
        pair.server.resume(fresh, pair.now_ms)
    assert fresh.state is ServerState.DECIDING  # still to be answered


def test_the_token_expires_at_both_ends():
    pair = Pair(server=SessionSettings(resume_expires_ms=60_000))
    pair.open()
    pair.cut()
    assert pair.server.next_deadline_ms() == pair.now_ms + 60_000
    pair.server.tick(pair.now_ms + 59_999)
    assert pair.server.state is ServerState.DETACHED
    assert pair.server.can_resume(hello(resume_token=TOKEN), pair.now_ms + 59_999)
    assert not pair.server.can_resume(hello(resume_token=TOKEN), pair.now_ms + 60_000)
    pair.server.tick(pair.now_ms + 60_000)
    assert pair.server.state is ServerState.CLOSED
    assert only(Closed, pair.server.events())[0].code == "resume_expired"
    assert not pair.server.send(result(1))
    pair.later(60_001)
    assert pair.come_back().hello.resume_token == b""


def test_a_detached_session_does_not_live_longer_by_losing_its_transport_again():
    pair = Pair(server=SessionSettings(resume_expires_ms=60_000))
    pair.open()
    pair.cut()
    pair.server.disconnected(pair.now_ms + 50_000)
    assert pair.server.next_deadline_ms() == pair.now_ms + 60_000


def test_a_new_session_starts_its_results_from_one_again():
    pair = Pair()
    pair.open()
    pair.server.send(result(1))
    pair.pump()
    pair.cut()
    fresh = pair.come_back()
    pair.server = fresh  # the server restarted and knows no session
    fresh.accept(pair.now_ms, session_id="s-2", resume_token=b"other")
    fresh.send(result(1))
    pair.client.events()
    pair.pump()
    assert pair.client.is_open and results(pair) == [1] and pair.client.received_through == 1


def test_a_restarted_device_has_no_token_and_gets_a_new_session():
    pair = Pair()
    pair.open(next_sequence=4)
    pair.cut()
    pair.client = ClientSession()
    fresh = pair.come_back(next_sequence=4, results_from=2)
    assert fresh.hello.resume_token == b"" and fresh.hello.results_from == 2
    assert not pair.server.can_resume(fresh.hello, pair.now_ms)


def test_another_epoch_never_uses_the_old_token():
    pair = Pair()
    pair.open()
    pair.cut()
    assert pair.come_back(epoch=78).hello.resume_token == b""


def test_the_replay_window_is_bounded_in_count_and_reports_what_it_dropped():
    pair = Pair(server=SessionSettings(replay_frames=3))
    pair.open()
    pair.cut()
    for sequence in range(1, 8):
        assert pair.server.send(result(sequence))
    assert only(ReplayDropped, pair.server.events()) == [ReplayDropped(1, 4)]
    assert len(pair.server.replay) == 3
    pair.server.resume(pair.come_back(), pair.now_ms)
    pair.pump()
    events = pair.client.events()
    assert only(Missed, events) == [Missed(1, 4)]
    assert [event.message.sequence for event in only(MessageReceived, events)] == [5, 6, 7]
    assert pair.client.is_open


def test_results_that_only_the_store_has_are_named_once_as_room_comes_up():
    pair = Pair(server=SessionSettings(replay_frames=4), client=SessionSettings(ack_every_frames=1))
    pair.open()
    pair.cut()
    for sequence in range(1, 10):
        pair.server.send(result(sequence))
    assert list(pair.server.results_wanted()) == []  # nobody is there
    pair.server.resume(pair.come_back(results_from=1), pair.now_ms)
    assert list(pair.server.results_wanted()) == []  # no room yet
    pair.pump()
    assert results(pair) == [6, 7, 8, 9]
    again = []
    while wanted := pair.server.results_wanted():
        assert len(wanted) <= 2
        for sequence in wanted:
            pair.server.send(result(sequence))
        pair.pump()
        again += results(pair)
    assert again == [1, 2, 3, 4, 5]
    assert only(ReplayDropped, pair.server.events()) == [ReplayDropped(1, 5)]


@pytest.mark.parametrize(("results_from", "stored", "wanted"), [(0, 5, []), (3, 5, [3, 4, 5]), (6, 5, [])])
def test_a_new_session_names_the_results_that_hello_asked_for(results_from, stored, wanted):
    pair = Pair()
    pair.open(received_through=stored, next_sequence=9, results_from=results_from)
    assert list(pair.server.results_wanted()) == wanted
    assert list(pair.server.results_wanted()) == []


def test_the_replay_window_is_bounded_in_bytes():
    pair = Pair(server=SessionSettings(replay_bytes=1000))
    pair.open()
    pair.cut()
    for sequence in range(1, 20):
        pair.server.send(result(sequence))
        assert pair.server.replay.bytes <= 1000
    dropped = only(ReplayDropped, pair.server.events())[0]
    assert dropped.first == 1 and dropped.last == 19 - len(pair.server.replay)


def test_a_device_that_does_not_acknowledge_costs_a_bounded_window_while_connected_too():
    pair = Pair(server=SessionSettings(replay_frames=2))
    pair.open()
    for sequence in range(1, 6):
        pair.server.send(result(sequence))
    pair.pump()
    events = pair.client.events()
    assert only(Missed, events) == [Missed(1, 3)]
    assert [event.message.sequence for event in only(MessageReceived, events)] == [4, 5]


def test_results_that_come_twice_are_given_out_once():
    pair = Pair()
    pair.open()
    pair.server.send(result(1))
    (data,) = pair.server.bytes_to_send()
    pair.client.receive(data, pair.now_ms)
    pair.client.receive(data, pair.now_ms)
    assert results(pair) == [1] and pair.client.duplicates == 1


def test_unsent_states_are_forgotten_with_the_connection():
    pair = Pair()
    pair.open()
    pair.client.send(Stats(windows_seen=9))
    pair.cut()
    pair.server.resume(pair.come_back(), pair.now_ms)
    pair.server.events()
    pair.pump()
    assert pair.server.events() == []


def test_acks_of_a_new_connection_do_not_speak_of_the_old_ones_times():
    pair = Pair(server=SessionSettings(ack_every_frames=1))
    pair.open(next_sequence=3)
    pair.feed(1)
    pair.pump()
    pair.cut()
    pair.server.resume(pair.come_back(next_sequence=3), pair.now_ms)
    pair.pump()
    pair.client.events()
    pair.server.acknowledge(1, pair.now_ms)
    pair.pump()
    (acked,) = pair.client.events()
    assert acked.through == 1 and acked.arrived_ms == 0 and acked.rtt_ms != acked.rtt_ms
