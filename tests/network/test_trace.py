"""Bandwidth traces: reading, stepping through, and the generator's figures against the measured drives."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from streamsplit.errors import ConfigError
from streamsplit.network.trace import constant_trace, generate_trace, make_trace, read_trace, trace_runs


@pytest.fixture(scope="module")
def generated_mbps() -> list[np.ndarray]:
    return [generate_trace(3600, seed).rate_bps / 1e6 for seed in range(4)]


def test_a_trace_steps_and_repeats() -> None:
    trace = make_trace([0.0, 1.0, 3.0], [1e6, 0.0, 4e6], [10.0, 20.0, 30.0])
    assert trace.duration_s == 5.0
    assert trace.at(0.5) == (1e6, 10.0)
    assert trace.at(1.0) == (0.0, 20.0)
    assert trace.at(4.9) == (4e6, 30.0)
    assert trace.at(5.2) == (1e6, 10.0)


def test_sending_takes_the_integral_of_the_rate_across_dead_stretches_and_repeats() -> None:
    trace = make_trace([0.0, 1.0, 3.0], [1e6, 0.0, 4e6])
    assert trace.finish_s(0.0, 5e5) == pytest.approx(0.5)
    assert trace.finish_s(0.5, 1.5e6) == pytest.approx(3.25)  # 0.5 Mbit, 2 s of nothing, 1 Mbit at 4 Mbit/s
    assert trace.finish_s(0.0, 9e6 + 1e6) == pytest.approx(5.0 + 1.0)  # one whole repeat of 9 Mbit
    assert trace.finish_s(4.5, 2.5e6) == pytest.approx(5.5)
    assert math.isinf(constant_trace(0.0).finish_s(0.0, 1.0))


def test_finish_agrees_with_a_slow_integration_of_at() -> None:
    trace = generate_trace(20, seed=3)
    for start, bits in ((0.0, 1e6), (7.3, 5e7), (18.9, 3e8)):
        step, now, sent = 1e-3, start, 0.0
        while sent < bits:
            sent += trace.at(now)[0] * step
            now += step
        assert trace.finish_s(start, bits) == pytest.approx(now, abs=5e-3)


def test_an_outage_is_a_stretch_without_rate() -> None:
    trace = constant_trace(2e6)._replace(duration_s=60.0).with_outage(10.0, 20.0)
    assert [trace.at(t)[0] for t in (9.9, 10.0, 29.9, 30.0)] == [2e6, 0.0, 0.0, 2e6]


def test_the_generator_reproduces_the_measured_distribution(generated_mbps: list[np.ndarray]) -> None:
    rates = np.concatenate(generated_mbps)
    p5, p50, p95 = np.percentile(rates, [5, 50, 95])
    assert rates.mean() == pytest.approx(18.1, rel=0.25)
    assert 0.25 < p5 < 0.9  # measured 0.43
    assert p50 == pytest.approx(12.1, rel=0.3)
    assert p95 == pytest.approx(55.8, rel=0.25)


def test_the_generator_reproduces_the_measured_autocorrelation_and_spread(generated_mbps: list[np.ndarray]) -> None:
    drives = [np.log10(hour[i : i + 230]) for hour in generated_mbps for i in range(0, len(hour) - 230, 230)]
    assert np.sqrt(np.mean([drive.var() for drive in drives])) == pytest.approx(0.44, abs=0.12)
    for lag_s, measured in ((0.5, 0.82), (2, 0.57), (5, 0.36), (10, 0.20), (30, 0.0)):
        lag = int(lag_s * 2)
        found = np.mean([np.mean((d[lag:] - d.mean()) * (d[:-lag] - d.mean())) / d.var() for d in drives])
        assert found == pytest.approx(measured, abs=0.12), f"lag {lag_s} s"


def test_the_generator_has_dips_as_often_and_as_short_as_measured(generated_mbps: list[np.ndarray]) -> None:
    starts, lengths = 0, []
    for hour in generated_mbps:
        low = np.concatenate([[False], hour < 0.5, [False]])
        edges = np.flatnonzero(np.diff(low.astype(int)))
        starts += len(edges) // 2
        lengths += list((edges[1::2] - edges[::2]) * 0.5)
    assert 30 < starts / len(generated_mbps) < 140  # measured 67 an hour
    assert np.median(lengths) <= 2.0  # measured 0.9 s


def test_the_generators_round_trips_are_like_the_measured_ones() -> None:
    rtt = generate_trace(3600, 1).rtt_ms
    p50, p95, p99 = np.percentile(rtt, [50, 95, 99])
    assert 48 < p50 < 65 and 95 < p95 < 155 and 200 < p99 < 600


def test_the_generator_repeats_by_seed_and_a_level_holds_the_place() -> None:
    assert np.array_equal(generate_trace(60, 5).rate_bps, generate_trace(60, 5).rate_bps)
    assert not np.array_equal(generate_trace(60, 5).rate_bps, generate_trace(60, 6).rate_bps)
    poor = np.median([generate_trace(120, s, level=0.1).rate_bps for s in range(5)])
    rich = np.median([generate_trace(120, s, level=0.9).rate_bps for s in range(5)])
    assert rich > 3 * poor


def test_the_measured_drives_read_as_traces(data_dir: Path) -> None:
    path = data_dir / "traces" / "uplink_runs.csv.gz"
    runs = trace_runs(path)
    assert len(runs) == 332
    trace = read_trace(path, runs[5])
    assert trace.name == runs[5] and 60 < trace.duration_s < 300
    first = read_trace(path)
    assert first.at(0.6)[0] == pytest.approx(29.14e6)


def test_a_plain_trace_reads(tmp_path: Path) -> None:
    path = tmp_path / "link.csv"
    path.write_text("t,mbps,rtt\n0,1.5,40\n2,0.25,90\n")
    trace = read_trace(path)
    assert trace.at(3.0) == (0.25e6, 90.0) and trace_runs(path) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t,mbps\n0,fast\n", "link.csv:2"),
        ("time,rate\n0,1\n", "link.csv:2"),
        ("t,mbps\n", "no rows"),
        ("t,mbps\n0,-1\n", "not negative"),
        ("run,t_s,uplink_mbps\nabc,0,1\n", "abc"),
    ],
)
def test_a_bad_trace_names_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "link.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_trace(path, "abd" if "run" in text else None)


def test_a_missing_trace_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path / "none.csv")
