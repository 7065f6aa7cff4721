"""The window of a transfer: what it allows for which delays, on paper and on a simulated link."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsplit.errors import RevisionError
from streamsplit.weights.pacing import CAP_BYTES, DelayWindow, PacedSender
from streamsplit.weights.transfer import WeightTransfer, unpack_chunk

CHUNK = 8192


def confirmed(window: DelayWindow, now_ms: float, delay_ms: float) -> float:
    """One chunk goes and is confirmed `delay_ms` later; returns that time."""
    window.on_sent(CHUNK, now_ms)
    assert window.on_confirmed(window.sent, now_ms + delay_ms)
    return now_ms + delay_ms


def test_one_chunk_may_be_under_way_at_first() -> None:
    window = DelayWindow(0, CHUNK)
    assert window.allows(CHUNK)
    window.on_sent(CHUNK, 0)
    assert not window.allows(1) and window.unconfirmed == CHUNK
    assert window.on_confirmed(CHUNK, 50) and window.unconfirmed == 0
    assert window.size == 2 * CHUNK  # no queue: grew by what was confirmed


def test_the_window_follows_the_queueing_delay() -> None:
    """Oracle: sizes worked out by hand from the law on the protocol page; the link's own delay is 50 ms."""
    window = DelayWindow(0, CHUNK)
    now = confirmed(window, 0, 50)
    assert window.size == 16384  # q = 0: + 8192
    now = confirmed(window, now, 75)
    assert window.size == 22528  # q = 25: + 6144
    now = confirmed(window, now, 150)
    assert window.size == 22528  # q = 100: stays
    now = confirmed(window, now, 200)
    assert window.size == 21038  # q = 150: - 4096, times 8192 / 22528 from now on above 22528 / 2
    now = confirmed(window, now, 340)
    assert window.size == 17848  # q = 290: - 8192 (no more than what was confirmed), times 8192 / 21038.5
    now = confirmed(window, now, 50)
    assert window.size == 21608  # + 8192, times 8192 / 17848.7
    now = confirmed(window, now, 351)
    assert window.size == CHUNK  # q = 301: one chunk
    now = confirmed(window, now, 50)
    assert window.size == 8192 + 8192  # below half of where the queue appeared it grows as at the start
    now = confirmed(window, now, 50)
    assert window.size == 16384 + 4096


def test_the_window_has_a_cap_in_bytes_and_in_chunks() -> None:
    large, small = DelayWindow(0, CHUNK), DelayWindow(0, 1024)
    for step in range(500):
        confirmed(large, 10 * step, 10)
        small.on_sent(1024, 10 * step)
        small.on_confirmed(small.sent, 10 * step + 10)
    assert large.size == CAP_BYTES == 256 << 10
    assert small.size == 64 * 1024


def test_a_confirmation_is_news_within_what_was_sent_or_nothing() -> None:
    window = DelayWindow(1000, CHUNK)
    window.on_sent(CHUNK, 0)
    assert not window.on_confirmed(1000, 1) and not window.on_confirmed(999, 1)
    assert not window.on_confirmed(1001 + CHUNK, 1)
    assert window.on_confirmed(1500, 1)  # a part of a chunk: no delay to learn from
    assert window.size == CHUNK and window.unconfirmed == CHUNK - 500
    assert window.on_confirmed(1000 + CHUNK, 2) and not window.on_confirmed(1000 + CHUNK, 3)


def test_one_confirmation_may_cover_many_chunks() -> None:
    window = DelayWindow(0, CHUNK)
    now = confirmed(window, 0, 10)
    window.on_sent(CHUNK, now)
    window.on_sent(CHUNK, now + 5)
    assert window.on_confirmed(3 * CHUNK, now + 15)
    assert window.unconfirmed == 0 and window.size == 4 * CHUNK


def test_a_link_that_became_slower_is_measured_again_after_half_a_minute() -> None:
    window = DelayWindow(0, CHUNK)
    now = confirmed(window, 0, 20)
    while now < 30_000:
        now = confirmed(window, now, 500)
        assert window.size == CHUNK  # looks like 480 ms of queue
    for _ in range(4):
        now = confirmed(window, now, 500)
    assert window.size > 2 * CHUNK


