"""Bandwidth traces: stepping through them, and how long sending takes."""

from __future__ import annotations

import math

import pytest

from streamsplit.network.trace import constant_trace, generate_trace, make_trace


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
