"""The link estimator against simulated links whose rate and round trip are known."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest

from streamsplit.splitting.link import LinkEstimator, LinkSettings


class Ack(NamedTuple):
    through: int
    held_ms: float
    arrived_ms: int


class Link:
    """A first-in first-out link in virtual time: rate, one-way delays, a receiver with another clock."""

    def __init__(self, bps: float, up_ms: float, down_ms: float, clock_ms: float = 123_456.0) -> None:
        self.bps, self.up_ms, self.down_ms, self.clock_ms = bps, up_ms, down_ms, clock_ms
        self.free_ms = 0.0

    def carry(self, size: int, now_ms: float) -> float:
        """Arrival time of the last byte, on the sender's clock."""
        self.free_ms = max(self.free_ms, now_ms) + size * 8000.0 / self.bps
        return self.free_ms + self.up_ms


def run(link, estimator, frames, held_ms=0.0, every=1, jitter=None):
    """Sends (time, size) frames, acknowledges every `every`-th; returns the time of the last ack."""
    estimator.on_rtt(link.up_ms + link.down_ms, 0.0)
    events = []
    for sequence, (now_ms, size) in enumerate(frames, start=1):
        events.append((now_ms, 0, (sequence, size)))
        arrived = link.carry(size, now_ms)
        if sequence % every == 0:
            late = held_ms + link.down_ms + (0.0 if jitter is None else jitter())
            ack = Ack(sequence, held_ms, round(arrived + link.clock_ms))
            events.append((arrived + late, 1, ack))
    for now_ms, kind, what in sorted(events, key=lambda event: (event[0], event[1])):
        if kind == 0:
            estimator.on_sent(*what, now_ms)
        else:
            estimator.on_ack(what, now_ms)
    return max(event[0] for event in events)


