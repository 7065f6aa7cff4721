"""Policies that know the future: the best row for this window, and the best plan for all of them (upper bounds).

`PerfectModel` works out, for many states at once, what every row of a device's table would lead to given the trace that
is still to come. Lost segments and throttling are not foreseen: what an oracle gets is what the simulated device, which
has both, gives it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamsplit.network.trace import BandwidthTrace
from streamsplit.simulation.device import LEAST_CAPACITY, SimulatedDevice
from streamsplit.simulation.load import STEP_S, LoadTrace
from streamsplit.splitting.cut import RANKS
from streamsplit.splitting.expected import LEAST_BPS, Conditions, CutArrays
from streamsplit.splitting.greedy import CostModel, GreedySettings
from streamsplit.wire.frame import HEADER_BYTES

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
BEYOND_S = 120.0  # past the last window: what waits then still drains
LINK_LAGS_S = np.array([0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0])
COMPUTE_LAGS_S = np.array([0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.5])


class Outcome(NamedTuple):
    """Of every row [..., n] in every state asked for."""

    reward: Floats
    compute_lag_s: Floats  # how far the processor is behind when the next window ends
    link_lag_s: Floats


class _Integral:
    """Work done by a time-varying rate, and its inverse."""

    def __init__(self, times_s: Floats, rates: Floats) -> None:
        """`rates[i]` holds from times_s[i] to times_s[i + 1]; a rate of zero counts as one that never gets anywhere."""
        self._times = times_s
        self._done = np.concatenate([[0.0], np.cumsum(np.maximum(rates, 1e-3) * np.diff(times_s))])

    def finish_s(self, start_s: Floats, work: Floats) -> Floats:
        """When `work` that starts at `start_s` is done; at the latest the end of what is known."""
        done = np.interp(start_s, self._times, self._done) + work
        return np.asarray(np.interp(done, self._done, self._times), np.float64)


class PerfectModel:
    """What rows lead to on one simulated device, the future of its link and load known."""

    def __init__(self, device: SimulatedDevice) -> None:
        self.device = device
        s = device.settings
        self._columns = c = CutArrays.of(device.table)
        horizon_s = device.windows * device.stride_s + BEYOND_S
        times, rates = _unrolled(device.uplink.trace, device.link_start_s, horizon_s)
        self._link = _Integral(times, rates / 8.0)
        self._rtt_times, self._rtts_s = _unrolled_rtt(device.uplink.trace, device.link_start_s, horizon_s)
        self._processor = _Integral(*_capacity(device.load, device.load_start_s, horizon_s))
        whole = s.length_ms / s.stride_ms
        sizes = np.stack([c.payload_bytes * np.where(c.overlap > left, whole, 1.0) for left in RANKS])
        headers = HEADER_BYTES + np.where(sizes < 65_000, 8, 14)  # WebSocket's is longer from 64 kB on
        self._frames = np.where(c.sends, np.floor(sizes) + headers, 0.0)  # [rank, n] by what was left before
        self._served_s = c.server_ms * s.server_load / 1000.0
        self._energy_mj = device.profile.compute_mj(1.0) * c.edge_ms
        self._waits_s = np.array(device.waits_ms) / 1000.0
        self._doubts = np.array(device.doubts)

    def outcomes(self, window: Ints, compute_lag_s: Floats, link_lag_s: Floats, chain: Ints) -> Outcome:
        """For states of any one shape S: outcomes of shape S + [n]."""
        s, c, device = self.device.settings, self._columns, self.device
        o = s.objective
        end_s = (window * device.stride_s)[..., None]
        start_s = end_s + compute_lag_s[..., None]
        ready_s = self._processor.finish_s(start_s, c.edge_ms / 1000.0)
        frames = self._frames[chain]
        free_s = end_s + link_lag_s[..., None]
        left_s = self._link.finish_s(np.maximum(ready_s, free_s), frames)
        arrived_s = left_s + self._half_rtt_s(left_s)
        done_s = arrived_s + self._waits_s[window][..., None] + self._served_s
        result_s = np.where(c.sends, done_s + self._half_rtt_s(done_s), ready_s)
        latency_ms = np.minimum((result_s - end_s) * 1000.0, o.deadline_ms)
        energy_mj = self._energy_mj + device.profile.radio.joule_per_mb * frames / 1000.0
        unseen = o.unseen * (o.unseen_certain + (1.0 - o.unseen_certain) * self._doubts[window + 1])
        value = o.quality * (1.0 - c.quality_loss) - o.latency / o.latency_ms * latency_ms
        value = value - o.energy / o.energy_mj * energy_mj - o.traffic / o.traffic_bytes * frames
        value = value - o.privacy * c.privacy_risk - np.where(c.sends, 0.0, unseen[..., None])
        if o.version == "v1":
            value = value - o.resources * np.minimum(c.edge_ms / s.stride_ms, 1.0)
        stride_s = device.stride_s
        compute_after = np.maximum(ready_s - end_s - stride_s, 0.0)
        link_after = np.maximum(np.where(c.sends, left_s, free_s) - end_s - stride_s, 0.0)
        lost = compute_lag_s[..., None] > s.buffer_ms / 1000.0
        if lost.any():
            nothing = -o.latency / o.latency_ms * o.deadline_ms - unseen[..., None]
            value = np.where(lost, nothing, value)
            compute_after = np.where(lost, np.maximum(compute_lag_s[..., None] - stride_s, 0.0), compute_after)
            link_after = np.where(lost, np.maximum(link_lag_s[..., None] - stride_s, 0.0), link_after)
        return Outcome(value, compute_after, link_after)

    def left_behind(self) -> Ints:
        """What each row [n] leaves at the server for the next window: see `overlap_rank`."""
        return self._columns.overlap

    def idle_best(self) -> Floats:
        """The best reward of every window [windows] with nothing waiting: the part that no choice has a share in."""
        windows = np.arange(self.device.windows)
        zero = np.zeros(len(windows))
        return np.asarray(self.outcomes(windows, zero, zero, np.zeros(len(windows), np.int64)).reward.max(axis=-1))

    def _half_rtt_s(self, at_s: Floats) -> Floats:
        index = np.searchsorted(self._rtt_times, at_s, side="right") - 1
        return self._rtts_s[np.minimum(index, len(self._rtts_s) - 1)] / 2.0


class GreedyOracle:
    """The row that brings most for this window, with the link's true rate over it; it does not look further."""

    def choose(self, device: SimulatedDevice) -> int:
        """The action."""
        return max(range(len(device.table.rows)), key=device.peek)


