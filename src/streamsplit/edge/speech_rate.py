"""How many bits a second speech is coded at: what the link was measured to carry without a queue.

Speech is too little to fill a link, so what the link could carry is not seen; a queue is. Probes go up among the
speech (PING, answered at once), over whatever transport: where they come back late, by how much is what is queued
before them, and speech takes half of its bits; where they have come back in time for a while, it takes a quarter more.
The rate at which a queue began is tried again only much later. Where windows are acknowledged their rate is known, and
they make queues of their own: speech takes a share of it then.
"""

from __future__ import annotations

import math

from streamsplit.edge.talk_settings import BitrateSettings
from streamsplit.splitting.link import LinkEstimate

_SHARE = 0.25  # of a known rate
_CHANGE = 0.15  # of the bitrate, by which that has to move before it is followed
_FRESH_MS = 10_000.0  # a rate that was seen longer ago is not known
_DOWN, _UP = 0.5, 1.25
_STEP_BPS = 1_000
_LATE_PROBES = 2  # in a row: one may have met a busy machine
_CAUTION = 10  # times as long before the rate is tried again at which a queue began


class SpeechRate:
    """Of one talker; `follow` while it speaks, `rest` while it does not."""

    def __init__(self, settings: BitrateSettings, start_bps: int, most_bps: int) -> None:
        """`most_bps`: what the settings allow for messages of this size."""
        self.settings = settings
        self.bps = start_bps
        self._least_bps, self._most_bps = min(settings.least_bps, start_bps), max(most_bps, start_bps)
        self._late = 0  # probes in a row that met a queue
        self._samples = 0  # round trips, as far as they have been looked at
        self._sampled_ms = 0.0  # the queue that the last one met
        self._full = False  # a queue has not gone yet
        self._queued_bps = math.inf  # the last rate at which one began
        self._calm_ms = self._changed_ms = -math.inf  # since when there is no queue, and the last change

    def rest(self, now_ms: float) -> None:
        """Nothing is being said, which is no sign of room on the link."""
        self._calm_ms, self._late = now_ms, 0

    def follow(self, link: LinkEstimate, now_ms: float) -> int:
        """The rate from now on, bit/s."""
        if math.isinf(self._calm_ms):
            self.rest(now_ms)
        if link.bandwidth_age_ms < _FRESH_MS and not math.isnan(link.bandwidth_bps):
            self.rest(now_ms)
            share_bps = self._held(link.bandwidth_bps * _SHARE)
            if abs(share_bps - self.bps) > _CHANGE * self.bps:
                self.bps = share_bps
        elif not math.isnan(link.queue_ms):
            self._follow_queue(link, now_ms)
        return self.bps

    def _follow_queue(self, link: LinkEstimate, now_ms: float) -> None:
        s = self.settings
        if link.rtt_samples != self._samples:
            self._samples, self._sampled_ms = link.rtt_samples, link.queue_ms
            self._late = self._late + 1 if link.queue_ms > s.queue_ms else 0
        if link.queue_ms > s.room_ms:
            self._calm_ms = now_ms
        else:
            self._full = False
        overdue = link.queue_ms > max(_LATE_PROBES * s.queue_ms, self._sampled_ms)  # the probe that is under way
        if (self._late >= _LATE_PROBES or overdue) and now_ms - self._changed_ms >= s.settle_ms:
            self._late, self._changed_ms = 0, now_ms
            if not self._full:  # else it is the same queue, of a higher rate
                self._full, self._queued_bps = True, self.bps
            self.bps = self._held(self.bps * _DOWN)
            return
        more_bps = self._held(self.bps * _UP)
        wait_ms = s.climb_ms * (_CAUTION if more_bps >= self._queued_bps else 1)
        if more_bps > self.bps and now_ms - max(self._calm_ms, self._changed_ms) >= wait_ms:
            if more_bps >= self._queued_bps:
                self._queued_bps = math.inf
            self.bps, self._changed_ms = more_bps, now_ms

    def _held(self, bps: float) -> int:
        """Within bounds, in whole steps."""
        return int(min(max(bps, self._least_bps), self._most_bps)) // _STEP_BPS * _STEP_BPS
