"""Bandwidth traces: what a link offers over time (rate and round-trip time), read from CSV or generated."""

from __future__ import annotations

import csv
import gzip
import math
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from streamsplit.config import nearest
from streamsplit.errors import ConfigError

DEFAULT_RTT_MS = 55.0
DOWNLINK_FACTOR = 4.7  # downlink rate over uplink rate in the measured drives (4 to 5.5)

# Quantiles of log10(Mbit/s) over 332 measured drives (PAM 2025 multi-carrier data set, CC0), uplink.
_QUANTILES = (0.0, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.995, 1.0)
_LOG10_MBPS = (
    -2.0, -2.0, -0.883, -0.38, 0.026, 0.427, 0.727, 0.928, 1.08, 1.229, 1.368, 1.502, 1.658, 1.755, 1.902, 1.963, 2.1,
)  # fmt: skip
# Quantiles of the round-trip time, ms, over the same drives.
_RTT_QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
_RTT_MS = (20.0, 27.3, 34.1, 45.7, 55.4, 69.5, 92.5, 122.0, 325.0, 1200.0)
# The rate's Gaussian driver is three Ornstein-Uhlenbeck processes: (share of variance, time constant in s).
# Two fast ones give the measured autocorrelation within a drive, the slow one the spread between drives.
_PROCESSES = ((0.225, 1.5), (0.275, 10.0), (0.5, 300.0))


class BandwidthTrace(NamedTuple):
    """Piecewise-constant link: from t_s[i] on the link offers rate_bps[i] and rtt_ms[i]; repeats after `duration_s`."""

    t_s: np.ndarray  # [n], seconds, rising from 0
    rate_bps: np.ndarray  # [n], bit/s, >= 0
    rtt_ms: np.ndarray  # [n]
    duration_s: float
    name: str = "trace"
    loss: np.ndarray | None = None  # [n], share of pings lost (round trips, as rtt_ms is of them); None where none are

    def at(self, t_s: float) -> tuple[float, float]:
        """(rate in bit/s, round-trip time in ms) at a time; times beyond the end wrap round."""
        index = bisect_right(self.t_s, t_s % self.duration_s) - 1
        return float(self.rate_bps[index]), float(self.rtt_ms[index])

    def finish_s(self, start_s: float, bits: float) -> float:
        """When `bits` that start at `start_s` have left the link; inf for a trace that never offers any rate."""
        if not np.any(self.rate_bps > 0):
            return math.inf
        now = start_s
        while True:
            cycle, phase = divmod(now, self.duration_s)
            index = bisect_right(self.t_s, phase) - 1
            end = float(self.t_s[index + 1]) if index + 1 < len(self.t_s) else self.duration_s
            rate = float(self.rate_bps[index])
            room_s = end - phase
            if rate * room_s >= bits:
                return now + bits / rate
            bits -= rate * room_s
            following = cycle * self.duration_s + end
            now = following if following > now else math.nextafter(now, math.inf)

    def scaled(self, factor: float) -> BandwidthTrace:
        """The same link with every rate multiplied."""
        return self._replace(rate_bps=self.rate_bps * factor)

    def with_outage(self, start_s: float, length_s: float) -> BandwidthTrace:
        """The same link, dead from `start_s` for `length_s`."""
        stop_s = min(start_s + length_s, self.duration_s)
        times = np.unique(np.concatenate([self.t_s, [start_s] + ([stop_s] if stop_s < self.duration_s else [])]))
        index = np.searchsorted(self.t_s, times, side="right") - 1
        rate = np.where((times >= start_s) & (times < stop_s), 0.0, self.rate_bps[index])
        loss = None if self.loss is None else self.loss[index]
        return make_trace(times, rate, self.rtt_ms[index], loss, duration_s=self.duration_s, name=self.name)


def make_trace(
    t_s: np.ndarray | list[float],
    rate_bps: np.ndarray | list[float],
    rtt_ms: np.ndarray | list[float] | float = DEFAULT_RTT_MS,
    loss: np.ndarray | list[float] | float | None = None,
    *,
    duration_s: float | None = None,
    name: str = "trace",
) -> BandwidthTrace:
    """A checked trace; `duration_s` defaults to the last time plus the last step. Raises ConfigError."""
    times = np.asarray(t_s, dtype=float)
    rates = np.asarray(rate_bps, dtype=float)
    rtts = np.broadcast_to(np.asarray(rtt_ms, dtype=float), times.shape).copy()
    if times.ndim != 1 or not len(times) or times.shape != rates.shape:
        raise ConfigError(f"trace '{name}': got {times.shape} times and {rates.shape} rates, expected two equal lists")
    times = times - times[0]
    if np.any(np.diff(times) <= 0):
        raise ConfigError(f"trace '{name}': times must rise")
    if not (np.all(np.isfinite(rates)) and np.all(rates >= 0) and np.all(np.isfinite(rtts)) and np.all(rtts >= 0)):
        raise ConfigError(f"trace '{name}': rates and round-trip times must be finite and not negative")
    lost = None if loss is None else np.broadcast_to(np.asarray(loss, dtype=float), times.shape).copy()
    if lost is not None and not np.all((lost >= 0) & (lost <= 1)):
        raise ConfigError(f"trace '{name}': got a loss outside 0..1; give the share of pings lost")
    step = float(times[-1] - times[-2]) if len(times) > 1 else 1.0
    duration = float(times[-1]) + step if duration_s is None else float(duration_s)
    if duration <= times[-1]:
        raise ConfigError(f"trace '{name}': got a duration of {duration} s, expected more than {times[-1]} s")
    return BandwidthTrace(times, rates, rtts, duration, name, lost)


