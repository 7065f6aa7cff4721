"""Packets put back in order: every frame once, at its place, whatever was lost, repeated or late."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.codec.jitter import Play
from streamsplit.codec.reorder import ReorderBuffer


def packet(index: int) -> bytes:
    return b"\x48\x40packet %d" % index  # of Opus, 20 ms, with a copy of the frame before it


def test_what_comes_in_order_goes_out_at_once() -> None:
    buffer = ReorderBuffer(100.0)
    for index in range(5):
        buffer.push(index, packet(index), 20.0 * index)
        assert [(d.play, d.data, d.place) for d in buffer.take(20.0 * index)] == [(Play.PACKET, packet(index), index)]
    buffer.finish(5)
    assert buffer.complete and buffer.take(1e9, rest=True) == []


def test_a_packet_that_was_overtaken_is_waited_for_and_no_longer_than_was_said() -> None:
    buffer = ReorderBuffer(100.0)
    buffer.push(1, packet(1), 0.0)
    assert buffer.take(99.0) == []
    buffer.push(0, packet(0), 99.0)
    assert [d.place for d in buffer.take(99.0)] == [0, 1]
    buffer.push(4, packet(4), 200.0)
    assert buffer.take(299.9) == []
    given_up = buffer.take(300.0)
    assert [(d.play, d.place) for d in given_up] == [(Play.CONCEAL, 2), (Play.RECOVER, 3), (Play.PACKET, 4)]
    assert given_up[1].data == packet(4)  # the copy of frame 3 is in packet 4
    buffer.push(2, packet(2), 310.0)
    counts = buffer.counts
    assert (counts.received, counts.recovered, counts.concealed, counts.late, counts.lost) == (3, 1, 1, 1, 0)


def test_without_copies_in_the_packets_what_is_missing_is_concealed() -> None:
    buffer = ReorderBuffer(0.0, fec=False)
    buffer.push(2, packet(2), 0.0)
    assert [d.play for d in buffer.take(0.0)] == [Play.CONCEAL, Play.CONCEAL, Play.PACKET]


def test_an_end_without_any_frame_is_concealed_to_its_length_and_packets_beyond_it_are_none_of_it() -> None:
    buffer = ReorderBuffer(100.0)
    buffer.push(9, packet(9), 0.0)
    buffer.finish(3)
    buffer.push(5, packet(5), 0.0)
    assert not buffer.complete and [d.play for d in buffer.take(0.0, rest=True)] == [Play.CONCEAL] * 3
    assert buffer.complete


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    frames=st.integers(0, 40),
    arrivals=st.lists(st.tuples(st.integers(0, 45), st.floats(0.0, 60.0)), max_size=120),
    end_ms=st.floats(0.0, 3_000.0),
)
def test_every_place_goes_out_once_in_order_and_with_its_own_packet(
    frames: int, arrivals: list[tuple[int, float]], end_ms: float
) -> None:
    """Arrivals in any order, some twice, some never, some beyond the end; the end somewhere among them."""
    buffer, out, now_ms, ended = ReorderBuffer(100.0), [], 0.0, False
    for index, later_ms in arrivals:
        now_ms += later_ms
        if now_ms >= end_ms and not ended:
            buffer.finish(frames)
            ended = True
        buffer.push(index, packet(index), now_ms)
        out += buffer.take(now_ms)
    buffer.finish(frames)
    out += buffer.take(now_ms, rest=True)
    assert [d.place for d in out] == list(range(max(frames, len(out)))) and buffer.complete
    for decision in out:
        expected = {Play.PACKET: packet(decision.place), Play.RECOVER: packet(decision.place + 1), Play.CONCEAL: b""}
        assert decision.data == expected[decision.play]
    came = {index for index, _ in arrivals}
    assert {d.place for d in out if d.play is Play.PACKET} <= came
    counts = buffer.counts
    assert counts.played + counts.recovered + counts.concealed == len(out)
