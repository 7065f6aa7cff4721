"""Scenarios: where they go and when, and whether a place's link has the figures that are stated for it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from streamsplit.errors import ConfigError
from streamsplit.network import scenarios
from streamsplit.network.scenarios import ENVIRONMENTS, SCENARIOS, STEP_S, scenario_stretches, scenario_trace


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("duration_s", [30.0, 300.0, 1234.3])
def test_stretches_cover_the_duration_without_holes(name: str, duration_s: float) -> None:
    stretches = scenario_stretches(name, duration_s, seed=4)
    assert stretches[0].start_s == 0.0 and 0 <= stretches[-1].stop_s - duration_s < STEP_S
    assert all(before.stop_s == after.start_s for before, after in itertools.pairwise(stretches))
    assert scenario_trace(name, duration_s, seed=4).duration_s == stretches[-1].stop_s


def test_a_day_goes_from_home_by_train_to_the_office_and_back() -> None:
    places = [stretch.environment for stretch in scenario_stretches("daily", 300.0)]
    assert places == [
        "home-wifi", "urban-lte", "train", "office", "urban-lte", "office", "train", "urban-lte", "home-wifi",
    ]  # fmt: skip
    office = sum(s.stop_s - s.start_s for s in scenario_stretches("daily", 1600.0) if s.environment == "office")
    assert office == pytest.approx(800.0, abs=1.0)  # 8 of 16 hours


def test_the_link_follows_where_the_device_is() -> None:
    trace = scenario_trace("edge", 600.0, seed=1)
    for stretch in scenario_stretches("edge", 600.0, seed=1):
        inside = (trace.t_s >= stretch.start_s) & (trace.t_s < stretch.stop_s)
        assert np.all(trace.rate_bps[inside] == 0) == (stretch.environment == "outage")


@pytest.mark.parametrize("name", sorted(ENVIRONMENTS))
def test_a_places_link_has_its_stated_figures(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scenarios.SCENARIOS, "mobile", ((name, 1.0),))
    trace, place = scenario_trace("mobile", 40_000.0, seed=2), ENVIRONMENTS[name]
    assert place.basis
    assert np.median(trace.rtt_ms) == pytest.approx(place.rtt_ms, rel=0.03)
    assert trace.loss is not None and trace.loss.mean() == pytest.approx(place.loss, rel=0.25)
    alive = trace.rate_bps[trace.rate_bps > 0]
    down = 1 - len(alive) / len(trace.rate_bps)
    if place.rate_mbps == 0:
        assert down == 1
        return
    assert np.median(alive) == pytest.approx(place.rate_mbps * 1e6, rel=0.1)
    assert np.log10(alive).std() == pytest.approx(place.rate_log10_sd, rel=0.1)
    assert down == pytest.approx(place.outages_per_hour * place.outage_s / 3600, abs=0.015)


def test_scenarios_repeat_by_seed_and_random_ones_differ() -> None:
    assert np.array_equal(scenario_trace("daily", 60, 3).rate_bps, scenario_trace("daily", 60, 3).rate_bps)
    first, second = (scenario_stretches("random", 600, seed) for seed in (1, 2))
    assert first == scenario_stretches("random", 600, 1) != second
    assert all(a.environment != b.environment for a, b in itertools.pairwise(first))


def test_what_is_no_scenario_is_named() -> None:
    with pytest.raises(ConfigError, match="no scenario 'dayly'; did you mean 'daily'"):
        scenario_trace("dayly", 300)
    with pytest.raises(ConfigError, match="expected at least 9 s"):
        scenario_trace("daily", 5)
