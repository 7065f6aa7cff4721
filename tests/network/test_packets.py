"""A link that loses packets in bursts, in virtual time: shares, bursts, delay, rate, seeds."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from streamsplit.errors import ConfigError
from streamsplit.network.bursts import BurstLoss, TimedLoss
from streamsplit.network.packets import PacketDirection, PacketLinkSettings


@pytest.mark.parametrize(("share", "burst"), [(0.05, 2.0), (0.2, 2.0), (0.1, 5.0), (0.3, 1.0)])
def test_so_much_is_lost_in_runs_of_such_a_length(share: float, burst: float) -> None:
    """Known answer: the stationary share, and runs that end with probability 1/burst."""
    model = BurstLoss(share, burst, random.Random(7).random)
    lost = [model.lost() for _ in range(200_000)]
    runs = [len(list(group)) for bad, group in itertools.groupby(lost) if bad]
    assert np.mean(lost) == pytest.approx(share, rel=0.06)
    if burst > 1:
        assert np.mean(runs) == pytest.approx(burst, rel=0.04)
        assert np.mean(np.array(runs) > 1) == pytest.approx(1 - 1 / burst, rel=0.05)


@pytest.mark.parametrize(("share", "burst"), [(1.0, 2.0), (-0.1, 2.0), (0.1, 0.5)])
def test_an_impossible_loss_is_refused(share: float, burst: float) -> None:
    with pytest.raises(ConfigError, match="expected 0 to below 1, and at least 1"):
        BurstLoss(share, burst, random.random)


@pytest.mark.parametrize("spacing_s", [0.001, 0.02, 0.3])
def test_bursts_in_time_lose_the_same_share_whoever_sends_when(spacing_s: float) -> None:
    """Known answer: two states with exponential times; the chance to be in the bad one again after a while."""
    model = TimedLoss(0.1, 0.03, random.Random(5))
    lost = np.array([model.lost(place * spacing_s) for place in range(200_000)])
    again = 0.1 + 0.9 * np.exp(-spacing_s / (0.03 * 0.9))
    assert lost.mean() == pytest.approx(0.1, rel=0.1)
    assert lost[1:][lost[:-1]].mean() == pytest.approx(again, abs=0.02)


def test_packets_take_the_delay_the_rate_and_the_jitter() -> None:
    plain = PacketDirection(PacketLinkSettings(one_way_ms=20.0, rate_bps=80_000.0))
    first, second = plain.arrival_s(1.0, 100), plain.arrival_s(1.0, 100)
    assert (first, second) == (pytest.approx(1.03), pytest.approx(1.04))  # 10 ms each on the wire
    shaky = PacketDirection(PacketLinkSettings(one_way_ms=20.0, jitter_ms=30.0, rate_bps=1e9), seed=3)
    sent = np.arange(2_000) * 0.02
    arrived = np.array([shaky.arrival_s(now, 100) for now in sent])
    late_ms = 1000 * (arrived - sent) - 20.0
    assert 0.0 <= late_ms.min() < 1.0 and 29.0 < late_ms.max() <= 30.1 and np.mean(late_ms) == pytest.approx(15, abs=1)
    assert (np.diff(arrived) < 0).any()  # some overtake others


def test_what_would_wait_too_long_is_lost_and_counted() -> None:
    link = PacketDirection(PacketLinkSettings(rate_bps=80_000.0, queue_ms=50.0))
    arrivals = [link.arrival_s(0.0, 100) for _ in range(20)]
    assert [arrival is not None for arrival in arrivals] == [True] * 6 + [False] * 14
    assert (link.packets, link.lost, link.bytes) == (20, 14, 2_000)


def test_a_seed_is_a_run() -> None:
    def run(seed: int) -> list[float | None]:
        link = PacketDirection(PacketLinkSettings(loss=0.2, jitter_ms=10.0), seed)
        return [link.arrival_s(0.02 * place, 120) for place in range(500)]

    assert run(1) == run(1) != run(2)