class PresentOracle:
    """The least expected cost with nothing estimated: rate, round trip, load and queue as they are at this moment.

    What lies between it and the look-ahead oracle is the future; no estimator, however good, closes that part.
    """

    def __init__(self, settings: GreedySettings) -> None:
        self._settings = settings
        self._model: CostModel | None = None

    def choose(self, device: SimulatedDevice) -> int:
        """The action."""
        if self._model is None or self._model.table is not device.table:
            self._model = CostModel(self._settings, device.table)
        now_s = device.now_s
        busy = device.load.at(now_s + device.load_start_s)
        given = Conditions(
            free_cpu=max(1.0 - busy, LEAST_CAPACITY),
            bps=max(device.uplink.rate_bps(now_s), LEAST_BPS),
            rtt_ms=device.uplink.rtt_ms(now_s),
            backlog_ms=max(device.uplink.free_at_s - now_s, 0.0) * 1000.0,
            doubt=device.doubts[device.index],
        )
        return self._model.cheapest(self._model.expect(given).total)


class LookAheadOracle:
    """The plan that brings most over the whole trace, by dynamic programming over the lags of processor and link.

    Values lie on a coarse grid of lags and are interpolated between; the plan is then followed on the device itself, so
    what it gets is a reward that a policy could have got, and close to the most there is.
    """

    def __init__(self, device: SimulatedDevice) -> None:
        self.model = PerfectModel(device)
        shape = (len(COMPUTE_LAGS_S), len(LINK_LAGS_S), len(RANKS))
        compute, link, chain = np.meshgrid(COMPUTE_LAGS_S, LINK_LAGS_S, np.array(RANKS), indexing="ij")
        self._values = np.zeros((device.windows + 1, *shape))
        for window in range(device.windows - 1, -1, -1):
            now = np.full(shape, window)
            self._values[window] = self._worth(window, self.model.outcomes(now, compute, link, chain)).max(axis=-1)

    @property
    def bound(self) -> float:
        """The value of the whole run on the grid, from a device with nothing waiting."""
        return float(self._values[0, 0, 0, 0])

    def choose(self, device: SimulatedDevice) -> int:
        """The action for the device's next window."""
        return int(self.values(device).argmax())

    def values(self, device: SimulatedDevice) -> Floats:
        """Of every row [n]: the reward of taking it for the next window and of following the plan from there."""
        end_s = device.index * device.stride_s
        compute = np.array([max(device.free_s - end_s, 0.0)])
        link = np.array([max(device.uplink.free_at_s - end_s, 0.0)])
        now, chain = np.array([device.index]), np.array([device.chain])
        return np.asarray(self._worth(device.index, self.model.outcomes(now, compute, link, chain))[0])

    def _worth(self, window: int, outcome: Outcome) -> Floats:
        """Reward now and value of what follows, of every row."""
        following = self._values[window + 1]
        i, u = _place(COMPUTE_LAGS_S, outcome.compute_lag_s)
        j, v = _place(LINK_LAGS_S, outcome.link_lag_s)
        k = np.broadcast_to(self.model.left_behind(), i.shape)
        low = (1.0 - v) * following[i, j, k] + v * following[i, j + 1, k]
        high = (1.0 - v) * following[i + 1, j, k] + v * following[i + 1, j + 1, k]
        return np.asarray(outcome.reward + (1.0 - u) * low + u * high)


