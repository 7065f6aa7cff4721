"""Pressure and the hysteresis of the resolution."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsplit.audio.resolution import ResolutionPolicy, ResolutionSettings, pressure
from streamsplit.errors import ConfigError
from streamsplit.wire.media import Resolution


def run(policy: ResolutionPolicy, values: list[float], **keywords: bool) -> tuple[list[Resolution], float]:
    state, seen = policy.initial(), []
    for value in values:
        resolution, state = policy.step(value, state, **keywords)
        seen.append(resolution)
    return seen, state.threshold


def test_pressure_is_the_weighted_sum_of_the_paper():
    assert pressure(1.0, 0.0, 1.0, 0.0) == pytest.approx(0.5)
    assert pressure(0.0, 1.0, 1.0, 0.0) == pytest.approx(0.3)
    assert pressure(0.0, 0.0, 0.0, 0.0) == pytest.approx(0.15)
    assert pressure(0.0, 0.0, 1.0, 1.0) == pytest.approx(0.05)
    assert pressure(7.0, 7.0, -7.0, 7.0) == pytest.approx(1.0)


def test_high_pressure_means_reduced_and_the_band_holds_what_was():
    full, reduced = Resolution.FULL, Resolution.REDUCED
    seen, _ = run(ResolutionPolicy(), [0.5, 0.72, 0.74, 0.72, 0.66, 0.64, 0.72])
    assert seen == [full, full, reduced, reduced, reduced, full, full]


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60))
def test_there_is_at_most_one_switch_per_crossing_of_the_band(values: list[float]):
    seen, _ = run(ResolutionPolicy(), values)
    switches = sum(a is not b for a, b in zip([Resolution.FULL, *seen], seen, strict=False))
    crossings, above = 0, False
    for value in values:
        if (value > 0.73) if not above else (value < 0.65):
            above = not above
            crossings += 1
    assert switches == crossings


def test_noise_inside_the_band_never_switches():
    seen, _ = run(ResolutionPolicy(), [0.66, 0.72] * 50)
    assert set(seen) == {Resolution.FULL}


def test_a_failed_sensor_keeps_what_is_in_force():
    policy = ResolutionPolicy()
    _, state = policy.step(0.9, policy.initial())
    assert policy.step(float("nan"), state) == (Resolution.REDUCED, state)


def test_the_adaptive_threshold_rises_when_idle_and_falls_when_overloaded_within_its_bounds():
    policy = ResolutionPolicy(ResolutionSettings(adaptive=True))
    assert run(policy, [0.1])[1] == pytest.approx(0.70 * 1.02)
    assert run(policy, [0.1], quality_fine=False)[1] == 0.70
    assert run(policy, [0.1] * 200)[1] == 0.9
    assert run(policy, [1.0] * 300)[1] == 0.5
    assert run(ResolutionPolicy(), [1.0] * 300)[1] == 0.70


def test_a_threshold_outside_its_bounds_is_refused():
    with pytest.raises(ConfigError, match="threshold"):
        ResolutionSettings(threshold=0.4)
