"""Selective transmission: the formula's known answers, warm-up, link tiers, silence limit."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from streamsplit.errors import CheckpointError, ConfigError
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.transmission import GateSettings, Transmission, UncertaintyGate

FAST = Observation(bandwidth_bps=8e6, bandwidth_age_ms=0.0, battery=1.0)
HUNDRED = np.random.default_rng(0).permutation(np.arange(1.0, 101.0))


def warmed(**settings) -> UncertaintyGate:
    gate = UncertaintyGate(GateSettings(warm_up_windows=100, longest_silence_windows=0, **settings))
    for value in HUNDRED:
        assert gate.decide(FAST._replace(uncertainty=float(value))).action is Transmission.SEND
    return gate


BASE = 70.3  # numpy's linear 70th percentile of 1..100


@pytest.mark.parametrize(
    ("bps", "battery", "threshold"),
    [
        (8e6, 1.0, BASE),
        (0.5e6, 1.0, 1.5 * BASE),  # bandwidth at N_min: + 50 %
        (8e6, 0.2, 1.5 * BASE),  # battery at B_min: + 50 %
        (0.5e6, 0.2, 2.0 * BASE),
        (4.25e6, 0.6, 1.5 * BASE),  # both half way: + 25 % each
        (1e9, 1.0, BASE),  # outside the range counts as its end
        (0.0, 0.0, 2.0 * BASE),
        (math.nan, 1.0, BASE),
    ],
)
def test_the_v1_threshold_is_the_papers_formula(bps, battery, threshold):
    gate = warmed(version="v1")
    assert gate.threshold(FAST._replace(bandwidth_bps=bps, battery=battery)) == pytest.approx(threshold)


def test_v1_keeps_the_base_of_its_warm_up_and_v2_follows_the_stream():
    v1, v2 = warmed(version="v1"), warmed(version="v2", memory_windows=100)
    for value in HUNDRED:
        v1.decide(FAST._replace(uncertainty=float(value) + 1000))
        v2.decide(FAST._replace(uncertainty=float(value) + 1000))
    assert v1.threshold(FAST) == pytest.approx(BASE)
    assert v2.threshold(FAST) == pytest.approx(1000 + BASE)


def test_v2_sends_about_thirty_percent_of_a_stationary_stream():
    gate = UncertaintyGate(GateSettings(longest_silence_windows=0))
    rng = np.random.default_rng(1)
    sent = [
        gate.decide(FAST._replace(uncertainty=u)).action is Transmission.SEND for u in rng.gamma(2.0, 1.0, size=4000)
    ]
    assert np.mean(sent[200:]) == pytest.approx(0.30, abs=0.03)


@pytest.mark.parametrize(
    ("bps", "action"),
    [
        (0.51e6, Transmission.SEND),
        (0.5e6, Transmission.EMBEDDING_ONLY),
        (0.11e6, Transmission.EMBEDDING_ONLY),
        (0.1e6, Transmission.KEEP),
        (0.0, Transmission.KEEP),
        (math.nan, Transmission.SEND),
    ],
)
def test_an_uncertain_window_goes_as_far_as_the_link_carries(bps, action):
    observation = FAST._replace(uncertainty=1e9, bandwidth_bps=bps)
    assert warmed(version="v1").decide(observation).action is action
    assert warmed(version="v2").decide(observation).action is action


def test_a_certain_window_is_kept_and_an_unknown_one_sent():
    gate = warmed()
    assert gate.decide(FAST._replace(uncertainty=1.0)).action is Transmission.KEEP
    assert gate.decide(FAST._replace(uncertainty=math.nan)).action is Transmission.SEND


def test_silence_has_a_limit_even_on_a_dead_slow_link():
    gate = UncertaintyGate(GateSettings(warm_up_windows=1, longest_silence_windows=3))
    gate.decide(FAST._replace(uncertainty=5.0))
    slow = FAST._replace(uncertainty=1.0, bandwidth_bps=10.0)
    actions = [gate.decide(slow).action for _ in range(8)]
    assert actions == ([Transmission.KEEP] * 3 + [Transmission.EMBEDDING_ONLY]) * 2


def test_a_link_that_is_down_stops_nothing_for_the_queue_waits():
    gate = warmed()
    assert gate.decide(FAST._replace(uncertainty=1e9, bandwidth_bps=0.0, link_up=False)).action is Transmission.SEND


def test_a_threshold_from_the_server_replaces_the_gates_own():
    gate = warmed()
    gate.fix_threshold(500.0)
    assert gate.decide(FAST._replace(uncertainty=499.0)).action is Transmission.KEEP
    assert gate.decide(FAST._replace(uncertainty=501.0)).action is Transmission.SEND
    gate.fix_threshold(math.nan)
    assert gate.threshold(FAST) < 200


def test_a_restored_gate_goes_on_as_if_it_had_never_stopped():
    for version in ("v1", "v2"):
        first = UncertaintyGate(GateSettings(version=version))
        values = np.random.default_rng(3).uniform(0, 4, 300)
        for value in values[:120]:
            first.decide(FAST._replace(uncertainty=float(value)))
        second = UncertaintyGate(GateSettings(version=version))
        second.load_state(json.loads(json.dumps(first.state())))
        assert second.threshold(FAST) == first.threshold(FAST)
        for value in values[120:]:
            window = FAST._replace(uncertainty=float(value))
            assert second.decide(window).threshold == first.decide(window).threshold


@pytest.mark.parametrize("state", [{}, {"version": "v1", "seen": 3, "base": 1.0, "recent": []}, {"recent": "x"}])
def test_a_state_that_does_not_fit_changes_nothing(state):
    gate = warmed()
    before = gate.state()
    with pytest.raises(CheckpointError, match="anew"):
        gate.load_state(state)
    assert gate.state() == before


def test_a_new_embedding_space_warms_up_anew():
    gate = warmed()
    assert not math.isnan(gate.threshold(FAST))
    gate.restart()
    assert math.isnan(gate.threshold(FAST))
    assert gate.decide(FAST._replace(uncertainty=0.0)).action is Transmission.SEND


def test_a_gate_that_is_off_sends_everything():
    gate = UncertaintyGate(GateSettings(enabled=False))
    assert {gate.decide(FAST._replace(uncertainty=0.0)).action for _ in range(100)} == {Transmission.SEND}


def test_the_memory_of_the_gate_is_bounded():
    gate = UncertaintyGate(GateSettings(memory_windows=64))
    for value in range(10_000):
        gate.decide(FAST._replace(uncertainty=float(value)))
    assert len(gate._recent) == 64


def test_ranges_that_are_empty_are_refused():
    with pytest.raises(ConfigError, match="critical_bps"):
        GateSettings(critical_bps=1e6, low_bps=0.5e6)
    with pytest.raises(ConfigError, match="low_battery"):
        GateSettings(low_battery=0.9, high_battery=0.5)


@pytest.mark.parametrize("percentile", [0.0, 37.5, 70.0, 99.0, 100.0])
def test_the_percentile_is_numpys_of_what_is_remembered(percentile):
    settings = GateSettings(percentile=percentile, warm_up_windows=9, memory_windows=32)
    gate, rng, seen = UncertaintyGate(settings), np.random.default_rng(0), []
    for step in range(600):
        if step == 300:
            gate.restart()
            seen.clear()
        if step == 450:  # a restart of the device goes on where it was
            state, gate = gate.state(), UncertaintyGate(settings)
            gate.load_state(state)
        expected = float(np.percentile(seen[-32:], percentile)) if len(seen) >= 9 else math.nan
        uncertainty = math.nan if rng.random() < 0.05 else float(np.round(rng.gamma(2.0, 0.3), 1 + step % 3))
        threshold = gate.decide(Observation(uncertainty=uncertainty, bandwidth_bps=5e6)).threshold
        assert threshold == expected or (math.isnan(threshold) and math.isnan(expected))
        if not math.isnan(uncertainty):
            seen.append(uncertainty)
