"""Figures of a link: cases with a known answer, and the published figures of the measured drives where these are."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from measured_figures import assert_like_the_measured_drives

from streamsplit.network.drives import read_drives
from streamsplit.network.statistics import binned_mbps, trace_statistics
from streamsplit.network.trace import constant_trace, make_trace


def test_bins_hold_the_mean_rate_whatever_the_steps_are() -> None:
    trace = make_trace([0.0, 0.1, 0.5, 1.2], [10e6, 5e6, 0.0, 2e6], duration_s=1.5)
    assert binned_mbps(trace) == pytest.approx([6.0, 0.0, 2.0 * 0.3 / 0.5])
    assert binned_mbps(constant_trace(3e6)) == pytest.approx([3.0, 3.0])


def test_dips_are_counted_and_measured() -> None:
    mbps = np.full(1200, 5.0)  # ten minutes
    mbps[100:103], mbps[300:301], mbps[500:600] = 0.4, 0.0, 0.1
    found = trace_statistics([make_trace(np.arange(1200) * 0.5, mbps * 1e6)])
    assert found.dips_per_hour == pytest.approx(3 * 6)
    assert (found.dip_median_s, found.dip_longest_s) == (1.5, 50.0)
    assert found.runs == 5 and found.seconds == 600.0


def test_an_alternating_link_is_anticorrelated_and_a_constant_one_has_no_correlation() -> None:
    flips = make_trace(np.arange(400) * 0.5, np.tile([1e6, 10e6], 200))
    found = trace_statistics([flips])
    assert found.log10_sd == pytest.approx(0.5)
    assert found.autocorrelation[0.5] == pytest.approx(-1, abs=0.01) and found.autocorrelation[2.0] > 0.9
    still = trace_statistics([constant_trace(1e6, rtt_ms=30.0)])
    assert math.isnan(still.autocorrelation[2.0]) and math.isnan(still.dip_median_s)
    assert (still.mean_mbps, still.log10_sd, still.dips_per_hour, still.rtt_p99_ms) == (1.0, 0.0, 0.0, 30.0)


def test_round_trips_are_of_pings_that_came_back() -> None:
    trace = make_trace(np.arange(10) * 0.2, np.full(10, 1e6), [50.0] * 9 + [900.0], [0.0] * 9 + [1.0])
    found = trace_statistics([trace])
    assert found.rtt_p99_ms == 50.0 and found.ping_loss == pytest.approx(0.1)


def test_the_measured_drives_have_the_published_figures(data_dir: Path) -> None:
    assert_like_the_measured_drives(trace_statistics(read_drives(data_dir, (1, 2, 3))))
