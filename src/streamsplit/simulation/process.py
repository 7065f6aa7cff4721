"""One simulated device: windows come every stride, are decided on, computed, queued, and answered."""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from streamsplit.edge.pipeline import Outcome, Surroundings
from streamsplit.edge.readings import Readings
from streamsplit.simulation.clock import EventClock
from streamsplit.simulation.connection import DeviceEnd
from streamsplit.simulation.estimate import WatchedLink
from streamsplit.simulation.queue import MemoryQueue
from streamsplit.simulation.workload import DeviceWork
from streamsplit.splitting.cut import Cut
from streamsplit.wire.messages import Error, Gmm, Hello, Message, Result, Stats
from streamsplit.wire.types import PROTOCOL_VERSION

KEPT, SENT, DROPPED, LOST = range(4)
"""What became of a window: kept on the device, accepted for sending, refused by a full queue, never processed."""
UNIX_MS = 1_700_000_000_000  # virtual second 0 as a Unix time: capture stamps are as long on the wire as real ones
_LEAST_FREE = 0.02  # of a core, however busy the device is


class WindowLog:
    """What happened to every window of one device, in order; columns of plain numbers."""

    def __init__(self) -> None:
        self.captured_s = array("d")
        self.block, self.encoding, self.action = array("b"), array("b"), array("b")
        self.payload_bytes = array("i")
        self.edge_ms, self.energy_mj, self.latency_ms = array("f"), array("f"), array("f")
        self.bandwidth_bps, self.uncertainty = array("f"), array("f")
        self.backlog_bytes = array("i")

    def add(self, captured_s: float, outcome: Outcome | None, action: int) -> int:
        """A window's row; its result may come later. Returns its number."""
        row = len(self.captured_s)
        self.captured_s.append(captured_s)
        self.action.append(action)
        self.latency_ms.append(math.nan)
        if outcome is None:
            self.block.append(-1)
            self.encoding.append(0)
            for column in (self.edge_ms, self.energy_mj, self.bandwidth_bps, self.uncertainty):
                column.append(math.nan)
            self.payload_bytes.append(0)
            self.backlog_bytes.append(0)
            return row
        self.block.append(outcome.cut.block)
        self.encoding.append(int(outcome.cut.encoding))
        self.payload_bytes.append(len(outcome.payload) if outcome.payload is not None else 0)
        self.edge_ms.append(outcome.edge_ms)
        self.energy_mj.append(outcome.energy_mj)
        self.bandwidth_bps.append(outcome.observation.bandwidth_bps)
        self.uncertainty.append(outcome.uncertainty)
        self.backlog_bytes.append(outcome.observation.backlog_bytes)
        return row


class _Waiting(NamedTuple):
    window: int
    captured_s: float


