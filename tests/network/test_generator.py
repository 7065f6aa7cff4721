"""The built-in links: their figures against those of the measured drives, seeds, places."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from measured_figures import assert_like_the_measured_drives

from streamsplit.errors import ConfigError
from streamsplit.network.generator import ornstein_uhlenbeck
from streamsplit.network.statistics import trace_statistics
from streamsplit.network.trace import generate_trace


@pytest.mark.parametrize("first_seed", [0, 100, 200])
def test_the_generator_has_the_published_figures_of_the_measured_drives(first_seed: int) -> None:
    # Places change slowly (400 s): as many hours as these are needed before the mean of a link says much.
    traces = [generate_trace(6 * 3600, seed) for seed in range(first_seed, first_seed + 12)]
    assert_like_the_measured_drives(trace_statistics(traces))


def test_the_process_is_the_slow_recursion_that_defines_it() -> None:
    fast = ornstein_uhlenbeck(1000, 0.25, np.random.default_rng(4))
    noise = np.random.default_rng(4).standard_normal(1001)
    keep, value = math.exp(-0.25), noise[0]
    for index in range(1000):
        value = keep * value + math.sqrt(1 - keep * keep) * noise[index + 1]
        assert fast[index] == pytest.approx(value, abs=1e-12)


def test_an_hour_is_made_in_well_under_a_second() -> None:
    started = time.process_time()
    generate_trace(3600, 1)
    assert time.process_time() - started < 0.5


def test_the_generator_repeats_by_seed_and_a_level_holds_the_place() -> None:
    assert np.array_equal(generate_trace(60, 5).rate_bps, generate_trace(60, 5).rate_bps)
    assert not np.array_equal(generate_trace(60, 5).rate_bps, generate_trace(60, 6).rate_bps)
    poor = np.median([generate_trace(120, s, level=0.1).rate_bps for s in range(5)])
    rich = np.median([generate_trace(120, s, level=0.9).rate_bps for s in range(5)])
    assert rich > 3 * poor


def test_scales_multiply_rates_and_round_trips() -> None:
    plain, scaled = generate_trace(60, 5), generate_trace(60, 5, rate_scale=0.5, rtt_scale=2.0)
    assert np.allclose(scaled.rate_bps, plain.rate_bps / 2) and np.allclose(scaled.rtt_ms, plain.rtt_ms * 2)


def test_finer_steps_give_the_same_kind_of_link() -> None:
    found = trace_statistics([generate_trace(3 * 3600, seed, step_s=0.1) for seed in range(10)])
    assert found.mean_mbps == pytest.approx(18.1, abs=3) and found.autocorrelation[2.0] == pytest.approx(0.57, abs=0.1)


@pytest.mark.parametrize("wrong", [{"seconds": 0.1}, {"seconds": math.inf}, {"seconds": 9, "level": 1.0}])
def test_what_cannot_be_made_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        generate_trace(**wrong)
