"""Emulated devices: work takes as long as on the device, and the device's load says so."""

from __future__ import annotations

import time

import numpy as np
import pytest

from streamsplit.edge.emulation import BurstSettings, EmulationSettings, Emulator, RealDevice
from streamsplit.errors import ConfigError
from streamsplit.splitting.device import device_profile


class Clock:
    """A wall clock and a CPU clock that only move when told."""

    def __init__(self) -> None:
        self.wall_s = 100.0
        self.cpu_s = 7.0
        self.slept_s = 0.0

    def compute(self, seconds: float) -> None:
        self.wall_s += seconds
        self.cpu_s += seconds

    def sleep(self, seconds: float) -> None:
        self.wall_s += seconds
        self.slept_s += seconds


def make(clock: Clock, device: str = "pi4", fast_forward: bool = False, **settings) -> Emulator:
    return Emulator(
        device_profile(device), EmulationSettings(enabled=True, **settings), fast_forward=fast_forward,
        clock_s=lambda: clock.wall_s, sleep=clock.sleep, cpu_clock_s=lambda: clock.cpu_s,
    )  # fmt: skip


def test_work_takes_as_long_as_on_the_device() -> None:
    clock = Clock()
    pi = make(clock)
    result, spent = pi.run(lambda: clock.compute(0.003) or "z")
    assert result == "z"
    assert spent.host_ms == pytest.approx(3.0) and spent.device_ms == pytest.approx(35.1)
    assert clock.wall_s - 100.0 == pytest.approx(0.0351)
    assert clock.slept_s == pytest.approx(0.0321)


def test_a_descheduled_host_counts_as_part_of_the_wait() -> None:
    clock = Clock()
    pi = make(clock)

    def work() -> None:
        clock.compute(0.002)
        clock.wall_s += 0.010  # the host ran somebody else

    pi.run(work)
    assert clock.wall_s - 100.0 == pytest.approx(0.0234)


def test_a_device_faster_than_the_host_never_waits() -> None:
    clock = Clock()
    fast = Emulator(
        device_profile("host", factor=0.5), clock_s=lambda: clock.wall_s, sleep=clock.sleep,
        cpu_clock_s=lambda: clock.cpu_s,
    )  # fmt: skip
    fast.run(lambda: clock.compute(0.01))
    assert clock.slept_s == 0.0


def test_load_is_the_busy_share_of_all_cores_and_fades() -> None:
    clock = Clock()
    pi = make(clock)  # four cores
    for _ in range(10):
        pi.run(lambda: clock.compute(0.1 / 11.7))  # 100 ms on the device, back to back
    assert pi.cpu() == pytest.approx(0.25, abs=0.01)
    clock.sleep(0.5)
    assert pi.cpu() == pytest.approx(0.125, abs=0.02)
    clock.sleep(2.0)
    assert pi.cpu() == 0.0


def test_a_burst_slows_work_down_and_shows_as_load() -> None:
    clock = Clock()
    pi = make(clock, bursts=BurstSettings(share=0.75, period_s=10.0, length_s=4.0, offset_s=2.0))
    assert pi.device_ms(1.0, pi.elapsed_s) == pytest.approx(11.7) and pi.cpu() == 0.0
    clock.sleep(3.0)
    assert pi.device_ms(1.0, pi.elapsed_s) == pytest.approx(46.8) and pi.cpu() == pytest.approx(0.75)
    clock.sleep(4.0)
    assert pi.device_ms(1.0, pi.elapsed_s) == pytest.approx(11.7)
    clock.sleep(6.0)  # 13 s: second period
    assert pi.cpu() == pytest.approx(0.75)


@pytest.mark.parametrize("start_s", [0.0, 1.9, 2.0, 3.7, 5.999, 6.0, 9.0, 11.95, 12.0])
@pytest.mark.parametrize("work_s", [0.0, 0.05, 1.0, 2.5, 30.0])
def test_long_work_is_as_slow_as_each_moment_of_it(start_s: float, work_s: float) -> None:
    bursts = BurstSettings(share=0.95, base_share=0.2, period_s=10.0, length_s=4.0, offset_s=2.0)
    moments_s = start_s + 0.01 * np.arange(6000)
    done_s = np.cumsum([1.0 - bursts.load(t) for t in moments_s]) * 0.01  # a plain sum
    expected_s = 0.01 * np.searchsorted(done_s, work_s)
    assert bursts.takes_s(work_s, start_s) == pytest.approx(expected_s, abs=0.03)


def test_work_that_begins_before_a_burst_is_slowed_by_it_and_ends_after_it() -> None:
    clock = Clock()
    pi = make(clock, bursts=BurstSettings(share=0.9, period_s=20.0, length_s=5.0, offset_s=1.0))
    _, spent = pi.run(lambda: clock.compute(3.0 / 11.7))  # one second free, half a second's worth in five, the rest
    assert spent.device_ms == pytest.approx(1000 + 5000 + 1500)


def test_fast_forward_accounts_without_waiting() -> None:
    clock = Clock()
    pi = make(clock, fast_forward=True)
    _, spent = pi.run(lambda: clock.compute(0.01))
    assert spent.device_ms == pytest.approx(117.0) and clock.slept_s == 0.0
    assert pi.elapsed_s == pytest.approx(0.117) and pi.busy_ms == pytest.approx(117.0)


def test_battery_drains_and_the_processor_warms_up() -> None:
    clock = Clock()
    pi = make(
        clock, battery_wh=1.0, battery_level=0.8, thermal_time_s=10.0,
        bursts=BurstSettings(base_share=0.5, share=0.5, period_s=1.0, length_s=1.0),
    )  # fmt: skip
    assert pi().battery == pytest.approx(0.8)
    pi.drain(0.5 * 3_600_000)
    assert pi().battery == pytest.approx(0.3)
    clock.sleep(10.0)
    assert pi().thermal == pytest.approx(0.5 * (1 - 0.3679), abs=0.01)
    clock.sleep(100.0)
    assert pi().thermal == pytest.approx(0.5, abs=0.01)


def test_a_burst_longer_than_its_period_is_refused() -> None:
    with pytest.raises(ConfigError, match="length_s"):
        BurstSettings(period_s=5.0, length_s=6.0)


def test_with_real_clocks_a_slow_device_is_slow_in_real_time() -> None:
    pi = Emulator(device_profile("pi4"), EmulationSettings(enabled=True))

    def work() -> None:
        end = time.thread_time() + 0.01
        while time.thread_time() < end:
            pass

    started = time.monotonic()
    _, spent = pi.run(work)
    took_ms = (time.monotonic() - started) * 1000
    assert spent.device_ms >= 117.0
    assert took_ms == pytest.approx(spent.device_ms, rel=0.15)


def test_a_real_device_is_only_timed() -> None:
    device = RealDevice(device_profile("host"))
    result, spent = device.run(lambda: sum(range(1000)))
    assert result == 499500 and spent.device_ms >= 0.0
    seen = device()
    assert 0.0 <= seen.cpu <= 1.0 and 0.0 < seen.memory < 1.0 and 0.0 <= seen.battery <= 1.0