class DeviceProcess:
    """Drives one device's work and is told what its connection hears.

    A window that comes while the device computes waits; what waits longer than the audio buffer is lost, oldest first,
    and the window after a loss starts anew, as on a live device.
    """

    def __init__(
        self,
        name: str,
        clock: EventClock,
        work: DeviceWork,
        queue: MemoryQueue,
        link: WatchedLink,
        *,
        readings: Callable[[float], Readings],
        load: Callable[[float], float] | None,
        edge_factor: float,
        start_s: float,
        stop_s: float,
        first_window_s: float,
        stride_s: float,
        buffer_s: float,
        report_s: float,
        device_class: str,
        want_embedding: bool,
        keep_results: bool,
        probe_lead_s: float = 0.0,
    ) -> None:
        self.log = WindowLog()
        self.results: dict[int, Result] = {}  # by window, where they are kept
        self.rejected = 0
        self.end: DeviceEnd | None = None
        self.cuts: list[Cut] = []  # of accepted windows, by sequence - 1
        self.name, self.queue = name, queue
        self._clock, self._work, self._queue, self._link = clock, work, queue, link
        self._readings, self._load, self._edge_factor = readings, load, edge_factor
        self._start_s, self._first_s, self._stride_s = start_s, start_s + first_window_s, stride_s
        self._stop_s = stop_s
        self._probe_lead_s = probe_lead_s if probe_lead_s < stride_s else 0.0
        self._buffer_windows = max(int(buffer_s / stride_s), 1)
        self._report_s = report_s
        self._device_class, self._want_embedding, self._keep_results = device_class, want_embedding, keep_results
        self._waiting: deque[_Waiting] = deque()
        self._free_at_s = -math.inf
        self._under_way = False  # a window that will cross is being computed
        self._starts = True
        self._rows: dict[int, int] = {}  # sequence of a window without a result -> its row
        self._windows: dict[int, int] = {}  # the same -> its index
        self._latency_ms = math.nan
        self._energy_mj = 0.0
        self._counts = [0, 0, 0, 0]

    def start(self) -> None:
        """Switches the device on at its time."""
        assert self.end is not None
        self._clock.at(self._start_s, self.end.connect)
        self._clock.at(self._first_s, self._captured, 0)
        if self._report_s:
            self._clock.at(self._start_s + self._report_s, self._report, 1)

    # -- windows -------------------------------------------------------------------------------------------------

    def _captured(self, index: int) -> None:
        now_s = self._clock.now_s
        if now_s > self._stop_s:
            return
        following_s = self._first_s + (index + 1) * self._stride_s
        self._clock.at(following_s, self._captured, index + 1)
        if self._probe_lead_s:
            assert self.end is not None
            self._clock.at(following_s - self._probe_lead_s, self.end.probe)
        if self._under_way or self._waiting or now_s < self._free_at_s:
            self._waiting.append(_Waiting(index, now_s))
            if len(self._waiting) == 1 and not self._under_way:
                self._clock.at(self._free_at_s, self._next)
            if len(self._waiting) > self._buffer_windows:
                self.log.add(self._waiting.popleft().captured_s, None, LOST)
                self._counts[LOST] += 1
                self._starts = True
        else:
            self._begin(index, now_s)

    def _begin(self, index: int, captured_s: float) -> None:
        clock, end = self._clock, self.end
        assert end is not None
        now_s = clock.now_s
        readings = self._readings(now_s)
        load = readings.cpu if self._load is None else self._load(now_s)
        link = self._link.estimate(now_s * 1000.0)
        around = Surroundings(readings, link, end.session.is_open, self._queue.pending_bytes)
        free_share = max(1.0 - load, _LEAST_FREE) / self._edge_factor
        outcome = self._work.process(index, around, free_share, starts=self._starts)
        self._starts = False
        self._free_at_s = now_s + outcome.edge_ms / 1000.0
        if outcome.payload is None:  # nobody waits for its end: the next window begins then or later
            self._note(index, captured_s, outcome, KEPT)
        else:
            self._under_way = True
            clock.at(self._free_at_s, self._computed, index, captured_s, outcome)

    def _computed(self, index: int, captured_s: float, outcome: Outcome) -> None:
        """The window is ready to cross."""
        end, payload = self.end, outcome.payload
        assert end is not None and payload is not None
        self._under_way = False
        sequence = self._queue.accept(outcome.frame_type, UNIX_MS + int(captured_s * 1000.0), index, payload)
        if sequence is None:
            self._work.refused()
            self._note(index, captured_s, outcome, DROPPED)
        else:
            self._rows[sequence] = len(self.log.captured_s)
            if self._keep_results:
                self._windows[sequence] = index
            self.cuts.append(outcome.cut)
            self._work.accepted(index, outcome)
            self._note(index, captured_s, outcome, SENT)
            end.flush()
        if self._waiting:
            self._next()

    def _next(self) -> None:
        """The device is free: the oldest window that waits begins."""
        if self._waiting and not self._under_way and self._clock.now_s >= self._free_at_s:
            self._begin(*self._waiting.popleft())
            if self._waiting and not self._under_way:
                self._clock.at(self._free_at_s, self._next)

    def _note(self, index: int, captured_s: float, outcome: Outcome, action: int) -> None:
        self.log.add(captured_s, outcome, action)
        self._counts[action] += 1
        self._energy_mj += outcome.energy_mj
        self._work.heard(index, outcome)

    # -- the connection's owner ----------------------------------------------------------------------------------

    def hello(self) -> Hello:
        """The greeting."""
        queue = self._queue
        return Hello(
            protocol=PROTOCOL_VERSION, device_id=self.name, token="", epoch=queue.epoch,
            oldest_sequence=queue.oldest_sequence, next_sequence=queue.next_sequence, results_from=queue.results_from,
            encoder=self._work.encoder, revision=self._work.revision, device_class=self._device_class,
            software="streamsplit", want_embedding=self._want_embedding,
        )  # fmt: skip

    def message(self, message: Message) -> None:
        """What the server says."""
        if isinstance(message, Result):
            if self._queue.take_result(message.sequence):
                row = self._rows.pop(message.sequence)
                latency_ms = 1000.0 * (self._clock.now_s - self.log.captured_s[row])
                self.log.latency_ms[row] = latency_ms
                self._latency_ms = (
                    latency_ms if math.isnan(self._latency_ms) else 0.8 * self._latency_ms + 0.2 * latency_ms
                )
                if self._keep_results:
                    self.results[self._windows.pop(message.sequence)] = message
                self._work.result(message)
        elif isinstance(message, Gmm):
            self._work.adopt(message)
        elif isinstance(message, Error) and message.sequence and self._queue.take_result(message.sequence):
            self.rejected += 1
            del self._rows[message.sequence]
            self._work.refused()

    def _report(self, number: int) -> None:
        """STATS, as the live device sends them."""
        end, clock = self.end, self._clock
        assert end is not None
        clock.at(self._start_s + (number + 1) * self._report_s, self._report, number + 1)
        if not end.is_open:
            return
        readings, link = self._readings(clock.now_s), self._link.estimate(clock.now_ms)
        kept, sent, dropped, lost = self._counts
        cut = str(self.cuts[-1]) if self.cuts else ""
        up, down = end.socket_bytes
        end.send(
            Stats(
                cpu=readings.cpu, memory=readings.memory, battery=readings.battery, thermal=readings.thermal,
                bandwidth_bps=_known(link.bandwidth_bps), rtt_ms=_known(link.rtt_ms),
                queue_windows=self._queue.pending, queue_bytes=self._queue.pending_bytes,
                windows_seen=kept + sent + dropped + lost, windows_sent=sent, windows_skipped=kept,
                windows_dropped=dropped, uplink_bytes=up, downlink_bytes=down, latency_ms=_known(self._latency_ms),
                cut=cut, uncertainty=self.log.uncertainty[-1] if self._counts != [0] * 4 else math.nan,
                energy_mj=self._energy_mj, revision=self._work.revision,
            )
        )  # fmt: skip


def columns(log: WindowLog) -> dict[str, np.ndarray]:
    """The log as numpy arrays."""
    return {name: np.array(column) for name, column in vars(log).items()}


def _known(value: float) -> float:
    return value if math.isfinite(value) and value >= 0 else 0.0
