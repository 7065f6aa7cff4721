"""Where a device is over time: environments (home Wi-Fi to no network), and days and ways as sequences of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from streamsplit.config import Settings, nearest, setting
from streamsplit.errors import ConfigError
from streamsplit.network.bandwidth import BandwidthTrace, make_trace
from streamsplit.network.generator import ornstein_uhlenbeck

STEP_S = 0.5
_RANDOM_STAY_S = (15.0, 60.0)  # in one place of the scenario `random`
# How log10(rate) hangs together in time, (share of variance, s): within a place as in the measured drives.
_FAST = ((0.35, 1.8), (0.65, 22.0))
_RTT_CORRELATION_S = 0.3
_LOST_SHARE = 0.4  # of a step's pings, where one is lost: one of two or three


@dataclass(frozen=True, kw_only=True)
class Environment(Settings):
    """A kind of place: what its uplink is like, and what these figures rest on."""

    rate_mbps: float = setting(10.0, low=0.0)  # median
    rate_log10_sd: float = setting(0.3, low=0.0, high=2.0)
    rtt_ms: float = setting(55.0, low=0.0)  # median, unloaded
    jitter_ms: float = setting(10.0, low=0.0)  # standard deviation of the round trip
    loss: float = setting(0.0, low=0.0, high=0.4)  # share of pings
    outages_per_hour: float = setting(0.0, low=0.0)
    outage_s: float = setting(0.0, low=0.0)  # mean length
    basis: str = setting("")


ENVIRONMENTS = {
    "home-wifi": Environment(
        rate_mbps=20.0, rate_log10_sd=0.12, rtt_ms=18.0, jitter_ms=4.0, loss=0.001,
        basis="assumed: uplink of a 100/20 Mbit/s line behind Wi-Fi",
    ),
    "office": Environment(
        rate_mbps=80.0, rate_log10_sd=0.08, rtt_ms=8.0, jitter_ms=2.0, loss=0.0002,
        basis="assumed: managed Wi-Fi on a symmetric line of at least 100 Mbit/s",
    ),
    "urban-lte": Environment(
        rate_mbps=9.7, rate_log10_sd=0.41, rtt_ms=55.5, jitter_ms=25.0, loss=0.0086,
        basis="measured: the 100 LTE runs of 5 to 20 Mbit/s among the drives",
    ),
    "train": Environment(
        rate_mbps=12.2, rate_log10_sd=0.47, rtt_ms=56.0, jitter_ms=28.0, loss=0.0069, outages_per_hour=12.0,
        outage_s=15.0,
        basis="measured: all 332 drives at road speed; assumed: a tunnel or cutting every five minutes",
    ),
    "rural": Environment(
        rate_mbps=1.7, rate_log10_sd=0.48, rtt_ms=57.0, jitter_ms=26.0, loss=0.007, outages_per_hour=8.0, outage_s=8.0,
        basis="measured: the 55 runs below 5 Mbit/s, 4 % of the time below 0.05 Mbit/s; assumed: outages of 8 s",
    ),
    "outage": Environment(
        rate_mbps=0.0, rate_log10_sd=0.0, rtt_ms=60.0, jitter_ms=0.0,
        basis="no network; the longest stretch below 0.5 Mbit/s among the drives is 103 s",
    ),
}  # fmt: skip

# (environment, share of the duration). A day of 16 h awake: home, way, office, lunch, office, way, home.
SCENARIOS: dict[str, tuple[tuple[str, float], ...]] = {
    "daily": (
        ("home-wifi", 1.5), ("urban-lte", 0.5), ("train", 1.0), ("office", 4.0), ("urban-lte", 1.0), ("office", 4.0),
        ("train", 1.0), ("urban-lte", 0.5), ("home-wifi", 2.5),
    ),
    "mobile": (("urban-lte", 3.0), ("train", 3.0), ("rural", 1.5), ("train", 1.5), ("urban-lte", 3.0)),
    "edge": (
        ("rural", 3.0), ("outage", 0.5), ("rural", 2.0), ("urban-lte", 1.0), ("rural", 2.5), ("outage", 1.0),
        ("rural", 2.0),
    ),
    "random": (),  # drawn by the seed
}  # fmt: skip


class Stretch(NamedTuple):
    """An environment and when it holds."""

    start_s: float
    stop_s: float
    environment: str


def scenario_stretches(name: str, duration_s: float, seed: int = 0) -> list[Stretch]:
    """Which environment holds when, whole steps without holes; `seed` matters to `random` only. Raises ConfigError."""
    if name not in SCENARIOS:
        raise ConfigError(f"no scenario '{name}'; {nearest(name, SCENARIOS)}")
    fewest = max(1, len(SCENARIOS[name]))
    if not (math.isfinite(duration_s) and duration_s >= fewest * STEP_S * 2):
        raise ConfigError(f"got a scenario '{name}' of {duration_s} s, expected at least {fewest * STEP_S * 2:g} s")
    shares = SCENARIOS[name] or tuple(_drawn(duration_s, seed))
    bounds = np.cumsum([0.0, *(share for _, share in shares)])
    edges = np.round(bounds / bounds[-1] * math.ceil(duration_s / STEP_S)) * STEP_S
    edges[-1] = math.ceil(duration_s / STEP_S) * STEP_S
    return [
        Stretch(float(start), float(stop), environment)
        for (environment, _), start, stop in zip(shares, edges[:-1], edges[1:], strict=True)
        if stop > start
    ]


def scenario_trace(name: str, duration_s: float, seed: int = 0) -> BandwidthTrace:
    """The link of a scenario, `duration_s` long in steps of 0.5 s; repeats by seed. Raises ConfigError."""
    rates, rtts, losses = [], [], []
    for place, stretch in enumerate(scenario_stretches(name, duration_s, seed)):
        count = round((stretch.stop_s - stretch.start_s) / STEP_S)
        rng = np.random.default_rng([seed, place])
        rate, rtt, loss = _environment_link(ENVIRONMENTS[stretch.environment], count, rng)
        rates.append(rate)
        rtts.append(rtt)
        losses.append(loss)
    rate = np.concatenate(rates)
    times = np.arange(len(rate)) * STEP_S
    return make_trace(
        times, rate, np.concatenate(rtts), np.concatenate(losses), duration_s=len(rate) * STEP_S, name=f"{name}-{seed}"
    )


def _environment_link(
    environment: Environment, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(bit/s, ms, share of pings lost), each [count]."""
    driver = sum(math.sqrt(share) * ornstein_uhlenbeck(count, STEP_S / time_s, rng) for share, time_s in _FAST)
    rate = environment.rate_mbps * 1e6 * 10.0 ** (environment.rate_log10_sd * driver)
    starts = np.flatnonzero(rng.random(count) < environment.outages_per_hour * STEP_S / 3600)
    for start, length_s in zip(starts, rng.exponential(environment.outage_s, len(starts)), strict=True):
        rate[start : start + max(1, round(length_s / STEP_S))] = 0.0
    swing = ornstein_uhlenbeck(count, STEP_S / _RTT_CORRELATION_S, rng)
    rtt = np.maximum(environment.rtt_ms + environment.jitter_ms * swing, environment.rtt_ms / 2)
    loss = np.where(rng.random(count) < environment.loss / _LOST_SHARE, _LOST_SHARE, 0.0)
    return rate, rtt, loss


def _drawn(duration_s: float, seed: int) -> Iterator[tuple[str, float]]:
    """Stays of 15 to 60 s in places drawn at random, never twice the same in a row."""
    rng = np.random.default_rng([seed, 0x5CE])
    left_s, before = duration_s, ""
    while left_s > 0:
        before = str(rng.choice([name for name in ENVIRONMENTS if name != before]))
        stay_s = min(float(rng.uniform(*_RANDOM_STAY_S)), left_s)
        left_s -= stay_s
        yield before, stay_s
