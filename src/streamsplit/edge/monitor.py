"""The resource monitor: a thread that samples the device every 100 ms and turns pressure into a feature resolution."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from streamsplit.audio.resolution import ResolutionPolicy, ResolutionSettings, pressure
from streamsplit.config import Settings, section, setting
from streamsplit.edge.readings import Readings, ReadingSource
from streamsplit.wire.media import Resolution

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MonitorSettings(Settings):
    """How often to sample, how to smooth the load, and when to change resolution."""

    interval_ms: int = setting(100, low=10, high=10_000)
    smoothing: float = setting(0.3, low=0.01, high=1.0)  # weight of a new cpu sample
    adapt_resolution: bool = setting(True)
    report_s: float = setting(5.0, low=0.1)  # between two STATS messages to the server
    resolution: ResolutionSettings = section(ResolutionSettings)


class ResourceState(NamedTuple):
    """What the monitor knows at one moment."""

    readings: Readings  # cpu smoothed
    pressure: float  # R = 0.5 cpu + 0.3 memory + 0.15 (1 - battery) + 0.05 thermal
    resolution: Resolution
    failures: int = 0  # samples that the system refused so far


class ResourceMonitor:
    """Samples `readings` in a thread of its own; `state` is the newest, safe to read from any thread."""

    def __init__(
        self,
        readings: ReadingSource,
        settings: MonitorSettings | None = None,
        *,
        on_sample: Callable[[ResourceState], None] | None = None,
    ) -> None:
        self.settings = settings or MonitorSettings()
        self._readings = readings
        self._policy = ResolutionPolicy(self.settings.resolution)
        self._policy_state = self._policy.initial()
        self._on_sample = on_sample
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._state = ResourceState(Readings(0.0, 0.0), 0.0, Resolution.FULL)
        self._sampled = False

    @property
    def state(self) -> ResourceState:
        """The newest sample."""
        return self._state

    def sample(self) -> ResourceState:
        """Takes one sample now; the thread calls this every interval. A refused reading keeps the last values."""
        last = self._state
        try:
            seen = self._readings()
        except OSError as error:
            if not last.failures:
                log.warning("resource monitor: a reading failed (%s); going on with the last values", error)
            self._state = last._replace(failures=last.failures + 1)
            return self._state
        weight = self.settings.smoothing if self._sampled else 1.0
        self._sampled = True
        seen = seen._replace(cpu=last.readings.cpu + weight * (seen.cpu - last.readings.cpu))
        strain = pressure(*seen)
        resolution = Resolution.FULL
        if self.settings.adapt_resolution:
            resolution, self._policy_state = self._policy.step(strain, self._policy_state)
        self._state = ResourceState(seen, strain, resolution, last.failures)
        if self._on_sample is not None:
            self._on_sample(self._state)
        return self._state

    def start(self) -> None:
        """Starts the thread, with a first sample taken before it returns."""
        self.sample()
        self._thread = threading.Thread(target=self._run, name="resource-monitor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; harmless when it never started."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        interval_s = self.settings.interval_ms / 1000
        due = time.monotonic() + interval_s
        while not self._stop.wait(max(due - time.monotonic(), 0.0)):
            self.sample()
            due = max(due + interval_s, time.monotonic())
