"""Measurements in the seed's terms: a collector of what a run costs (the figures of an embedding: quality.py)."""

from __future__ import annotations

import csv
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from streamsplit.errors import ConfigError, StreamSplitError
from streamsplit.evaluation.quality import MetricResult, check_device, evaluate_embeddings
from streamsplit.splitting.device import device_profile

__all__ = ["MetricResult", "MetricsCollector", "evaluate_embeddings"]

MAX_SAMPLES = 36_000  # of each series; the oldest go


@dataclass
class _Recorded:
    """What one measurement has gathered."""

    samples: list[tuple[float, float, int]] = field(default_factory=list)  # monotonic s, share of cores, RSS bytes
    latencies_ms: list[float] = field(default_factory=list)
    adaptations_ms: list[float] = field(default_factory=list)
    cuts: Counter[str] = field(default_factory=Counter)
    quality: dict[str, float] = field(default_factory=dict)
    confusion: dict[str, dict[str, int]] | None = None  # counts by true and by predicted label
    uplink_bytes: int | None = None
    downlink_bytes: int | None = None


class MetricsCollector:
    """Measures this process between `start_monitoring` and `stop_monitoring`: CPU, memory, and what is recorded.

    A thread samples every `interval_s`. CPU time and memory are the process's own, as the operating system reports
    them; energy is the device table's model at the measured load, never a measurement. Traffic, latencies and cuts
    count as they are recorded; what was not recorded is None in the report.
    """

    def __init__(self, device: str = "cpu", *, profile: str = "host", interval_s: float = 0.1) -> None:
        """`device` is the compute device ('cpu', 'cuda'), `profile` the row of the device table for the energy."""
        check_device(device)
        if interval_s <= 0:
            raise ConfigError(f"got interval_s {interval_s}, expected a positive number of seconds")
        self.device, self.profile, self.interval_s = device, device_profile(profile), interval_s
        self._process = psutil.Process()
        self._cores = psutil.cpu_count() or 1
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._started_s = self._stopped_s = math.nan
        self._cpu_before_s = self._cpu_after_s = 0.0
        self._last: tuple[float, float] | None = None
        self._held = _Recorded()

    def start_monitoring(self) -> None:
        """Begins a new measurement; raises StreamSplitError while one is running."""
        if self._thread is not None:
            raise StreamSplitError("got start_monitoring while monitoring runs, expected stop_monitoring first")
        self._held, self._last = _Recorded(), None
        self._stop.clear()
        self._started_s, self._stopped_s = time.monotonic(), math.nan
        self._cpu_before_s = self._cpu_s()
        self._sample(self._started_s, self._cpu_before_s)
        self._thread = threading.Thread(target=self._run, name="streamsplit-metrics", daemon=True)
        self._thread.start()

    def stop_monitoring(self) -> None:
        """Ends the measurement; nothing happens when none is running."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        self._stopped_s, self._cpu_after_s = time.monotonic(), self._cpu_s()

    def __enter__(self) -> MetricsCollector:
        self.start_monitoring()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_monitoring()

    def record_traffic(self, *, uplink_bytes: int = 0, downlink_bytes: int = 0) -> None:
        """Adds bytes as counted on the socket."""
        with self._lock:
            self._held.uplink_bytes = (self._held.uplink_bytes or 0) + uplink_bytes
            self._held.downlink_bytes = (self._held.downlink_bytes or 0) + downlink_bytes

    def record_latency(self, latency_ms: float) -> None:
        """Adds one window's time from its end to its result."""
        with self._lock:
            self._held.latencies_ms.append(float(latency_ms))
            del self._held.latencies_ms[:-MAX_SAMPLES]

    def record_adaptation(self, adaptation_ms: float) -> None:
        """Adds one time from a step in the conditions to the first window decided as the new ones ask for."""
        with self._lock:
            self._held.adaptations_ms.append(float(adaptation_ms))
            del self._held.adaptations_ms[:-MAX_SAMPLES]

    def record_cut(self, cut: Any) -> None:
        """Counts one split decision."""
        with self._lock:
            self._held.cuts[str(cut)] += 1

    def record_evaluation(self, results: Mapping[str, MetricResult]) -> None:
        """Puts the figures of `evaluate_embeddings` into the report: the numbers and the confusion matrix."""
        with self._lock:
            self._held.quality = {
                name: float(result.value) for name, result in results.items() if np.ndim(result.value) == 0
            }
            self._held.confusion = _confusion(results)

    def get_comprehensive_report(self) -> dict[str, Any]:
        """Everything measured so far, as plain numbers, with the units in the names; raises before the first start."""
        if math.isnan(self._started_s):
            raise StreamSplitError("got no measurement, expected start_monitoring first")
        running = self._thread is not None
        elapsed_s = (time.monotonic() if running else self._stopped_s) - self._started_s
        cpu_s = (self._cpu_s() if running else self._cpu_after_s) - self._cpu_before_s
        load = min(1.0, cpu_s / max(elapsed_s, 1e-9) / self._cores)
        with self._lock:
            memory = [row[2] for row in self._held.samples]
            loads = [row[1] for row in self._held.samples[1:]]
            uplink, downlink = self._held.uplink_bytes, self._held.downlink_bytes
            energy_mj = self.profile.total_mj(1000 * elapsed_s, load, uplink or 0, link_up=uplink is not None)
            return {
                "duration_s": elapsed_s,
                "device": self.device,
                "resources": {
                    "cpu_time_s": cpu_s,
                    "cpu_share": load,
                    "cpu_share_max": max(loads, default=load),
                    "cores": self._cores,
                    "rss_mean_mb": float(np.mean(memory)) / 1e6,
                    "rss_max_mb": max(memory) / 1e6,
                    "samples": len(memory),
                },
                "energy": {
                    "total_j": energy_mj / 1000,
                    "profile": self.profile.name,
                    "model": "idle + load + radio, not measured",
                },
                "communication": {
                    "uplink_bytes": uplink,
                    "downlink_bytes": downlink,
                    "uplink_mb_per_h": None if uplink is None else _per_hour(uplink, elapsed_s),
                    "downlink_mb_per_h": None if downlink is None else _per_hour(downlink, elapsed_s),
                },
                "latency_ms": _percentiles(self._held.latencies_ms),
                "adaptation_ms": _percentiles(self._held.adaptations_ms),
                "cuts": dict(self._held.cuts),
                "quality": dict(self._held.quality),
                "confusion_matrix": self._held.confusion,
            }

    def export_metrics(self, path: str | Path, format: str = "json") -> Path:
        """Writes the report and the sampled series: 'json' as one object, 'csv' as rows of name and value.

        Makes the folder where it is missing; raises ConfigError for another format, StreamSplitError where it cannot
        be written.
        """
        if format not in ("json", "csv"):
            raise ConfigError(f"got format '{format}', expected 'json' or 'csv'")
        path = Path(path)
        report = self.get_comprehensive_report()
        with self._lock:
            series = [
                {"t_s": t - self._started_s, "cpu_share": load, "rss_mb": rss / 1e6}
                for t, load, rss in self._held.samples
            ]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if format == "json":
                path.write_text(json.dumps(report | {"series": series}, indent=1, allow_nan=False), encoding="utf-8")
            else:
                with path.open("w", newline="", encoding="utf-8") as file:
                    writer = csv.writer(file)
                    writer.writerow(("name", "value"))
                    writer.writerows(_flat(report))
                    for number, row in enumerate(series):
                        writer.writerows((f"series.{number}.{name}", value) for name, value in row.items())
        except OSError as error:
            raise StreamSplitError(f"{path}: cannot be written ({error.strerror or error})") from error
        return path

    def _run(self) -> None:
        while not self._stop.wait(self.interval_s):
            self._sample(time.monotonic(), self._cpu_s())

    def _sample(self, now_s: float, cpu_s: float) -> None:
        share = 0.0
        if self._last is not None and now_s > self._last[0]:
            share = min(1.0, (cpu_s - self._last[1]) / (now_s - self._last[0]) / self._cores)
        self._last = (now_s, cpu_s)
        with self._lock:
            self._held.samples.append((now_s, share, int(self._process.memory_info().rss)))
            del self._held.samples[:-MAX_SAMPLES]

    def _cpu_s(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


def _percentiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    p50, p95, p99 = (float(value) for value in np.percentile(values, (50, 95, 99)))
    return {"p50": p50, "p95": p95, "p99": p99, "count": len(values)}


def _confusion(results: Mapping[str, MetricResult]) -> dict[str, dict[str, int]] | None:
    if "confusion_matrix" not in results or "confusion_classes" not in results:
        return None
    classes = results["confusion_classes"].value
    counts = np.asarray(results["confusion_matrix"].value).tolist()
    return {name: dict(zip(classes, row, strict=True)) for name, row in zip(classes, counts, strict=True)}


def _per_hour(count: int, seconds: float) -> float:
    return count / 1e6 * 3600 / max(seconds, 1e-9)


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [row for key, inner in value.items() for row in _flat(inner, f"{prefix}{key}.")]
    return [(prefix.rstrip("."), "" if value is None else value)]
