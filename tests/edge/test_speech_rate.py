"""What speech is coded at, on links in virtual time: down where a queue grows, up where there is room, and steady."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from streamsplit.edge.speech_rate import SpeechRate
from streamsplit.edge.talk_settings import BitrateSettings, TalkSettings
from streamsplit.errors import ConfigError
from streamsplit.network.bandwidth import BandwidthTrace, constant_trace, make_trace
from streamsplit.network.link import LinkDirection
from streamsplit.splitting.link import LinkEstimate, LinkEstimator

HEADERS, PROBE = 46, 52  # bytes
STEP_MS, MESSAGE_MS = 20.0, 60.0


class Talk:
    """Messages of three frames at the present rate and probes over a link; the answers to probes take 20 ms back."""

    def __init__(self, trace: BandwidthTrace, jitter_ms: float = 0.0, **changes: float) -> None:
        self.settings = BitrateSettings(**changes)
        self.rate = SpeechRate(self.settings, 24_000, 32_000)
        self.link = LinkDirection(trace, jitter_ms)
        self.estimator = LinkEstimator()
        self.rates: list[int] = []
        self.queues_ms: list[float] = []
        self.now_ms = 0.0
        self._probe: float | None = None
        self._answered_ms = math.inf
        self.estimator.on_rtt(45.0, 0.0)

    def run(self, seconds: float) -> None:
        probed_ms = -math.inf
        for _ in range(round(1000 * seconds / STEP_MS)):
            self.now_ms += STEP_MS
            if self.now_ms >= self._answered_ms:
                assert self._probe is not None
                self.estimator.on_rtt(self._answered_ms - self._probe, self._answered_ms)
                self._probe, self._answered_ms = None, math.inf
            if round(self.now_ms) % round(MESSAGE_MS) == 0:
                size = HEADERS + round(self.rate.bps * MESSAGE_MS / 8000)
                leaves_s, _ = self.link.schedule(self.now_ms / 1000, size)
                self.queues_ms.append(1000 * leaves_s - self.now_ms)
            if self._probe is None and self.now_ms - probed_ms >= self.settings.probe_ms:
                self._probe = probed_ms = self.now_ms
                self._answered_ms = 1000 * self.link.schedule(self.now_ms / 1000, PROBE)[1] + 20.0
            self.estimator.on_probe(self._probe)
            self.rates.append(self.rate.follow(self.estimator.estimate(self.now_ms), self.now_ms))


def test_down_to_8_kbit_where_the_link_carries_20_and_up_again_where_it_carries_a_thousand() -> None:
    talk = Talk(make_trace([0.0, 5.0, 15.0], [1e6, 20e3, 1e6], 40.0, duration_s=1e6))
    talk.run(5.0)
    assert talk.rates[-1] == 32_000
    talk.run(3.0)
    assert talk.rates[-1] == 8_000
    talk.run(7.0)
    assert set(talk.rates[-100:]) <= {8_000, 10_000} and max(talk.queues_ms[-10:]) < 500.0
    talk.run(8.0)
    assert talk.rates[-1] >= 15_000
    talk.run(32.0)
    assert talk.rates[-1] == 32_000


def test_a_link_that_carries_some_of_it_is_used_without_swinging() -> None:
    """30 kbit/s carry 22 of speech beside the headers and probes; what is above is tried now and then, not always."""
    talk = Talk(constant_trace(30e3, 40.0))
    talk.run(120.0)
    later = talk.rates[len(talk.rates) // 4 :]
    changes = sum(a != b for a, b in pairwise(later))
    assert 15_000 <= sum(later) / len(later) <= 22_000
    assert changes <= 90 / 3 and sorted(talk.queues_ms)[len(talk.queues_ms) // 2] < 120.0


def test_jitter_and_one_late_probe_change_nothing_and_a_stuck_one_does() -> None:
    rate = SpeechRate(BitrateSettings(), 24_000, 24_000)
    estimator = LinkEstimator()
    for sample, rtt_ms in enumerate((40.0, 60.0, 900.0, 45.0, 90.0, 300.0, 40.0)):
        estimator.on_rtt(rtt_ms, 500.0 * sample)
        assert rate.follow(estimator.estimate(500.0 * sample), 500.0 * sample) == 24_000
    estimator.on_probe(3_500.0)
    assert rate.follow(estimator.estimate(3_700.0), 3_700.0) == 24_000
    assert rate.follow(estimator.estimate(3_900.0), 3_900.0) == 12_000
    assert rate.follow(estimator.estimate(4_000.0), 4_000.0) == 12_000  # it has to show first
    assert rate.follow(estimator.estimate(4_400.0), 4_400.0) == 8_000


def test_silence_is_no_sign_of_room() -> None:
    rate = SpeechRate(BitrateSettings(), 16_000, 32_000)
    calm = LinkEstimate(math.nan, math.inf, 40.0, 0.0, 0, 0.0, 40.0, 0.0, 1)
    for step in range(100):
        rate.rest(100.0 * step)
    assert rate.follow(calm, 10_000.0) == 16_000 and rate.follow(calm, 11_000.0) == 16_000
    assert rate.follow(calm, 11_500.0) == 20_000


def test_where_windows_are_acknowledged_speech_takes_a_quarter_of_their_rate_and_follows_no_noise() -> None:
    rate = SpeechRate(BitrateSettings(), 24_000, 32_000)
    for bps, expected in ((20e3, 8_000), (64e3, 16_000), (68e3, 16_000), (10e6, 32_000), (math.nan, 32_000)):
        assert rate.follow(LinkEstimate(bps, 100.0, 20.0, 100.0, 0), 0.0) == expected
    assert rate.follow(LinkEstimate(20e3, 60_000.0, 20.0, 100.0, 0), 0.0) == 32_000  # of a minute ago


def test_small_messages_leave_less_for_speech_and_bounds_are_checked() -> None:
    assert TalkSettings().most_bps == 32_000
    assert TalkSettings(frames_per_message=1).most_bps == 40_000 - 8 * 42 * 50
    with pytest.raises(ConfigError, match="'least_bps': got 9000"):
        BitrateSettings(least_bps=9_000, most_bps=8_000)
    with pytest.raises(ConfigError, match="'room_ms': got 200"):
        BitrateSettings(room_ms=200.0)
