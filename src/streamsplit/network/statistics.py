"""What a link is like in figures: rates, how they hang together in time, dips, round trips, losses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from streamsplit.network.bandwidth import BandwidthTrace

BIN_S = 0.5  # rates are means over this long, about the step of the measured drives
RUN_S = 115.0  # length of a measured run: what is said of the inside of a run is of stretches this long
LAGS_S = (0.5, 2.0, 5.0, 10.0, 30.0)
DIP_MBPS = 0.5
FLOOR_MBPS = 0.01  # stands for no rate at all in logarithms
_RTT_STEP_S = 0.1


class TraceStatistics(NamedTuple):
    """Figures over all traces; NaN where there is too little (a lag longer than the run, no dip)."""

    seconds: float
    runs: int  # stretches of up to RUN_S
    mean_mbps: float
    p5_mbps: float
    p50_mbps: float
    p95_mbps: float
    log10_sd: float  # of log10(Mbit/s) within a run: root of the mean over runs of its variance
    autocorrelation: dict[float, float]  # lag in s -> median over runs of that of log10(Mbit/s)
    dips_per_hour: float  # stretches below DIP_MBPS
    dip_median_s: float
    dip_p95_s: float
    dip_longest_s: float
    rtt_p50_ms: float  # over time, of pings that came back
    rtt_p95_ms: float
    rtt_p99_ms: float
    ping_loss: float  # share

    def as_dict(self) -> dict[str, Any]:
        """Plain values, lags as text and None for NaN, as reports and JSON have them."""
        values = self._asdict() | {
            "autocorrelation": {f"{lag:g}": _known(v) for lag, v in self.autocorrelation.items()}
        }
        return {name: _known(value) if isinstance(value, float) else value for name, value in values.items()}


def trace_statistics(traces: Sequence[BandwidthTrace]) -> TraceStatistics:
    """Figures of one pass through each trace; at least one trace."""
    bins = [binned_mbps(trace) for trace in traces]
    runs = [run for values in bins for run in _runs(values)]
    every = np.concatenate(bins)
    logs = [np.log10(np.maximum(run, FLOOR_MBPS)) for run in runs]
    dips = np.concatenate([_dips_s(run) for run in runs])
    rtt, lost = (np.concatenate(parts) for parts in zip(*(_pings(trace) for trace in traces), strict=True))
    back = rtt[lost < 1] if np.any(lost < 1) else rtt
    p5, p50, p95 = np.percentile(every, [5, 50, 95])
    rtt_p50, rtt_p95, rtt_p99 = np.percentile(back, [50, 95, 99])
    return TraceStatistics(
        seconds=float(sum(trace.duration_s for trace in traces)),
        runs=len(runs),
        mean_mbps=float(every.mean()),
        p5_mbps=float(p5),
        p50_mbps=float(p50),
        p95_mbps=float(p95),
        log10_sd=float(np.sqrt(np.mean([log.var() for log in logs]))),
        autocorrelation={lag: _autocorrelation(logs, round(lag / BIN_S)) for lag in LAGS_S},
        dips_per_hour=len(dips) / (len(every) * BIN_S / 3600),
        dip_median_s=float(np.median(dips)) if len(dips) else float("nan"),
        dip_p95_s=float(np.percentile(dips, 95)) if len(dips) else float("nan"),
        dip_longest_s=float(dips.max()) if len(dips) else float("nan"),
        rtt_p50_ms=float(rtt_p50),
        rtt_p95_ms=float(rtt_p95),
        rtt_p99_ms=float(rtt_p99),
        ping_loss=float(lost.mean()),
    )


def binned_mbps(trace: BandwidthTrace, bin_s: float = BIN_S) -> np.ndarray:
    """[n] mean Mbit/s of each whole bin of `bin_s`; one bin at least (a trace repeats)."""
    edges = np.arange(max(1, int(trace.duration_s / bin_s + 1e-6)) + 1) * bin_s
    times = np.append(trace.t_s, trace.duration_s)
    megabits = np.concatenate([[0.0], np.cumsum(trace.rate_bps * np.diff(times))]) / 1e6
    cycles, phases = np.divmod(edges, trace.duration_s)
    return np.asarray(np.diff(cycles * megabits[-1] + np.interp(phases, times, megabits)) / bin_s)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _runs(values: np.ndarray) -> Iterator[np.ndarray]:
    """Stretches of RUN_S; a rest of less than half of that joins the stretch before it."""
    length = round(RUN_S / BIN_S)
    starts = list(range(0, max(len(values) - length // 2, 1), length))
    for start, stop in zip(starts, [*starts[1:], len(values)], strict=True):
        yield values[start:stop]


def _autocorrelation(logs: Sequence[np.ndarray], lag: int) -> float:
    """Of the usual (biased) estimator, as the measured figures are."""
    found = []
    for log in logs:
        centred = log - log.mean()
        power = float(centred @ centred)
        if len(log) > 2 * lag and power > 0:
            found.append(float(centred[lag:] @ centred[:-lag]) / power)
    return float(np.median(found)) if found else float("nan")


def _dips_s(mbps: np.ndarray) -> np.ndarray:
    low = np.concatenate([[0], (mbps < DIP_MBPS).astype(int), [0]])
    edges = np.flatnonzero(np.diff(low))
    return np.asarray((edges[1::2] - edges[::2]) * BIN_S)


def _pings(trace: BandwidthTrace) -> tuple[np.ndarray, np.ndarray]:
    """(round trips, loss) held on a fine grid of one pass."""
    grid = np.arange(max(1, int(trace.duration_s / _RTT_STEP_S + 1e-6))) * _RTT_STEP_S
    index = np.searchsorted(trace.t_s, grid + 1e-6, side="right") - 1
    return trace.rtt_ms[index], np.zeros(len(grid)) if trace.loss is None else trace.loss[index]
