"""One device in virtual time: a window every stride through processor, uplink, server and downlink, with real queues.

The link estimator, the table and the reward are the live objects; processor load is replayed from recordings; the link
is a trace behind the same `LinkDirection` that shapes live traffic. What is simplified against `fleet.py`, which drives
whole wire sessions: frames are sizes, the server is a delay, and acknowledgements ride on results.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import numpy as np

from streamsplit.errors import CutError
from streamsplit.network.link import LinkDirection
from streamsplit.network.trace import DOWNLINK_FACTOR, BandwidthTrace
from streamsplit.simulation.conditions import SimulationSettings
from streamsplit.simulation.load import STEP_S, LoadTrace
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.decision import Experience
from streamsplit.splitting.device import DeviceProfile
from streamsplit.splitting.expected import CutArrays
from streamsplit.splitting.link import LinkEstimator
from streamsplit.splitting.objective import Consequence, reward
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.table import CutTable
from streamsplit.wire.frame import HEADER_BYTES

ACK_BYTES = 60  # an ACK message and its WebSocket header
RESULT_BYTES = 130  # a RESULT without embedding, with frame and WebSocket header
EMBEDDING_BYTES = 256  # more where the device has none yet
LEAST_CAPACITY = 0.1  # of a core that a fair scheduler leaves us, however busy the rest of the device is
PING_BYTES = 44  # a PING or its answer, with frame and WebSocket headers


class Step(NamedTuple):
    """What became of one window."""

    action: int
    cut: Cut
    consequence: Consequence
    reward: float
    uplink_bytes: int
    downlink_bytes: int
    lost: bool  # the device fell behind by more than its buffer
    decided_s: float


class _Pending(NamedTuple):
    at_s: float
    through: int
    held_ms: float
    arrived_ms: int
    sent_bytes: int
    experience: Experience


class SimulatedDevice:
    """Windows 0, 1, ...: `observe()` what is known when the next one is decided, `step(action)` what becomes of it.

    Actions are rows of `table`, already scaled to `profile`. Deterministic by `seed` and the places in the traces.
    """

    def __init__(
        self,
        table: CutTable,
        profile: DeviceProfile,
        uplink: BandwidthTrace,
        load: LoadTrace,
        settings: SimulationSettings | None = None,
        *,
        seed: int = 0,
        link_start_s: float = 0.0,
        load_start_s: float = 0.0,
        windows: int | None = None,
    ) -> None:
        """`windows` defaults to as many as the trace lasts for."""
        s = settings or SimulationSettings()
        if not table.rows:
            raise CutError("got a cut table without rows, expected at least one")
        self.settings, self.table, self.profile, self.load = s, table, profile, load
        self.stride_s = s.stride_ms / 1000.0
        self.windows = windows if windows is not None else max(int(uplink.duration_s / self.stride_s), 1)
        self.link_start_s = link_start_s
        self.uplink = LinkDirection(uplink, seed=seed, start_s=link_start_s)
        self.downlink = LinkDirection(uplink.scaled(DOWNLINK_FACTOR), seed=seed + 1, start_s=link_start_s)
        self.estimator = LinkEstimator()
        self.index = 0
        self.experiences: deque[Experience] = deque(maxlen=1024)  # results that have come in, for policies that learn
        self.held_blocks = table.num_blocks if s.blocks < 0 else min(s.blocks, table.num_blocks)
        self.drained_mj = 0.0
        self.power_mw = 0.0
        self.thermal = 0.0
        self.throttled = False
        self.last_cut: Cut | None = None
        self._columns = _Columns(CutArrays.of(table))
        self.load_start_s = load_start_s
        self._shares = load.shares
        self._observed = load.smoothed(s.smoothing)
        self.free_s = 0.0  # when the processor has done everything so far
        self._own = 0.0  # share of all cores that our own work took lately
        self._sequence = 0
        self._unacked = 0
        self._pending: deque[_Pending] = deque()
        self._heard_s = 0.0
        self._ping_s = (0.0, math.inf)  # when the last probe left, when its answer is here
        self._probed = -1  # the window before whose end a probe went out last
        self._control_bytes = 0  # of probes since the last window
        self._decided_s = 0.0
        self._observation = Observation()
        self.chain = 0  # what the window before left at the server: see `overlap_rank`
        self._rng = np.random.default_rng(seed)
        self.doubts = _autoregressive(self.windows + 1, s, self._rng)
        self.waits_ms: list[float] = self._rng.exponential(s.server_wait_ms or 1e-9, self.windows).tolist()
        self.estimator.on_rtt(self.uplink.rtt_ms(0.0), 0.0)  # the handshake

    @property
    def done(self) -> bool:
        """Whether every window has been decided."""
        return self.index >= self.windows

    @property
    def now_s(self) -> float:
        """When the next window is decided: at its end, or later when the device is behind."""
        return max(self.index * self.stride_s, self.free_s)

    @property
    def doubt(self) -> float:
        """The next window's own uncertainty as a share, which the policy does not know yet."""
        return self.doubts[self.index + 1]

    def observe(self) -> Observation:
        """What a policy sees: the window before's uncertainty, monitored load, the link as estimated."""
        now_s = self.now_s
        self._receive(now_s)
        now_ms = now_s * 1000.0
        link = self.estimator.estimate(now_ms)
        silent = self._unacked > 0 and now_ms - self._heard_s * 1000.0 > self.settings.silence_timeout_ms
        doubt = self.doubts[self.index] if self.settings.uncertainty_known else math.nan
        self._observation = Observation(
            uncertainty=doubt * self.settings.objective.full_uncertainty,
            cpu=self.cpu(now_s), memory=self.settings.memory, battery=self.battery, thermal=self.thermal,
            bandwidth_bps=link.bandwidth_bps, bandwidth_age_ms=link.bandwidth_age_ms, rtt_ms=link.rtt_ms,
            rtt_age_ms=link.rtt_age_ms, backlog_bytes=self._unacked, last_cut=self.last_cut, link_up=not silent,
            waiting_ms=link.waiting_ms, last_rtt_ms=link.last_rtt_ms,
            blocks=self.held_blocks if self.settings.blocks >= 0 else -1, power_mw=self.power_mw,
        )  # fmt: skip
        return self._observation

    def cpu(self, now_s: float) -> float:
        """What the load monitor shows, in [0, 1]."""
        other = self._other(now_s)
        return min(other + (1.0 - other) * self._own, 1.0)

    def _other(self, now_s: float) -> float:
        return self._observed[int((now_s + self.load_start_s) / STEP_S + 1e-9) % len(self._observed)]

    @property
    def battery(self) -> float:
        """1 = full or on mains."""
        s = self.settings
        return max(s.battery_level - self.drained_mj / (s.battery_wh * 3.6e6), 0.0) if s.battery_wh else 1.0

    def peek(self, action: int) -> float:
        """The reward that a row would really bring now, the link's future included; a lost segment is not foreseen."""
        start_s = self.now_s
        t_s = self.index * self.stride_s
        if start_s - t_s > self.settings.buffer_ms / 1000.0:
            return self._reward(self._lost())
        c = self._columns
        fetch_bytes, begin_s = self._fetch(action, start_s)
        if math.isinf(begin_s):
            return self._reward(self._lost())
        ready_s = self._computed_s(begin_s, c.edge_ms[action])
        result_s, up, down = ready_s, 0, fetch_bytes
        if c.sends[action]:
            up = self._frame_bytes(action)
            left_s = self.uplink.finish_s(max(ready_s, self.uplink.free_at_s), up)
            done_s = self._served_s(action, left_s + self.uplink.rtt_ms(min(left_s, 1e12)) / 2000.0)
            down += self._answer_bytes(action)
            result_s = done_s + self.uplink.rtt_ms(min(done_s, 1e12)) / 2000.0 if done_s < math.inf else math.inf
        return self._reward(self._consequence(action, (result_s - t_s) * 1000.0, up, down))

    def step(self, action: int) -> Step:
        """Takes the row `action` for the next window; raises CutError for one that the table does not have."""
        if not 0 <= action < len(self.table.rows):
            raise CutError(f"got action {action}, expected 0..{len(self.table.rows) - 1}, a row of the table")
        if self.done:
            raise CutError(f"got a step after window {self.windows}, expected none: the run is over")
        s, c = self.settings, self._columns
        t_s, start_s = self.index * self.stride_s, self.now_s
        self._decided_s = start_s
        cut = self.table.rows[action].cut
        control, self._control_bytes = self._control_bytes, 0
        behind = start_s - t_s > s.buffer_ms / 1000.0
        fetched, begin_s = (0, start_s) if behind else self._fetch(action, start_s)
        if behind or math.isinf(
            begin_s
        ):  # or the weights never come: the window is lost, the next may choose otherwise
            what = self._lost()
            self.chain = 0
            self._pass_time(0.0, 0.0)
            return Step(action, cut, what, self._reward(what), control, control, True, start_s)
        if fetched:
            self.held_blocks = c.block[action]
        ready_s = self._computed_s(begin_s, c.edge_ms[action])
        self.free_s = ready_s
        result_s, up, down = ready_s, 0, fetched
        network_ms = math.nan
        if c.sends[action]:
            up, answer = self._frame_bytes(action), self._answer_bytes(action)
            down += answer
            result_s = self._send(action, ready_s, up, answer)
            network_ms = (result_s - ready_s) * 1000.0
            if s.result_ack_ms:
                control += round(ACK_BYTES * min(s.stride_ms / s.result_ack_ms, 1.0))
        self.chain = c.chain[action]  # a window that stays here breaks the chain as well
        latency_ms = (result_s - t_s) * 1000.0
        experience = Experience(self._observation, cut, latency_ms, network_ms)
        if not c.sends[action]:
            self.experiences.append(experience)
        elif result_s < math.inf:  # else nobody ever hears of it
            self._pending.append(self._pending.pop()._replace(experience=experience))
        what = self._consequence(action, latency_ms, up, down)
        self.last_cut = cut
        self._pass_time(c.edge_ms[action], what.energy_mj)
        return Step(action, cut, what, self._reward(what), up + control, down + control, False, start_s)

    # -- inside --------------------------------------------------------------------------------------------------

    def _send(self, action: int, ready_s: float, up: int, answer: int) -> float:
        """The frame's way to the server and the answer's way back; when the result is here."""
        self._sequence += 1
        self._unacked += up
        self.estimator.on_sent(self._sequence, up, ready_s * 1000.0)
        _, arrived_s = self.uplink.schedule(ready_s, up)
        if math.isinf(arrived_s):
            return math.inf
        done_s = self._served_s(action, arrived_s)
        _, result_s = self.downlink.schedule(done_s, answer)
        held_ms = (done_s - arrived_s) * 1000.0 + self.settings.ack_delay_ms
        ack_s = result_s + self.settings.ack_delay_ms / 1000.0
        nothing = Experience(self._observation, self.table.rows[action].cut, math.nan, math.nan)
        self._pending.append(_Pending(ack_s, self._sequence, held_ms, int(arrived_s * 1000.0) + 1, up, nothing))
        return result_s

    def _receive(self, now_s: float) -> None:
        """Acknowledgements and results that have come in by now, and a probe when it is time."""
        while self._pending and self._pending[0].at_s <= now_s:
            ack = self._pending.popleft()
            self.estimator.on_ack(ack, ack.at_s * 1000.0)
            self._unacked -= ack.sent_bytes
            self._heard_s = ack.at_s
            self.experiences.append(ack.experience)
        due_s = self.index * self.stride_s - self.settings.probe_lead_ms / 1000.0
        if self.settings.probe_lead_ms and self._probed < self.index and due_s >= 0:
            self._probed = self.index
            self._probe(due_s)
        self._probe(now_s, self.settings.ping_interval_ms / 1000.0)

    def _probe(self, now_s: float, interval_s: float = 0.0) -> None:
        """Takes in the last probe's answer, then sends another if it is time; one at a time, as the session does."""
        left_s, answer_s = self._ping_s
        if answer_s <= now_s:
            self.estimator.on_rtt((answer_s - left_s) * 1000.0, answer_s * 1000.0)
            self.estimator.on_probe(None)
            self._heard_s = max(self._heard_s, answer_s)
            self._ping_s = (left_s, math.inf)
        elif math.isfinite(answer_s):
            return
        if now_s - left_s >= interval_s:
            _, arrived_s = self.uplink.schedule(now_s, PING_BYTES)
            answered_s = self.downlink.schedule(arrived_s, PING_BYTES)[1] if math.isfinite(arrived_s) else math.inf
            self._ping_s = (now_s, answered_s)
            self.estimator.on_probe(now_s * 1000.0)
            self._control_bytes += PING_BYTES

    def _computed_s(self, start_s: float, core_ms: float) -> float:
        """When `core_ms` of one idle core's work are done under the load of the rest."""
        speed = self.settings.throttle_speed if self.throttled else 1.0
        need_s, shares = core_ms / 1000.0, self._shares
        at = start_s + self.load_start_s
        while True:
            index = int(at / STEP_S + 1e-9)
            capacity = max(1.0 - shares[index % len(shares)], LEAST_CAPACITY) * speed
            room_s = ((index + 1) * STEP_S - at) * capacity
            if room_s >= need_s:
                return at + need_s / capacity - self.load_start_s
            need_s -= room_s
            at = (index + 1) * STEP_S

    def _served_s(self, action: int, arrived_s: float) -> float:
        s = self.settings
        return arrived_s + (self.waits_ms[self.index] + self._columns.server_ms[action] * s.server_load) / 1000.0

    def _fetch(self, action: int, start_s: float) -> tuple[int, float]:
        """(bytes to fetch, when computing can begin) for a cut deeper than the weights that are here.

        It does not queue with results: those of windows that still wait for the uplink come later than it.
        """
        c = self._columns
        if c.block[action] <= self.held_blocks:
            return 0, start_s
        size = max(int(c.fetch_bytes[action] - c.held_bytes(self.held_blocks)), 0)
        if not size:
            return 0, start_s
        return size, max(self.downlink.finish_s(start_s, size), start_s) + self.downlink.rtt_ms(start_s) / 1000.0

    def _frame_bytes(self, action: int) -> int:
        """What crosses: at block 0 the whole window unless the one before left its overlap at the server."""
        c = self._columns
        size = c.payload_bytes[action]
        if c.chain[action] and self.chain < c.chain[action]:
            size *= self.settings.length_ms / self.settings.stride_ms
        return int(size) + HEADER_BYTES + (8 if size < 65_000 else 14)

    def _answer_bytes(self, action: int) -> int:
        embedding = EMBEDDING_BYTES if self._columns.block[action] < self.table.num_blocks else 0
        return RESULT_BYTES + embedding + ACK_BYTES

    def _consequence(self, action: int, latency_ms: float, up: int, down: int) -> Consequence:
        c = self._columns
        energy_mj = self.profile.compute_mj(c.edge_ms[action]) + self.profile.radio.transmit_mj(up)
        seen = bool(c.sends[action])
        # Downlink results cost nothing extra in the papers' rewards; fetched weights do.
        traffic = up + max(down - RESULT_BYTES - EMBEDDING_BYTES - ACK_BYTES, 0)
        return Consequence(
            c.quality_loss[action], latency_ms, energy_mj, traffic, c.edge_ms[action], c.privacy_risk[action], seen,
            self.doubt,
        )  # fmt: skip

    def _lost(self) -> Consequence:
        return Consequence(1.0, math.inf, 0.0, 0.0, 0.0, 0.0, False, self.doubt)

    def _reward(self, what: Consequence) -> float:
        return reward(self.settings.objective, what, self.settings.stride_ms)

    def _pass_time(self, busy_ms: float, energy_mj: float) -> None:
        """To the end of the next window: own load, temperature, battery."""
        s, stride_s = self.settings, self.stride_s
        share = min(busy_ms / (s.stride_ms * self.profile.cores), 1.0)
        self._own += (1.0 - math.exp(-stride_s)) * (share - self._own)
        other = self._other(self.index * stride_s)
        cpu = min(other + (1.0 - other) * self._own, 1.0)
        keep = math.exp(-stride_s / s.thermal_time_s)
        self.thermal = keep * self.thermal + (1.0 - keep) * cpu
        self.throttled = self.thermal > s.throttle_at - (0.05 if self.throttled else 0.0)
        self.power_mw += min(stride_s / s.energy_window_s, 1.0) * (energy_mj / stride_s - self.power_mw)
        # `energy_mj` is what our own work costs, so the rest of the power is that of the rest of the load.
        self.drained_mj += energy_mj + self.profile.power_w(other) * s.stride_ms
        self.index += 1


