"""The resource monitor: pressure to resolution, smoothing, sensors that fail."""

from __future__ import annotations

import threading

from streamsplit.edge.monitor import MonitorSettings, ResourceMonitor
from streamsplit.edge.readings import HostReadings, Readings
from streamsplit.wire.media import Resolution


def monitor(values: list[Readings], **settings) -> ResourceMonitor:
    left = iter(values)
    return ResourceMonitor(lambda: next(left), MonitorSettings(**settings))


def test_high_pressure_reduces_the_resolution_and_low_pressure_restores_it_with_hysteresis() -> None:
    loads = [0.2, 1.0, 1.0, 0.9, 0.85, 0.2]
    watched = monitor([Readings(load, 0.8) for load in loads], smoothing=1.0)
    seen = [watched.sample().resolution for _ in loads]
    full, reduced = Resolution.FULL, Resolution.REDUCED
    # R = 0.5 cpu + 0.24: 0.34, 0.74, 0.74, 0.69, 0.665, 0.34 against 0.73 up, 0.65 down
    assert seen == [full, reduced, reduced, reduced, reduced, full]


def test_load_is_smoothed_from_the_first_sample_on() -> None:
    watched = monitor([Readings(1.0, 0.0), Readings(0.0, 0.0), Readings(0.0, 0.0)], smoothing=0.5)
    assert [watched.sample().readings.cpu for _ in range(3)] == [1.0, 0.5, 0.25]


def test_pressure_weighs_all_four() -> None:
    watched = monitor([Readings(0.4, 0.6, 0.5, 1.0)], smoothing=1.0)
    assert abs(watched.sample().pressure - (0.2 + 0.18 + 0.075 + 0.05)) < 1e-9


def test_resolution_can_be_held() -> None:
    watched = monitor([Readings(1.0, 1.0)], adapt_resolution=False)
    assert watched.sample().resolution is Resolution.FULL


def test_a_failing_sensor_keeps_the_last_values_and_is_counted(caplog) -> None:
    calls = 0

    def readings() -> Readings:
        nonlocal calls
        calls += 1
        if 1 < calls < 4:
            raise OSError("no such sensor")
        return Readings(0.1 * calls, 0.5)

    watched = ResourceMonitor(readings, MonitorSettings(smoothing=1.0))
    states = [watched.sample() for _ in range(4)]
    assert [state.failures for state in states] == [0, 1, 2, 2]
    assert [round(state.readings.cpu, 3) for state in states] == [0.1, 0.1, 0.1, 0.4]
    assert caplog.text.count("no such sensor") == 1


def test_the_thread_samples_until_it_is_stopped() -> None:
    enough = threading.Event()
    count = 0

    def sampled(_: object) -> None:
        nonlocal count
        count += 1
        if count >= 5:
            enough.set()

    watched = ResourceMonitor(HostReadings(), MonitorSettings(interval_ms=10), on_sample=sampled)
    watched.start()
    assert enough.wait(5)
    watched.stop()
    after = count
    assert watched.state.readings.memory > 0 and count == after
