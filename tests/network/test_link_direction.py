"""One direction of a link against the trace's own slow stepping, and the order it keeps."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamsplit.errors import ConfigError
from streamsplit.network.link import LinkDirection
from streamsplit.network.trace import BandwidthTrace, constant_trace, generate_trace, make_trace


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


def lossy(share: float, rtt_ms: float = 40.0) -> BandwidthTrace:
    return make_trace([0.0], [11.584e6], rtt_ms, share, duration_s=1.0)  # a segment of 1448 bytes takes 1 ms


def test_a_lost_piece_that_was_alone_arrives_a_round_trip_and_200_ms_later() -> None:
    link = LinkDirection(lossy(0.1), seed=1)
    waits = np.array([link.schedule(float(second), 1448)[1] - second for second in range(20_000)])
    assert waits.min() == pytest.approx(0.021)
    late = waits - waits.min()
    first, again = np.isclose(late, 0.24), np.isclose(late, 0.24 + 0.48)  # the timer doubles
    assert first.mean() == pytest.approx(0.05 * 0.95, rel=0.1)  # half of the pings' loss is of this direction
    assert again.mean() == pytest.approx(0.05**2 * 0.95, rel=0.4)
    assert np.mean(late < 1e-6) == pytest.approx(0.95, abs=0.005)


def test_a_lost_piece_in_a_queue_arrives_a_round_trip_later_and_holds_up_what_follows() -> None:
    link = LinkDirection(lossy(0.02), seed=3)
    arrivals = np.array([link.schedule(0.0, 1448)[1] for _ in range(2_000)])
    ideal = np.arange(1, 2_001) * 1e-3 + 0.020
    late = arrivals - ideal
    assert np.all(np.diff(arrivals) >= 0)
    jumps = np.flatnonzero(np.diff(late) > 0.0005) + 1
    assert len(jumps) > 5 and np.isclose(late[jumps[0]], 0.040)
    assert np.allclose(arrivals[jumps[0] : jumps[0] + 30], arrivals[jumps[0]])  # head-of-line blocking


def test_a_piece_of_many_segments_meets_losses_as_often_as_its_segments_do() -> None:
    link = LinkDirection(lossy(0.02), seed=5)
    late = [link.schedule(float(second), 20 * 1448)[1] - second > 0.1 for second in range(5_000)]
    assert np.mean(late) == pytest.approx(1 - 0.99**20, abs=0.02)


def test_losses_repeat_by_seed_and_only_where_the_trace_has_them() -> None:
    trace = make_trace([0.0, 10.0], [1e6, 1e6], 40.0, [0.0, 0.3], duration_s=20.0)

    def waits(seed: int) -> list[float]:
        link = LinkDirection(trace, seed=seed)
        return [link.schedule(at / 2, 100)[1] - at / 2 for at in range(80)]

    assert waits(1) == waits(1) != waits(2)
    assert max(waits(1)[:19]) < 0.03 < max(waits(1)[20:39])


def test_scaling_and_outages_keep_a_traces_losses() -> None:
    trace = make_trace([0.0, 10.0], [1e6, 1e6], 40.0, [0.0, 0.3], duration_s=20.0)
    assert trace.scaled(2.0).loss is trace.loss
    cut = trace.with_outage(8.0, 4.0)
    assert cut.loss is not None and cut.loss.tolist() == [0.0, 0.0, 0.3, 0.3]
    with pytest.raises(ConfigError, match="share of pings"):
        make_trace([0.0], [1e6], 40.0, 1.5)
