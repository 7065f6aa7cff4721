"""The jitter buffer: order, loss, lateness and stalls against what a listener would hear, with time as an argument."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.codec.jitter import JitterBuffer, JitterSettings, Play
from streamsplit.errors import ConfigError

FRAME = 20.0


HEAD = b"\x48\x40"  # of an Opus packet of 20 ms: no voice, and a copy of the frame before it


def packet(index: int) -> bytes:
    return HEAD + b"%d" % index


def number(data: bytes) -> int:
    return int(data[len(HEAD) :])


def run(
    arrivals: list[tuple[float, int]], frames: int, *, fec: bool = False, until_ms: float | None = None, **changes
) -> tuple[JitterBuffer, list[tuple[float, Play, bytes]]]:
    """Plays a stream whose packets arrive at these times; the end is known with the last arrival."""
    buffer = JitterBuffer(JitterSettings(**changes), fec=fec)
    arrivals = sorted(arrivals)
    last = arrivals[-1][0] if arrivals else 0.0
    decisions, now, at = [], 0.0, 0
    while now <= (until_ms or last + 2_000.0):
        while at < len(arrivals) and arrivals[at][0] <= now:
            buffer.push(arrivals[at][1], packet(arrivals[at][1]), arrivals[at][0])
            at += 1
        if at == len(arrivals) and now >= last:
            buffer.finish(frames)
        decision = buffer.pull(now)
        if decision.play is not Play.NOTHING:
            decisions.append((now, decision.play, decision.data))
        if decision.play is Play.END:
            break
        now += FRAME
    return buffer, decisions


def played(decisions: list[tuple[float, Play, bytes]]) -> list[int]:
    return [number(data) for _, play, data in decisions if play is Play.PACKET]


def test_a_steady_stream_plays_whole_and_as_soon_as_the_bound_allows() -> None:
    buffer, decisions = run([(20.0 * i + 7, i) for i in range(50)], 50)
    assert played(decisions) == list(range(50)) and decisions[-1][1] is Play.END
    assert decisions[0][0] == 60.0  # the first multiple of a frame that is 40 ms after the first packet
    counts = buffer.counts
    assert (counts.received, counts.played, counts.concealed, counts.lost, counts.late) == (50, 50, 0, 0, 0)


def test_messages_of_three_frames_are_waited_for_as_their_burst_asks() -> None:
    buffer, decisions = run([(60.0 * (i // 3) + 60, i) for i in range(60)], 60)
    assert played(decisions) == list(range(60)) and buffer.counts.concealed == 0
    assert buffer.target_ms == 60.0  # two frames of waiting in a message, and one


@pytest.mark.parametrize("late_ms", [25.0, 50.0])
def test_what_comes_out_of_order_is_played_in_order(late_ms: float) -> None:
    arrivals = [(20.0 * i + (late_ms if i % 6 == 4 else 0.0), i) for i in range(40)]
    assert [index for _, index in sorted(arrivals)] != list(range(40))
    buffer, decisions = run(arrivals, 40, least_ms=80.0)
    assert played(decisions) == list(range(40)) and buffer.counts.late == 0


def test_a_lost_packet_is_concealed_once_and_costs_no_delay() -> None:
    arrivals = [(20.0 * i, i) for i in range(100) if i not in (30, 60)]
    buffer, decisions = run(arrivals, 100)
    assert played(decisions) == [i for i in range(100) if i not in (30, 60)]
    assert [play for _, play, _ in decisions].count(Play.CONCEAL) == 2
    assert (buffer.counts.lost, buffer.counts.concealed, buffer.counts.late) == (2, 2, 0)
    times = [now for now, play, _ in decisions if play is not Play.END]
    assert times == [times[0] + FRAME * i for i in range(100)]


def test_forward_error_correction_is_used_where_the_packet_after_is_there() -> None:
    arrivals = [(20.0 * i, i) for i in range(60) if i not in (20, 40, 41)]
    buffer, decisions = run(arrivals, 60, fec=True)
    recovered = [number(data) for _, play, data in decisions if play is Play.RECOVER]
    assert recovered == [21, 42]  # 40 is gone: the packet behind it is lost, too
    assert (buffer.counts.recovered, buffer.counts.lost, buffer.counts.concealed) == (2, 1, 1)


def test_a_packet_after_its_time_is_late_not_lost_and_not_played() -> None:
    arrivals = [(20.0 * i, i) for i in range(50) if i != 25] + [(20.0 * 25 + 300, 25)]
    buffer, decisions = run(arrivals, 50)
    assert 25 not in played(decisions)
    assert (buffer.counts.late, buffer.counts.lost) == (1, 0)


def test_duplicates_are_counted_and_dropped() -> None:
    arrivals = [(20.0 * i, i) for i in range(20)] + [(20.0 * 10 + 1, 10), (390.0, 3)]
    buffer, decisions = run(arrivals, 20)
    assert played(decisions) == list(range(20)) and buffer.counts.duplicates == 2


def test_after_a_stall_nothing_is_lost_and_the_lag_comes_back_to_the_target() -> None:
    """A reliable link that stands still for 300 ms: everything arrives, in a bunch; then frames are left out, one in
    ten, until the delay is what the link asks for again."""
    arrivals = [(max(20.0 * i, 2_300.0 if 100 <= i < 116 else 0.0), i) for i in range(1_000)]
    buffer = JitterBuffer(JitterSettings(remembered=100))
    lags, at = [], 0
    for step in range(1_010):
        now = FRAME * step
        while at < 1_000 and arrivals[at][0] <= now:
            buffer.push(arrivals[at][1], b"", arrivals[at][0])
            at += 1
        buffer.pull(now)
        lags.append(buffer.lag_ms(now))
    assert buffer.counts.lost == buffer.counts.late == 0
    assert max(lags[100:150]) > 200.0  # it waited
    assert 0 < buffer.counts.concealed <= 25 and 5 <= buffer.counts.left_out <= 20
    assert lags[-20] <= 60.0  # and came back


def test_a_long_loss_costs_no_lasting_delay() -> None:
    """Forty packets never come: concealment, then comfort silence, then the next packet at its own time."""
    arrivals = [(20.0 * i, i) for i in range(300) if not 100 <= i < 140]
    buffer, decisions = run(arrivals, 300)
    plays = {now: (play, data) for now, play, data in decisions}
    start = decisions[0][0]
    assert plays[start + 20.0 * 250] == (Play.PACKET, packet(250))
    assert buffer.counts.lost == 40 and [play for _, play, _ in decisions].count(Play.COMFORT) >= 30
    assert buffer.counts.concealed == pytest.approx(40, abs=3)


def test_a_very_long_stall_is_cut_to_the_bound_at_once() -> None:
    arrivals = [(max(20.0 * i, 5_000.0 if i >= 50 else 0.0), i) for i in range(400)]
    buffer, _ = run(arrivals, 400, until_ms=5_040.0)
    assert buffer.lag_ms(5_040.0) <= 400.0 + FRAME and buffer.counts.left_out > 100


def test_a_sender_that_is_ahead_of_its_time_is_not_hurried() -> None:
    """An answer that is there all at once, and one that comes a second early: every frame plays, at its pace."""
    for arrivals in ([(0.0, i) for i in range(140)], [(max(0.0, 20.0 * i - 1_000), i) for i in range(400)]):
        buffer, decisions = run(arrivals, len(arrivals), until_ms=20_000.0)
        assert played(decisions) == list(range(len(arrivals))) and buffer.counts.left_out == 0


def test_live_sound_that_began_in_a_bunch_comes_back_to_its_target() -> None:
    """What was said before the link was there comes at once; the rest as it is said."""
    buffer, lags = JitterBuffer(), []
    buffer.live = True
    for index in range(400):
        now = 20.0 * index
        if index >= 20:
            for late in range(20) if index == 20 else ():
                buffer.push(late, b"", now)
            buffer.push(index, b"", now)
        buffer.pull(now)
        lags.append(buffer.lag_ms(now))
    assert max(lags[20:30]) >= 380.0 and lags[-1] <= 60.0 and buffer.counts.left_out == 18


def test_a_sender_that_pauses_is_waited_for_and_nothing_is_left_out_afterwards() -> None:
    arrivals = [(20.0 * i + (1_500.0 if i >= 50 else 0.0), i) for i in range(200)]
    buffer, decisions = run(arrivals, 200)
    assert played(decisions) == list(range(200)) and buffer.counts.left_out == 0


def test_a_short_utterance_plays_as_soon_as_it_is_whole() -> None:
    buffer = JitterBuffer()
    buffer.push(0, b"a", 10.0)
    buffer.finish(1)
    assert buffer.pull(10.0).play is Play.PACKET and buffer.pull(30.0).play is Play.END and buffer.over
    empty = JitterBuffer()
    empty.finish(0)
    assert empty.pull(0.0).play is Play.END


def test_it_never_holds_more_than_its_room() -> None:
    buffer = JitterBuffer(JitterSettings(most_frames=10))
    for index in range(50):
        buffer.push(index, b"", 0.0)
    assert buffer.held_ms <= 10 * FRAME and buffer.counts.left_out == 40


def test_the_target_follows_the_jitter_within_its_bounds() -> None:
    rng = np.random.default_rng(0)
    calm, wild = JitterBuffer(), JitterBuffer()
    for index in range(150):
        calm.push(index, b"", 20.0 * index + rng.uniform(0, 2))
        wild.push(index, b"", 20.0 * index + rng.uniform(0, 200))
    assert calm.target_ms == 40.0 and 180.0 <= wild.target_ms <= 220.0
    wilder = JitterBuffer()
    for index in range(150):
        wilder.push(index, b"", 20.0 * index + rng.uniform(0, 2_000))
    assert wilder.target_ms == 400.0
    with pytest.raises(ConfigError, match="least_ms"):
        JitterSettings(least_ms=500.0, most_ms=400.0)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_whatever_comes_frames_play_in_order_and_are_accounted_for(data: st.DataObject) -> None:
    frames = data.draw(st.integers(1, 80))
    delays = data.draw(st.lists(st.floats(0, 500), min_size=frames, max_size=frames))
    lost = data.draw(st.sets(st.integers(0, frames - 1), max_size=frames // 2))
    twice = data.draw(st.sets(st.integers(0, frames - 1), max_size=5)) - lost
    arrivals = [(20.0 * i + delays[i], i) for i in range(frames) if i not in lost]
    arrivals += [(20.0 * i + delays[i] + 3, i) for i in twice]
    buffer, decisions = run(arrivals, frames, fec=data.draw(st.booleans()), until_ms=20.0 * frames + 20_000)
    order = played(decisions)
    assert order == sorted(set(order)) and not lost & set(order)
    assert decisions[-1][1] is Play.END and buffer.over
    counts = buffer.counts
    assert counts.received + counts.duplicates + counts.late == len(arrivals)
    assert counts.played + counts.recovered + counts.lost + counts.late + counts.left_out <= frames + len(twice)
    assert counts.played == len(order)