class _Columns:
    """A table's columns as lists: reading one number of a numpy array takes longer than computing with it."""

    def __init__(self, arrays: CutArrays) -> None:
        self.edge_ms: list[float] = arrays.edge_ms.tolist()
        self.server_ms: list[float] = arrays.server_ms.tolist()
        self.payload_bytes: list[float] = arrays.payload_bytes.tolist()
        self.quality_loss: list[float] = arrays.quality_loss.tolist()
        self.privacy_risk: list[float] = arrays.privacy_risk.tolist()
        self.sends: list[bool] = arrays.sends.tolist()
        self.block: list[int] = arrays.block.tolist()
        self.fetch_bytes: list[float] = arrays.fetch_bytes.tolist()
        self.chain: list[int] = arrays.overlap.tolist()
        self._held = sorted(zip(self.block, self.fetch_bytes, strict=True))

    def held_bytes(self, blocks: int) -> float:
        """Of the weights of blocks 1..`blocks`: as many as the deepest row up to there needs."""
        return max((size for block, size in self._held if block <= blocks), default=0.0)


def _autoregressive(count: int, s: SimulationSettings, rng: np.random.Generator) -> list[float]:
    """Uncertainties as shares: first order, stationary, held in [0, 1]."""
    keep = s.uncertainty_memory
    noise = rng.standard_normal(count) * math.sqrt(1.0 - keep * keep)
    values, value = [], float(rng.standard_normal())
    for step in noise.tolist():
        value = keep * value + step
        values.append(min(max(s.uncertainty_mean + s.uncertainty_sd * value, 0.0), 1.0))
    return values
