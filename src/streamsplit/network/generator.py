"""Made-up mobile links that are, in their figures, like the measured drives: the built-in default."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from streamsplit.errors import ConfigError
from streamsplit.network.bandwidth import BandwidthTrace, make_trace

# Quantiles of Mbit/s in bins of 0.5 s over 332 measured uplink runs (PAM 2025 multi-carrier data set, CC0).
_QUANTILES = (0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 0.9999)
_LOG10_MBPS = (
    -0.987, -0.673, -0.337, -0.102, 0.051, 0.268, 0.443, 0.736, 0.935, 1.088, 1.236, 1.373, 1.506, 1.658, 1.754, 1.901,
    2.151, 2.302,
)  # fmt: skip
_NO_RATE, _NO_RATE_LOG10_MBPS = 0.01, -2.3  # up to this quantile the link stood still
# The rate's Gaussian driver is a sum of Ornstein-Uhlenbeck processes: (share of variance, time constant in s). The two
# fast ones give the autocorrelation and the dips within a drive, the slow one the spread between places.
_PROCESSES = ((0.12, 1.8), (0.22, 22.0), (0.66, 400.0))

# Quantiles of the round-trip time, ms, over the same drives' pings.
_RTT_QUANTILES = (0.0001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999)
_RTT_MS = (20.0, 27.3, 34.1, 45.7, 56.0, 69.5, 92.5, 115.0, 200.0, 370.0, 700.0, 2600.0, 6000.0)
# Its driver follows the slow process of the rate against its sign (a poor place is a far one), the rest is short.
_RTT_PROCESSES = ((0.25, 400.0), (0.20, 5.0), (0.55, 0.3))
# Most losses are single pings (0.2 s), some last: both where their driver, half of it the round trip's, is high.
_LOSS_SHARE, _LOSS_QUANTILE = 0.4, 0.982
_STALL_SHARE, _STALL_QUANTILE = 1.0, 0.998
_LOSS_TIME_S = 0.5


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

    log10(rate) follows a Gaussian process of three time constants, mapped to the measured distribution, fitted for
    steps of 0.5 s; round trips follow theirs, tail included, and are longer in poor places; pings are lost in bursts,
    about 1 %. `level` in (0, 1) holds the slow process at that quantile (0.5 an average place, 0.1 a poor one) instead
    of drawing it. Every figure that is held is in `trace_statistics` and its test. Raises ConfigError.
    """
    if not (math.isfinite(seconds) and step_s > 0 and seconds >= step_s):
        raise ConfigError(f"got {seconds} s in steps of {step_s} s, expected at least one step")
    if level is not None and not 0 < level < 1:
        raise ConfigError(f"got level {level}, allowed 0 < level < 1")
    rng = np.random.default_rng(seed)
    count = math.ceil(seconds / step_s)
    *fast, (slow_share, slow_s) = _PROCESSES
    slow = ornstein_uhlenbeck(count, step_s / slow_s, rng)
    if level is not None:
        slow[:] = NormalDist().inv_cdf(level)
    driver = math.sqrt(slow_share) * slow
    for share, time_s in fast:
        driver += math.sqrt(share) * ornstein_uhlenbeck(count, step_s / time_s, rng)
    rtt_driver = -math.sqrt(_RTT_PROCESSES[0][0]) * slow
    for share, time_s in _RTT_PROCESSES[1:]:
        rtt_driver += math.sqrt(share) * ornstein_uhlenbeck(count, step_s / time_s, rng)
    loss_driver = (rtt_driver + ornstein_uhlenbeck(count, step_s / _LOSS_TIME_S, rng)) / math.sqrt(2)
    return make_trace(
        np.arange(count) * step_s,
        _rate_bps(driver) * rate_scale,
        10.0 ** np.interp(rtt_driver, _RTT_Z, np.log10(_RTT_MS)) * rtt_scale,
        np.select(
            [loss_driver > _z(_STALL_QUANTILE), loss_driver > _z(_LOSS_QUANTILE)], [_STALL_SHARE, _LOSS_SHARE], 0.0
        ),
        duration_s=count * step_s,
        name=f"generated-{seed}",
    )


def ornstein_uhlenbeck(count: int, step: float, rng: np.random.Generator) -> np.ndarray:
    """Unit-variance stationary process [count] whose autocorrelation falls by e every 1 / `step` samples."""
    keep = math.exp(-step)
    noise = rng.standard_normal(count + 1)
    value, noise = noise[0], noise[1:] * math.sqrt(1 - keep * keep)
    # Block by block: within one, what each kick still weighs is one triangular matrix.
    ages = np.arange(_BLOCK)[:, None] - np.arange(_BLOCK)
    weights = np.where(ages >= 0, keep ** np.maximum(ages, 0), 0.0)
    fading = keep ** np.arange(1, _BLOCK + 1)
    values = np.pad(noise, (0, -count % _BLOCK)).reshape(-1, _BLOCK) @ weights.T
    for block in values:
        block += value * fading
        value = block[-1]
    return np.asarray(values.reshape(-1)[:count])


def _rate_bps(driver: np.ndarray) -> np.ndarray:
    log10_mbps = np.interp(driver, _RATE_Z, (_NO_RATE_LOG10_MBPS, *_LOG10_MBPS))
    return np.asarray(np.where(driver <= _RATE_Z[0], 0.0, 10.0 ** (log10_mbps + 6)))


def _z(quantile: float) -> float:
    return NormalDist().inv_cdf(quantile)


_BLOCK = 128
_RATE_Z = np.array([_z(quantile) for quantile in (_NO_RATE, *_QUANTILES)])
_RTT_Z = np.array([_z(quantile) for quantile in _RTT_QUANTILES])