def constant_trace(rate_bps: float, rtt_ms: float = DEFAULT_RTT_MS) -> BandwidthTrace:
    """A link that never changes."""
    return make_trace([0.0], [rate_bps], rtt_ms, duration_s=1.0, name=f"constant {rate_bps / 1e6:g} Mbit/s")


def trace_runs(path: str | Path) -> list[str]:
    """Names of the runs in a file of measured drives, in order; [] for a plain trace."""
    names: dict[str, None] = {}
    for row in _rows(Path(path)):
        if "run" not in row:
            return []
        names[row["run"]] = None
    return list(names)


def read_trace(path: str | Path, run: str | None = None, rtt_ms: float = DEFAULT_RTT_MS) -> BandwidthTrace:
    """Reads CSV (or .csv.gz): `run,t_s,uplink_mbps,...` (a measured drive, the first unless named) or `t,mbps[,rtt]`.

    `rtt_ms` is used where the file has no round-trip times. Raises ConfigError naming the file and line.
    """
    path = Path(path)
    times: list[float] = []
    rates: list[float] = []
    rtts: list[float] = []
    known: set[str] = set()
    for number, row in enumerate(_rows(path), start=2):
        if "run" in row:
            known.add(row["run"])
            run = row["run"] if run is None else run
            if row["run"] != run:
                continue
        try:
            times.append(float(row.get("t_s") or row["t"]))
            rates.append(float(row.get("uplink_mbps") or row["mbps"]) * 1e6)
            rtts.append(float(row.get("rtt_ms") or row.get("rtt") or rtt_ms))
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"{path}:{number}: not a trace row ({error}); expected t,mbps,rtt or run,t_s,uplink_mbps"
            ) from None
    if not times:
        hint = nearest(run, known) if run and known else "the file holds no rows"
        raise ConfigError(f"{path}: no samples for run '{run}'; {hint}")
    keep = np.concatenate([[True], np.diff(times) > 0])
    return make_trace(np.array(times)[keep], np.array(rates)[keep], np.array(rtts)[keep], name=run or path.stem)


def generate_trace(
    seconds: float,
    seed: int = 0,
    *,
    step_s: float = 0.5,
    level: float | None = None,
    rate_scale: float = 1.0,
    rtt_scale: float = 1.0,
) -> BandwidthTrace:
    """A mobile link like the measured LTE/5G drives: mean 18, p5 0.43, p50 12, p95 56 Mbit/s uplink, with dips.

    log10(rate) follows a Gaussian process of three time constants (1.5, 10 and 300 s), mapped to the measured
    distribution; round-trip times follow the measured distribution and rise where the rate dips. `level` in (0, 1)
    holds the slow process at that quantile (0.5 an average place, 0.1 a poor one) instead of drawing it.
    """
    if seconds < step_s or step_s <= 0:
        raise ConfigError(f"got {seconds} s in steps of {step_s} s, expected at least one step")
    if level is not None and not 0 < level < 1:
        raise ConfigError(f"got level {level}, allowed 0 < level < 1")
    rng = np.random.default_rng(seed)
    count = math.ceil(seconds / step_s)
    driver = np.zeros(count)
    for share, time_constant_s in _PROCESSES:
        if level is not None and time_constant_s == _PROCESSES[-1][1]:
            driver += math.sqrt(share) * _normal_quantile(level)
            continue
        driver += math.sqrt(share) * _ornstein_uhlenbeck(count, step_s / time_constant_s, rng)
    log_rate = np.interp(_normal_cdf(driver), _QUANTILES, _LOG10_MBPS)
    slow_share = 0.4  # of the RTT's driver that follows the (negative) rate
    noise = _ornstein_uhlenbeck(count, step_s / 1.0, rng)
    rtt = np.interp(
        _normal_cdf(math.sqrt(1 - slow_share) * noise - math.sqrt(slow_share) * driver), _RTT_QUANTILES, _RTT_MS
    )
    return make_trace(
        np.arange(count) * step_s, 10.0**log_rate * 1e6 * rate_scale, rtt * rtt_scale, name=f"generated-{seed}"
    )


def _ornstein_uhlenbeck(count: int, step: float, rng: np.random.Generator) -> np.ndarray:
    """Unit-variance stationary process [count] whose autocorrelation falls by e every 1 / step samples."""
    keep = math.exp(-step)
    noise = rng.standard_normal(count) * math.sqrt(1 - keep * keep)
    values = np.empty(count)
    value = rng.standard_normal()
    for index in range(count):
        value = keep * value + noise[index]
        values[index] = value
    return values


def _normal_cdf(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x])


def _normal_quantile(p: float) -> float:
    return NormalDist().inv_cdf(p)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
        for row in csv.DictReader(text.splitlines()):
            yield {str(key).strip(): str(value or "").strip() for key, value in row.items()}
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: trace cannot be read ({error}); give a CSV file") from error
