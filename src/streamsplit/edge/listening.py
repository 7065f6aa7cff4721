"""Listening: audio blocks to windows, windows through the pipeline into the queue. Runs in the worker thread."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable

from streamsplit.audio.windows import Window, WindowStream
from streamsplit.edge.counters import Counters
from streamsplit.edge.decisions import Decisions
from streamsplit.edge.inlet import AudioInlet, Heard
from streamsplit.edge.learning import LearningLoop
from streamsplit.edge.monitor import ResourceState
from streamsplit.edge.pipeline import Outcome, Surroundings, WindowPipeline
from streamsplit.edge.queue import OfflineQueue
from streamsplit.edge.settings import EdgeSettings
from streamsplit.errors import StoreError, StreamSplitError
from streamsplit.splitting.cut import Cut
from streamsplit.wire.media import Encoding

_UNPACED_BACKLOG = 64  # windows in the queue beyond which an unpaced source waits


class Listener:
    """Takes blocks from the inlet one at a time and does all that follows from each."""

    def __init__(
        self,
        settings: EdgeSettings,
        inlet: AudioInlet,
        pipeline: WindowPipeline,
        queue: OfflineQueue,
        counters: Counters,
        learning: LearningLoop,
        decisions: Decisions,
        *,
        paced: bool,
        surroundings: Callable[[], Surroundings],
        state: Callable[[], ResourceState],
        wake: Callable[[], None],
        probe: Callable[[], None],
        note: Callable[..., None],
        problem: Callable[[str], None],
        stopped: Callable[[], bool],
    ) -> None:
        self.finished = False
        self._inlet, self._pipeline, self._queue, self._counters = inlet, pipeline, queue, counters
        self._learning, self._decisions, self._paced = learning, decisions, paced
        self._surroundings, self._state, self._wake = surroundings, state, wake
        self._note, self._problem, self._stopped = note, problem, stopped
        audio = settings.audio
        self._stream = WindowStream(audio.log_mel, audio.window_frames, audio.stride_frames)
        self._window_ms = audio.window_frames * 10.0
        self._probe = probe
        lead_ms, stride_ms = settings.splitting.link.probe_lead_ms, audio.stride_frames * 10.0
        # a window that is decided on is better decided on if it is known whether the link is alive right now
        self._probe_after_ms = stride_ms - lead_ms if paced and 0 < lead_ms < stride_ms else math.inf
        self._since_window_ms = 0.0
        self._stride_ms = stride_ms
        self._last_end_ms = self._window_ms - stride_ms  # of the newest window
        self._in_gap = False  # since then some sound was lost
        self._clip: str | None = None
        self._feature_ms = 0.0
        self._labels: deque[tuple[float, str | None]] = deque()  # (end of block, label) under the newest window

    def step(self, timeout_s: float) -> None:
        """One block, or the end."""
        if not self._paced and self._queue.pending >= _UNPACED_BACKLOG and not self._stopped():
            time.sleep(0.005)  # the network is slower than the source: let it catch up
            return
        heard = self._inlet.get(timeout_s)
        if heard is not None:
            self._hear(heard)
        elif self._inlet.finished:
            self._windows(self._stream.flush(self._state().resolution), int(time.time() * 1000))
            self.finished = True

    def _hear(self, heard: Heard) -> None:
        block, resolution = heard.block, self._state().resolution
        if heard.gap:
            if not block.outage:
                self._problem("this device is too slow for its audio: some was dropped (see dropped_audio_ms)")
            self._note("gap", dropped_ms=self._inlet.dropped_ms, outage=block.outage)
            self._in_gap = True
            self._stream.reset(block.start_ms)
            self._labels.clear()
        elif block.clip != self._clip:
            self._windows(self._stream.flush(resolution), heard.captured_ms)
            self._labels.clear()
        self._clip = block.clip
        end_ms = block.start_ms + len(block.samples) / 16.0
        self._labels.append((end_ms, block.label))
        while self._labels and self._labels[0][0] <= end_ms - self._window_ms:
            self._labels.popleft()
        try:
            windows, spent = self._pipeline.worker.run(lambda: self._stream.push(block.samples, resolution))
        except StreamSplitError as error:  # not finite: a broken driver
            self._problem(f"audio block at {block.start_ms:.0f} ms left out: {error}")
            self._stream.reset(end_ms)
            return
        self._feature_ms += spent.device_ms
        before_ms = self._since_window_ms
        self._since_window_ms = 0.0 if windows else before_ms + len(block.samples) / 16.0
        self._windows(windows, heard.captured_ms)
        if before_ms < self._probe_after_ms <= self._since_window_ms:
            self._probe()

    def _windows(self, windows: list[Window], captured_ms: int) -> None:
        for window in windows:
            self._process(window, captured_ms)
            self._feature_ms = 0.0

    def _process(self, window: Window, captured_ms: int) -> None:
        counters = self._counters
        missed = 0
        if self._in_gap:  # their ends, a stride apart, between this one's and its
            missed = max(0, round((window.end_ms - self._last_end_ms) / self._stride_ms) - 1)
        self._in_gap, self._last_end_ms = False, window.end_ms
        with counters.lock:
            counters.windows_seen += 1
            counters.windows_missed += missed
        try:
            outcome = self._pipeline.process(window, self._surroundings(), self._feature_ms)
        except StreamSplitError as error:
            with counters.lock:
                counters.windows_failed += 1
            self._pipeline.chain.break_off()
            self._problem(f"window {window.index} not processed: {error}")
            return
        sequence = self._accept(window, outcome, captured_ms) if outcome.payload is not None else None
        self._pipeline.worker.drain(outcome.energy_mj)
        with counters.lock:
            counters.windows_skipped += not outcome.sends
            counters.cuts[_cut_name(outcome)] += 1
            counters.cut = _cut_name(outcome)
            counters.energy_mj += outcome.energy_mj
            counters.uncertainty = outcome.uncertainty
            counters.average("edge_ms", outcome.edge_ms)
        self._journal(window, outcome, sequence, captured_ms)
        age_ms = max(time.time() * 1000 - captured_ms, 0.0) if self._paced else 0.0
        self._decisions.made(outcome, self._queue.epoch, sequence, max(age_ms, outcome.edge_ms))
        self._learning.heard(window, outcome)

    def _accept(self, window: Window, outcome: Outcome, captured_ms: int) -> int | None:
        """Puts the window into the queue; its sequence, or None when it is lost, which is counted and said."""
        if outcome.payload is None:
            return None
        try:
            sequence = self._queue.accept(outcome.frame_type, captured_ms, outcome.window, outcome.payload)
            if sequence is None:
                self._problem(f"the offline queue is full ({self._queue.pending} windows): new windows are dropped")
        except StoreError as error:
            self._problem(str(error))
            sequence = None
        with self._counters.lock:
            if sequence is None:
                self._counters.windows_dropped += 1
            else:
                self._counters.windows_sent += 1
        if sequence is None:
            self._pipeline.refused()
            return None
        self._pipeline.accepted(window, outcome)
        self._wake()
        return sequence

    def _journal(self, window: Window, outcome: Outcome, sequence: int | None, captured_ms: int) -> None:
        seen, decision = outcome.observation, outcome.decision
        labels = Counter(label for _, label in self._labels)
        self._note(
            "window", window=outcome.window, sequence=sequence, epoch=self._queue.epoch, captured_ms=captured_ms,
            cut=str(outcome.cut), action=outcome.action.value, reason=outcome.reason, confidence=outcome.confidence,
            payload_bytes=len(outcome.payload or b""), uncertainty=outcome.uncertainty, threshold=outcome.threshold,
            edge_ms=outcome.edge_ms, energy_mj=outcome.energy_mj, cpu=seen.cpu, bandwidth_bps=seen.bandwidth_bps,
            rtt_ms=seen.rtt_ms, backlog_bytes=seen.backlog_bytes, link_up=seen.link_up,
            label=labels.most_common(1)[0][0] if labels else None, clip=self._clip,
            resolution=int(window.resolution), expected_cost=decision.expected if decision is not None else None,
            alternatives=decision.plain() if decision is not None else None,
        )  # fmt: skip


def _cut_name(outcome: Outcome) -> str:
    """'6:int8' for a window that crosses, '6:none' for one that was computed that far and stays."""
    return str(outcome.cut if outcome.sends else Cut(outcome.cut.block, Encoding.NONE))