@given(st.lists(st.tuples(st.floats(0, 2000), st.integers(1, 4)), max_size=60))
def test_the_window_stays_in_its_bounds_and_never_blocks_for_good(steps: list[tuple[float, int]]) -> None:
    window, now = DelayWindow(0, CHUNK), 0.0
    for delay_ms, count in steps:
        for _ in range(count):
            if window.allows(CHUNK):
                window.on_sent(CHUNK, now)
        now += delay_ms
        assert window.on_confirmed(window.sent, now)
        assert CHUNK <= window.size <= CAP_BYTES
        assert window.allows(CHUNK)


def simulate(rate_bps: float, rtt_ms: float, seconds: float) -> tuple[float, list[float]]:
    """(share of the link used, queueing delay in ms of a small message sent every 50 ms) of an endless transfer over a
    link with an endless buffer; oracle: discrete events, nothing of the window's own bookkeeping."""
    window = DelayWindow(0, CHUNK)
    free_at, now, delays = 0.0, 0.0, []
    confirmations: list[tuple[float, int]] = []
    probe_at, done = 0.0, 0
    while now < 1000 * seconds:
        while window.allows(CHUNK):
            free_at = max(free_at, now) + 8000 * (CHUNK + 28) / rate_bps
            window.on_sent(CHUNK, now)
            heapq.heappush(confirmations, (free_at + rtt_ms, window.sent))
        now = confirmations[0][0]
        while probe_at < now:
            delays.append(max(0.0, free_at - probe_at))
            probe_at += 50
        _, offset = heapq.heappop(confirmations)
        window.on_confirmed(offset, now)
        done = offset
    return 8000 * done / rate_bps / now, delays


LINKS = [
    (1e6, 100, 0.9), (1e6, 20, 0.9), (5e6, 50, 0.9), (20e6, 60, 0.9), (1e6, 600, 0.7), (2.5e5, 60, 0.8),
    (1e5, 200, 0.7),
]  # fmt: skip


@pytest.mark.parametrize(("rate_bps", "rtt_ms", "share"), LINKS)
def test_a_transfer_uses_the_link_and_leaves_no_queue(rate_bps: float, rtt_ms: float, share: float) -> None:
    used, delays = simulate(rate_bps, rtt_ms, 60)
    own_ms = 8000 * CHUNK / rate_bps
    assert used > share
    assert sorted(delays)[int(0.95 * len(delays))] < 120 + 2 * own_ms  # the target, and whole chunks


def test_a_sender_hands_out_a_payload_that_arrives_whole() -> None:
    payload, revision = bytes(range(256)) * 100, "0" * 63 + "1"
    sender = PacedSender(revision, "", payload, 600, 1000)
    transfer = WeightTransfer(revision, len(payload))
    transfer._data += payload[:600]
    now = 0
    while not sender.done:
        chunk = sender.peek()
        assert chunk is not None and chunk == sender.peek()  # only looks
        sender.advance(now)
        assert transfer.add(chunk[0]) == chunk[1]
        assert len(unpack_chunk(chunk[0]).data) <= 1000
        now += 10
        assert sender.confirm(revision, "", transfer.received, now)
    assert bytes(transfer._data) == payload and sender.peek() is None


def test_a_request_that_is_no_confirmation_is_told_apart() -> None:
    revision, other = "1" * 64, "2" * 64
    sender = PacedSender(revision, other, bytes(5000), 0, 1000)
    sender.advance(0)
    assert not sender.confirm(revision, other, 0, 1)  # asks for the start again
    assert not sender.confirm(revision, "", 1000, 1) and not sender.confirm(other, other, 1000, 1)
    assert not sender.confirm(revision, other, 1001, 1)
    assert sender.confirm(revision, other, 1000, 1)
    with pytest.raises(RevisionError):
        PacedSender(revision, "", b"abc", 4)
