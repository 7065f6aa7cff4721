"""What goes into STATS of one look at a device: finite, within range, and otherwise as it was seen."""

from __future__ import annotations

import math

import pytest

from streamsplit.edge.counters import EdgeStatus
from streamsplit.edge.readings import Readings
from streamsplit.edge.status import stats_message

STATUS = EdgeStatus(
    device_id="pi", connection="open", elapsed_s=12.0, windows_seen=24, windows_sent=5, windows_skipped=18,
    windows_dropped=1, windows_rejected=0, results=4, queue_windows=2, queue_bytes=900, cut="3:int8", resolution=1,
    cpu=0.4, bandwidth_bps=2e6, rtt_ms=41.0, edge_ms=7.0, latency_ms=130.0, uncertainty=0.3, loss=1.7,
    effective_rank=33.0, learner_steps=8, uplink_bytes=7000, downlink_bytes=300, energy_mj=55.0, revision="a" * 64,
    dropped_audio_ms=0.0, problem="", policy="greedy", decisions=24, cut_changes=3, fallbacks=1, regret=0.2,
    collapsed=True,
)  # fmt: skip
READINGS = Readings(0.4, 0.5, 0.6, 0.7)


def test_stats_say_what_the_look_says():
    stats = stats_message(STATUS, READINGS)
    shared = [name for name in stats.__struct_fields__ if name in EdgeStatus._fields]
    assert len(shared) > 15
    assert {name: getattr(stats, name) for name in shared} == {name: getattr(STATUS, name) for name in shared}
    assert (stats.memory, stats.battery, stats.thermal) == (READINGS.memory, READINGS.battery, READINGS.thermal)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_link_and_a_latency_that_are_not_known_are_zero(value: float):
    stats = stats_message(STATUS._replace(bandwidth_bps=value, rtt_ms=value, latency_ms=value), READINGS)
    assert (stats.bandwidth_bps, stats.rtt_ms, stats.latency_ms) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("value", "share"), [(math.nan, 0.0), (-0.2, 0.0), (1.3, 1.0)])
def test_shares_stay_within_zero_and_one(value: float, share: float):
    stats = stats_message(STATUS, Readings(value, value, value, value))
    assert (stats.cpu, stats.memory, stats.battery, stats.thermal) == (share,) * 4
