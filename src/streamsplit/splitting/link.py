"""Uplink rate and round trip, estimated from acknowledgements (pure: times come in)."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from streamsplit.config import Settings, setting


class AckTimes(Protocol):
    """The fields of an acknowledgement that say something about the link (message `Ack` or event `Acked`)."""

    @property
    def through(self) -> int: ...
    @property
    def held_ms(self) -> float: ...
    @property
    def arrived_ms(self) -> int: ...


class LinkEstimate(NamedTuple):
    """What is known at one moment; nan and inf before the first sample."""

    bandwidth_bps: float
    bandwidth_age_ms: float
    rtt_ms: float
    rtt_age_ms: float
    outstanding_bytes: int  # sent, not yet acknowledged
    waiting_ms: float = 0.0  # since the oldest of it, or a probe, was handed to the link: how long it is stuck, if so
    last_rtt_ms: float = math.nan  # the newest sample, as it was
    queue_ms: float = math.nan  # by which it, or the wait for a probe under way, is above the connection's least
    rtt_samples: int = 0  # so far


@dataclass(frozen=True, kw_only=True)
class LinkSettings(Settings):
    """How samples become estimates."""

    smoothing: float = setting(0.3, low=0.0, high=1.0)  # weight of a new sample (v2, section 7)
    minimum_sample_bytes: int = setting(1200, low=1)  # smaller samples drown in jitter: they may only raise the rate
    resolution_ms: float = setting(1.0, low=0.1)  # shortest transmission time believed (the wire's clock is in ms)
    probe_lead_ms: float = setting(300.0, low=0.0)  # a probe goes out so long before each window ends; 0 = none does
    memory_ms: float = setting(30_000.0, low=1.0)  # how long the smallest round trip and clock offset are remembered


class _RecentMinimum:
    """Minimum over the last `memory_ms`, in two buckets: at most twice as old, constant memory."""

    def __init__(self, memory_ms: float) -> None:
        self._memory_ms = memory_ms
        self._since_ms = -math.inf
        self._current = math.inf
        self._previous = math.inf

    def add(self, value: float, now_ms: float) -> None:
        if now_ms - self._since_ms >= self._memory_ms:
            stale = now_ms - self._since_ms >= 2 * self._memory_ms
            self._previous = math.inf if stale else self._current
            self._current, self._since_ms = math.inf, now_ms
        self._current = min(self._current, value)

    @property
    def value(self) -> float:
        return min(self._current, self._previous)


class LinkEstimator:
    """Follows one uplink.

    A frame handed to the link at `sent` whose last byte entered the link at `end` was carried in at most `end - sent`,
    so the frames i..n of one acknowledgement bound the rate by bytes(i..n) / (end - sent_i) for every i, and the
    largest bound is the sample. `end` is the receiver's arrival time moved to our clock (smallest offset seen) minus
    the smallest round trip, so delayed acknowledgements do not disturb it. Frames that queue behind one already under
    way start when that one ended. The handshake's round trip (`on_rtt`) comes first: nothing is sampled before it.
    Samples are smoothed with an exponential moving average.
    """

    def __init__(self, settings: LinkSettings | None = None) -> None:
        self.settings = settings or LinkSettings()
        self._sent: deque[tuple[int, int, float]] = deque()  # sequence, bytes, handed to the link
        self._link_free_ms = -math.inf  # when the last acknowledged byte had entered the link
        self._base_rtt = _RecentMinimum(self.settings.memory_ms)
        self._offset = _RecentMinimum(self.settings.memory_ms)
        self._bandwidth_bps = math.nan
        self._bandwidth_at_ms = -math.inf
        self._rtt_ms = math.nan
        self._last_rtt_ms = math.nan
        self._least_rtt = _RecentMinimum(self.settings.memory_ms)  # of this connection
        self._rtt_samples = 0
        self._probing_since_ms: float | None = None
        self._rtt_at_ms = -math.inf
        self._held_ms = 0.0

    def on_sent(self, sequence: int, frame_bytes: int, now_ms: float) -> None:
        """A numbered frame was handed to the socket."""
        self._sent.append((sequence, frame_bytes, now_ms))

    def on_rtt(self, rtt_ms: float, now_ms: float) -> None:
        """A small probe came back (PING, HELLO): a round trip without queueing."""
        if not (math.isfinite(rtt_ms) and rtt_ms >= 0):
            return
        self._base_rtt.add(rtt_ms, now_ms)
        self._least_rtt.add(rtt_ms, now_ms)
        self._rtt_samples += 1
        a = self.settings.smoothing
        self._last_rtt_ms = rtt_ms
        self._rtt_ms = rtt_ms if math.isnan(self._rtt_ms) else a * rtt_ms + (1 - a) * self._rtt_ms
        self._rtt_at_ms = now_ms

    def on_probe(self, since_ms: float | None) -> None:
        """A probe has been under way since `since_ms`; None: none is. One that is overdue shows a stuck link."""
        self._probing_since_ms = since_ms

    def on_ack(self, ack: AckTimes, now_ms: float) -> None:
        """Everything up to `ack.through` has arrived."""
        covered = []
        while self._sent and self._sent[0][0] <= ack.through:
            covered.append(self._sent.popleft())
        if not covered:
            return
        total = sum(size for _, size, _ in covered)
        left_ms = now_ms - max(ack.held_ms, 0.0)  # our clock, when the ack would have come without being held
        delay_ms = left_ms - covered[-1][2]
        alone = len(covered) == 1 and covered[0][2] >= self._link_free_ms
        if alone and total < self.settings.minimum_sample_bytes:
            self.on_rtt(max(delay_ms, 0.0), now_ms)
        if ack.arrived_ms > 0:
            self._offset.add(left_ms - ack.arrived_ms, now_ms)
            left_ms = ack.arrived_ms + self._offset.value
        self._held_ms = max(ack.held_ms, 0.0)
        if not math.isfinite(self._base_rtt.value):
            return  # without one unloaded round trip a delay cannot be told from a slow link
        end_ms = left_ms - self._base_rtt.value
        self._sample(covered, end_ms, now_ms)
        self._link_free_ms = max(self._link_free_ms, end_ms)

    def lost(self) -> None:
        """The connection is gone: what was under way will be sent again; estimates stay and age."""
        self._sent.clear()
        self._probing_since_ms = None
        self._link_free_ms = -math.inf
        self._offset = _RecentMinimum(self.settings.memory_ms)  # the next peer may have another clock
        self._least_rtt = _RecentMinimum(self.settings.memory_ms)

    def estimate(self, now_ms: float) -> LinkEstimate:
        """The estimates at `now_ms`; bytes that have been waiting too long already lower the rate."""
        outstanding = sum(size for _, size, _ in self._sent)
        bandwidth, seen_ms = self._bandwidth_bps, self._bandwidth_at_ms
        if outstanding >= self.settings.minimum_sample_bytes and math.isfinite(self._base_rtt.value):
            started = max(self._sent[0][2], self._link_free_ms)
            allowed_ms = 2 * (self._base_rtt.value + self._held_ms) + 4 * self.settings.resolution_ms
            waiting_ms = now_ms - started - allowed_ms
            if waiting_ms > 0 and not outstanding * 8000.0 / waiting_ms >= bandwidth:
                bandwidth, seen_ms = outstanding * 8000.0 / waiting_ms, now_ms
        since_ms = self._sent[0][2] if self._sent else now_ms
        if self._probing_since_ms is not None:
            since_ms = min(since_ms, self._probing_since_ms)
        stuck_ms = max(now_ms - since_ms, 0.0)
        rtt_age_ms = now_ms - self._rtt_at_ms
        return LinkEstimate(
            bandwidth, now_ms - seen_ms, self._rtt_ms, rtt_age_ms, outstanding, stuck_ms, self._last_rtt_ms,
            self._queue_ms(now_ms), self._rtt_samples,
        )  # fmt: skip

    def _queue_ms(self, now_ms: float) -> float:
        """How long a probe waited, or has been waiting already, behind what is queued; nan before the first one."""
        if not math.isfinite(self._least_rtt.value):
            return math.nan
        since_ms = self._probing_since_ms
        under_way_ms = 0.0 if since_ms is None else now_ms - since_ms
        return max(self._last_rtt_ms, under_way_ms) - self._least_rtt.value

    def _sample(self, covered: list[tuple[int, int, float]], end_ms: float, now_ms: float) -> None:
        total = sum(size for _, size, _ in covered)
        enough = min(total, self.settings.minimum_sample_bytes)
        best, size = 0.0, 0
        for _, frame_bytes, sent_ms in reversed(covered):
            size += frame_bytes
            if size >= enough:
                took_ms = end_ms - max(sent_ms, self._link_free_ms)
                best = max(best, size * 8000.0 / max(took_ms, self.settings.resolution_ms))
        known = not math.isnan(self._bandwidth_bps)
        if total < self.settings.minimum_sample_bytes and not (known and best >= self._bandwidth_bps):
            return
        a = self.settings.smoothing
        self._bandwidth_bps = a * best + (1 - a) * self._bandwidth_bps if known else best
        self._bandwidth_at_ms = now_ms
