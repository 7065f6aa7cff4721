"""Emulated devices: work that runs on this machine takes as long as it would on the slower one.

A piece of work is timed in thread CPU time (so that other processes on the host do not count), multiplied with the
device's factor, stretched by whatever else the device is busy with, and then waited for. What the device would have
been busy with is what its load monitor reports. In fast-forward nothing waits, but all of it is accounted.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from streamsplit.config import Settings, section, setting
from streamsplit.edge.readings import HostReadings, Readings
from streamsplit.errors import ConfigError
from streamsplit.splitting.device import DeviceProfile

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class BurstSettings(Settings):
    """Other work on the device that comes and goes: `share` of the processor for `length_s` in every `period_s`."""

    share: float = setting(0.0, low=0.0, high=0.98)
    period_s: float = setting(20.0, low=0.1)
    length_s: float = setting(8.0, low=0.0)
    offset_s: float = setting(6.0, low=0.0)  # start of the first burst
    base_share: float = setting(0.0, low=0.0, high=0.98)  # between bursts

    def check(self) -> None:
        """A burst must fit into its period."""
        if self.length_s > self.period_s:
            raise ConfigError(f"'length_s': got {self.length_s}, allowed <= period_s ({self.period_s})")

    def load(self, elapsed_s: float) -> float:
        """Share of the processor taken at a time since the start."""
        phase = (elapsed_s - self.offset_s) % self.period_s
        return self.share if elapsed_s >= self.offset_s and phase < self.length_s else self.base_share

    def takes_s(self, work_s: float, elapsed_s: float) -> float:
        """How long work that a free processor does in `work_s` takes from a time since the start on, through bursts."""
        now_s = elapsed_s
        while work_s > (share_s := (until_s := self._next_change_s(now_s) - now_s) * (1.0 - self.load(now_s))):
            work_s -= share_s
            now_s += until_s
        return now_s + work_s / (1.0 - self.load(now_s)) - elapsed_s

    def _next_change_s(self, elapsed_s: float) -> float:
        """When the next burst begins or this one ends; always later than now."""
        if elapsed_s < self.offset_s:
            return self.offset_s
        began_s = self.offset_s + (elapsed_s - self.offset_s) // self.period_s * self.period_s
        ends = (began_s + self.length_s, began_s + self.period_s)
        return next((end for end in ends if end > elapsed_s), math.nextafter(elapsed_s, math.inf))


@dataclass(frozen=True, kw_only=True)
class EmulationSettings(Settings):
    """Makes this process behave like the device named in `device.type`."""

    enabled: bool = setting(False)
    bursts: BurstSettings = section(BurstSettings)
    memory: float = setting(0.4, low=0.0, high=1.0)  # share in use
    battery_wh: float = setting(0.0, low=0.0)  # 0 = on mains
    battery_level: float = setting(1.0, low=0.0, high=1.0)  # at the start
    thermal_time_s: float = setting(60.0, low=1.0)  # how slowly the processor warms up to its load


class Spent(NamedTuple):
    """What one piece of work cost."""

    device_ms: float  # time that the device takes for it
    host_ms: float  # CPU time on this machine


class Emulator:
    """Runs work as the device would; several threads may use it at once, as on a device with several cores."""

    def __init__(
        self,
        device: DeviceProfile,
        settings: EmulationSettings | None = None,
        *,
        fast_forward: bool = False,
        clock_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        cpu_clock_s: Callable[[], float] = time.thread_time,
    ) -> None:
        self.device = device
        self.settings = settings or EmulationSettings()
        self.fast_forward = fast_forward
        self.busy_ms = 0.0  # device time spent on work so far
        self.host_ms = 0.0
        self._clock_s, self._sleep, self._cpu_clock_s = clock_s, sleep, cpu_clock_s
        self._start_s = clock_s()
        self._lock = threading.Lock()
        self._skipped_s = 0.0  # fast-forward: device time that was not waited for
        self._busy: deque[tuple[float, float]] = deque()  # (end, length), s, of work in the last second
        self._temperature = 0.0
        self._temperature_at_s = 0.0
        self._drained_mj = 0.0

    @property
    def elapsed_s(self) -> float:
        """The device's time since the start, fast-forwarded work included."""
        return self._clock_s() - self._start_s + self._skipped_s

    def run(self, work: Callable[[], T]) -> tuple[T, Spent]:
        """Does the work, waits until the device would have finished, and says what it cost."""
        started_s, elapsed_s = self._clock_s(), self.elapsed_s
        cpu_s = self._cpu_clock_s()
        result = work()
        host_ms = (self._cpu_clock_s() - cpu_s) * 1000
        device_ms = self.device_ms(host_ms, elapsed_s)
        left_s = device_ms / 1000 - (self._clock_s() - started_s)
        if self.fast_forward:
            with self._lock:
                self._skipped_s += max(left_s, 0.0)
        elif left_s > 0:
            self._sleep(left_s)
        with self._lock:
            self.busy_ms += device_ms
            self.host_ms += host_ms
            # whatever else runs has its own share: only our own part of the stretched time counts as ours
            self._busy.append((self.elapsed_s, host_ms * self.device.factor / 1000))
        return result, Spent(device_ms, host_ms)

    def device_ms(self, host_ms: float, elapsed_s: float) -> float:
        """How long the device takes for work of `host_ms` CPU time here, begun at its `elapsed_s`."""
        return self.settings.bursts.takes_s(host_ms * self.device.factor / 1000, elapsed_s) * 1000

    def own_load(self, window_s: float = 1.0) -> float:
        """Share of all cores that our own work took over the last `window_s`."""
        now = self.elapsed_s
        with self._lock:
            while self._busy and self._busy[0][0] < now - max(window_s, 1.0):
                self._busy.popleft()
            busy = sum(
                max(min(length, end - (now - window_s)), 0.0) for end, length in self._busy if end > now - window_s
            )
        return min(busy / (window_s * self.device.cores), 1.0)

    def cpu(self) -> float:
        """What the device's load monitor would show, in [0, 1]."""
        other = self.settings.bursts.load(self.elapsed_s)
        return min(other + (1.0 - other) * self.own_load(), 1.0)

    def drain(self, energy_mj: float) -> None:
        """Takes energy from the emulated battery."""
        with self._lock:
            self._drained_mj += energy_mj

    def __call__(self) -> Readings:
        """The emulated device's readings; a source for the monitor."""
        cpu = self.cpu()
        now = self.elapsed_s
        with self._lock:
            keep = math.exp(-(now - self._temperature_at_s) / self.settings.thermal_time_s)
            self._temperature = keep * self._temperature + (1.0 - keep) * cpu
            self._temperature_at_s = now
            thermal, drained = self._temperature, self._drained_mj
        battery = 1.0
        if self.settings.battery_wh:
            battery = max(self.settings.battery_level - drained / (self.settings.battery_wh * 3_600_000), 0.0)
        return Readings(cpu, self.settings.memory, battery, thermal)


class RealDevice:
    """This machine as it is: work is timed, nothing is stretched. Same interface as `Emulator`."""

    def __init__(
        self,
        device: DeviceProfile,
        *,
        clock_s: Callable[[], float] = time.monotonic,
        readings: HostReadings | None = None,
    ) -> None:
        self.device = device
        self.fast_forward = False
        self.busy_ms = 0.0
        self.host_ms = 0.0
        self._clock_s = clock_s
        self._readings = readings or HostReadings()

    def run(self, work: Callable[[], T]) -> tuple[T, Spent]:
        """Does the work and says how long it took (wall time) and what it cost (CPU time)."""
        started_s, cpu_s = self._clock_s(), time.thread_time()
        result = work()
        spent = Spent((self._clock_s() - started_s) * 1000, (time.thread_time() - cpu_s) * 1000)
        self.busy_ms += spent.device_ms
        self.host_ms += spent.host_ms
        return result, spent

    def drain(self, energy_mj: float) -> None:
        """A real battery drains by itself."""

    def __call__(self) -> Readings:
        """The host's readings."""
        return self._readings()
