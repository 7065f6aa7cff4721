"""What a device's sensors say about it: load, memory, battery, temperature."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import psutil

COOL_C, HOT_C = 45.0, 85.0  # thermal pressure 0 and 1; small boards throttle at 80 to 85 degrees


class Readings(NamedTuple):
    """One sample, each in [0, 1]."""

    cpu: float  # load of all cores
    memory: float  # share in use
    battery: float = 1.0  # 1 = full, or on mains
    thermal: float = 0.0  # 0 at 45 degrees or below, 1 at 85


ReadingSource = Callable[[], Readings]


class HostReadings:
    """Reads this machine through psutil; what it does not have (battery, temperature) counts as no pressure."""

    def __init__(self) -> None:
        psutil.cpu_percent(None)  # the first call only sets the reference point

    def __call__(self) -> Readings:
        """One sample; raises OSError where the system refuses to tell."""
        return Readings(
            psutil.cpu_percent(None) / 100.0, psutil.virtual_memory().percent / 100.0, self._battery(), self._thermal()
        )

    @staticmethod
    def _battery() -> float:
        battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
        return 1.0 if battery is None or battery.power_plugged else min(max(battery.percent / 100.0, 0.0), 1.0)

    @staticmethod
    def _thermal() -> float:
        sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
        hottest = max((entry.current for group in sensors.values() for entry in group if entry.current), default=COOL_C)
        return min(max((hottest - COOL_C) / (HOT_C - COOL_C), 0.0), 1.0)