def _place(grid: Floats, values: Floats) -> tuple[Ints, Floats]:
    """(index of the grid point below, share of the way to the one above); held at the ends."""
    held = np.clip(values, grid[0], grid[-1])
    index = np.clip(np.searchsorted(grid, held, side="right") - 1, 0, len(grid) - 2)
    return index, (held - grid[index]) / (grid[index + 1] - grid[index])


def _unrolled(trace: BandwidthTrace, start_s: float, horizon_s: float) -> tuple[Floats, Floats]:
    """Times [m + 1] from 0 to the horizon and rates [m] in bit/s of a trace that repeats, begun at `start_s`."""
    index_times, index = _repeated(trace, start_s, horizon_s)
    return np.append(index_times, horizon_s), trace.rate_bps[index]


def _unrolled_rtt(trace: BandwidthTrace, start_s: float, horizon_s: float) -> tuple[Floats, Floats]:
    times, index = _repeated(trace, start_s, horizon_s)
    return times, trace.rtt_ms[index] / 1000.0


def _repeated(trace: BandwidthTrace, start_s: float, horizon_s: float) -> tuple[Floats, Ints]:
    """When samples begin, in the caller's time, and which ones."""
    cycles = int((start_s + horizon_s) // trace.duration_s) + 1
    times = np.concatenate([trace.t_s + cycle * trace.duration_s - start_s for cycle in range(cycles)])
    index = np.tile(np.arange(len(trace.t_s)), cycles)
    first = max(int(np.searchsorted(times, 0.0, side="right")) - 1, 0)
    last = int(np.searchsorted(times, horizon_s, side="left"))
    kept = np.maximum(times[first:last], 0.0)
    return kept, index[first:last]


def _capacity(load: LoadTrace, start_s: float, horizon_s: float) -> tuple[Floats, Floats]:
    """Times and free shares of a core, as `_unrolled`."""
    first = int(start_s / STEP_S + 1e-9)
    count = int(horizon_s / STEP_S) + 2
    times = np.concatenate([[0.0], (np.arange(first + 1, first + count + 1)) * STEP_S - start_s])
    share = load.share[np.arange(first, first + count) % len(load.share)]
    return times, np.maximum(1.0 - share, LEAST_CAPACITY)