@pytest.mark.parametrize("mbps", [0.05, 0.2, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("rtt_ms", [2.0, 40.0, 200.0])
def test_a_window_now_and_then_shows_the_rate_without_filling_the_link(mbps, rtt_ms):
    estimator = LinkEstimator()
    interval = max(500.0, 6_436 * 8 / (mbps * 1e3) * 1.5)
    end = run(Link(mbps * 1e6, rtt_ms / 2, rtt_ms / 2), estimator, [(i * interval, 6_436) for i in range(20)])
    estimate = estimator.estimate(end)
    # arrival times travel in whole milliseconds: 1 ms of error on the transmission time
    assert estimate.bandwidth_bps == pytest.approx(mbps * 1e6, rel=0.05 + 1.1 * mbps * 1e3 / (6_436 * 8))
    assert estimate.rtt_ms == pytest.approx(rtt_ms)
    assert estimate.bandwidth_age_ms == 0.0 and estimate.outstanding_bytes == 0


@pytest.mark.parametrize("every", [1, 4])
def test_a_link_kept_full_shows_its_rate_through_held_and_jittered_acks(every):
    rng = np.random.default_rng(3)
    estimator = LinkEstimator()
    frames = [(i * 30.0, 6_436) for i in range(80)]  # 1.7 Mbit/s offered to 1 Mbit/s
    end = run(Link(1e6, 30, 10), estimator, frames, held_ms=25.0, every=every, jitter=lambda: rng.exponential(15.0))
    assert estimator.estimate(end).bandwidth_bps == pytest.approx(1e6, rel=0.07)


def test_the_estimate_is_an_exponential_average_of_weight_three_tenths():
    estimator = LinkEstimator()
    estimator.on_rtt(0.0, 0.0)
    estimator.on_sent(1, 10_000, 0.0)
    estimator.on_ack(Ack(1, 0.0, 0), 80.0)  # 10 kB in 80 ms: 1 Mbit/s
    assert estimator.estimate(80.0).bandwidth_bps == pytest.approx(1e6)
    estimator.on_sent(2, 10_000, 1000.0)
    estimator.on_ack(Ack(2, 0.0, 0), 1040.0)  # 2 Mbit/s
    assert estimator.estimate(1040.0).bandwidth_bps == pytest.approx(0.3 * 2e6 + 0.7 * 1e6)
    estimator.on_rtt(100.0, 1100.0)
    assert estimator.estimate(1100.0).rtt_ms == pytest.approx(30.0)


def test_a_rate_step_is_followed_within_ten_windows():
    link, estimator = Link(4e6, 20, 20), LinkEstimator()
    run(link, estimator, [(i * 500.0, 6_436) for i in range(10)])
    link.bps = 0.4e6
    for i in range(10, 20):
        now = i * 500.0
        estimator.on_sent(i + 1, 6_436, now)
        arrived = link.carry(6_436, now)
        estimator.on_ack(Ack(i + 1, 0.0, round(arrived + link.clock_ms)), arrived + 20)
    assert estimator.estimate(arrived + 20).bandwidth_bps == pytest.approx(0.4e6, rel=0.35)


def test_embeddings_alone_never_lower_the_estimate_and_let_it_age():
    link, estimator = Link(2e6, 20, 20), LinkEstimator()
    run(link, estimator, [(i * 500.0, 12_000) for i in range(10)])
    before = estimator.estimate(10_000.0)
    for i in range(20):
        now = 10_000.0 + 500 * i
        estimator.on_sent(100 + i, 292, now)
        estimator.on_ack(Ack(100 + i, 0.0, 0), now + 90.0)  # a busy server: slow, for no fault of the link
    after = estimator.estimate(20_000.0)
    assert after.bandwidth_bps == before.bandwidth_bps
    assert after.bandwidth_age_ms == pytest.approx(before.bandwidth_age_ms + 10_000.0)
    assert after.rtt_ms > before.rtt_ms and after.rtt_age_ms < 1000


def test_bytes_that_do_not_arrive_lower_the_rate_before_any_ack():
    link, estimator = Link(4e6, 20, 20), LinkEstimator()
    end = run(link, estimator, [(i * 500.0, 6_436) for i in range(10)])
    estimator.on_sent(11, 6_436, 6000.0)
    assert estimator.estimate(6050.0).bandwidth_bps == estimator.estimate(end).bandwidth_bps
    stalled = estimator.estimate(16_000.0)
    assert stalled.bandwidth_bps < 6_000 and stalled.bandwidth_age_ms == 0.0
    assert stalled.outstanding_bytes == 6_436


def test_nothing_is_known_before_the_first_round_trip():
    estimator = LinkEstimator()
    estimator.on_sent(1, 100_000, 0.0)
    estimator.on_ack(Ack(1, 0.0, 5), 500.0)
    estimate = estimator.estimate(500.0)
    assert math.isnan(estimate.bandwidth_bps) and math.isinf(estimate.bandwidth_age_ms)
    assert math.isnan(estimate.rtt_ms)


def test_a_lost_connection_forgets_what_was_under_way_and_keeps_the_estimates():
    link, estimator = Link(1e6, 20, 20), LinkEstimator()
    end = run(link, estimator, [(i * 500.0, 6_436) for i in range(10)])
    estimator.on_sent(11, 6_436, end)
    estimator.lost()
    estimate = estimator.estimate(end + 60_000.0)
    assert estimate.outstanding_bytes == 0
    assert estimate.bandwidth_bps == pytest.approx(1e6, rel=0.05)
    estimator.on_ack(Ack(11, 0.0, 1), end + 60_001.0)  # about a frame of the old connection: says nothing
    assert estimator.estimate(end + 60_001.0).bandwidth_bps == estimate.bandwidth_bps


def test_memory_is_bounded_by_what_is_under_way():
    link, estimator = Link(1e6, 5, 5), LinkEstimator(LinkSettings(smoothing=0.5))
    run(link, estimator, [(i * 100.0, 3_000) for i in range(2_000)])
    assert len(estimator._sent) == 0


def test_a_queue_is_what_the_newest_probe_or_one_under_way_waits_longer_than_the_least_of_its_connection():
    estimator = LinkEstimator()
    assert math.isnan(estimator.estimate(0.0).queue_ms) and estimator.estimate(0.0).rtt_samples == 0
    for now_ms, rtt_ms in ((100.0, 60.0), (200.0, 40.0), (400.0, 190.0)):
        estimator.on_rtt(rtt_ms, now_ms)
    assert estimator.estimate(500.0).queue_ms == 150.0 and estimator.estimate(500.0).rtt_samples == 3
    estimator.on_probe(600.0)
    assert estimator.estimate(700.0).queue_ms == 150.0 and estimator.estimate(1_000.0).queue_ms == 360.0
    estimator.lost()
    assert math.isnan(estimator.estimate(1_000.0).queue_ms)
    estimator.on_rtt(90.0, 1_100.0)
    assert estimator.estimate(1_100.0).queue_ms == 0.0  # the new connection may go another way
