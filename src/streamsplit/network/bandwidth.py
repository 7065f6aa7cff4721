"""A link over time as steps: what rate, round trip and loss it offers from when on."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import NamedTuple

import numpy as np

from streamsplit.errors import ConfigError

DEFAULT_RTT_MS = 55.0
DOWNLINK_FACTOR = 4.7  # downlink rate over uplink rate in the measured drives (4 to 5.5)


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
