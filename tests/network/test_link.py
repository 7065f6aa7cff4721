"""One direction of a link against the trace's own slow stepping, and the order it keeps."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamsplit.network.link import LinkDirection
from streamsplit.network.trace import constant_trace, generate_trace, make_trace


def test_a_transmission_ends_when_the_traces_own_stepping_says_so() -> None:
    trace = generate_trace(600, 3).with_outage(100, 30)
    link = LinkDirection(trace)
    rng = np.random.default_rng(0)
    for start, size in zip(rng.uniform(0, 1500, 300), 10 ** rng.uniform(1, 8, 300), strict=True):
        assert link.finish_s(start, size) == pytest.approx(trace.finish_s(start, size * 8), abs=1e-6)


def test_bytes_queue_behind_one_another_and_arrive_half_a_round_trip_later() -> None:
    link = LinkDirection(constant_trace(8e3, rtt_ms=100.0))  # 1000 bytes a second
    assert link.schedule(0.0, 1000) == pytest.approx((1.0, 1.05))
    assert link.schedule(0.5, 500) == pytest.approx((1.5, 1.55))  # waits for the first
    assert link.schedule(5.0, 500) == pytest.approx((5.5, 5.55))  # finds the link idle


def test_a_falling_round_trip_does_not_let_bytes_overtake() -> None:
    link = LinkDirection(make_trace([0.0, 1.0], [1e9, 1e9], [1000.0, 10.0], duration_s=10.0))
    first, second = link.schedule(0.99, 10)[1], link.schedule(1.01, 10)[1]
    assert second == first == pytest.approx(0.99 + 0.5)


def test_the_clock_may_start_anywhere_in_the_trace() -> None:
    trace = make_trace([0.0, 10.0], [1e6, 2e6], [20.0, 40.0], duration_s=20.0)
    link = LinkDirection(trace, start_s=15.0)
    assert (link.rate_bps(0.0), link.rtt_ms(4.9), link.rate_bps(5.1)) == (2e6, 40.0, 1e6)
    assert link.schedule(0.0, 250_000)[0] == pytest.approx(1.0)


def test_a_dead_link_never_ends_and_a_cut_one_waits() -> None:
    assert LinkDirection(constant_trace(0.0)).schedule(0.0, 1) == (math.inf, math.inf)
    link = LinkDirection(constant_trace(8e3, rtt_ms=0.0))
    link.hold_until(3.0)
    assert link.schedule(0.0, 1000)[0] == pytest.approx(4.0)
