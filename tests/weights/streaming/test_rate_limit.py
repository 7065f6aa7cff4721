"""The limit on bytes a second: known answers, and never more than the rate over any stretch of time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamsplit.weights.streaming.rate import RateLimit


def test_after_a_burst_bytes_wait_for_their_turn():
    limit = RateLimit(1000.0, 500.0)
    assert limit.wait_s(500, 10.0) == 0.0
    assert limit.wait_s(250, 10.0) == 0.25
    assert limit.wait_s(250, 10.0) == 0.5  # behind those
    assert limit.wait_s(100, 11.0) == 0.0  # the debt of 500 is paid, 500 more are free
    assert limit.wait_s(500, 100.0) == 0.0 and limit.wait_s(1, 100.0) == 0.001  # no more than a burst is saved up


def test_no_limit_never_waits():
    limit = RateLimit(0.0, 1.0)
    assert [limit.wait_s(10**12, now) for now in (0.0, 0.0, 1.0)] == [0.0, 0.0, 0.0]


@given(st.lists(st.tuples(st.integers(1, 2000), st.floats(0.0, 2.0)), min_size=1, max_size=60))
def test_no_more_goes_than_the_rate_and_one_burst_allow(takes: list[tuple[int, float]]):
    limit, now, goes = RateLimit(1000.0, 700.0), 0.0, []
    for size, pause in takes:
        now += pause
        goes.append((now + limit.wait_s(size, now), size))
    for index in range(len(goes)):
        sent = sum(size for _, size in goes[index:])
        allowed = 700.0 + 1000.0 * (max(at for at, _ in goes[index:]) - goes[index][0]) + max(goes[index][1], 700.0)
        assert sent <= allowed + 1e-6 * len(goes) * 1000
