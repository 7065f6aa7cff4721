"""The device's link estimator, looked at as often as the live runtime looks: a decision sees an estimate of before."""

from __future__ import annotations

from streamsplit.splitting.link import AckTimes, LinkEstimate, LinkEstimator, LinkSettings


class WatchedLink:
    """A `LinkEstimator` whose estimate is taken every `interval_ms` (0: fresh whenever asked).

    Looks are made up for when something is about to change or somebody asks, with the time at which they were due, so
    that they cost nothing while nothing happens and give what a timer would have given.
    """

    def __init__(self, settings: LinkSettings, interval_ms: float, now_ms: float = 0.0) -> None:
        self.estimator = LinkEstimator(settings)
        self._interval_ms = interval_ms
        self._seen = self.estimator.estimate(now_ms)
        self._first_ms = now_ms
        self._next_ms = now_ms + interval_ms

    def on_sent(self, sequence: int, frame_bytes: int, now_ms: float) -> None:
        """As LinkEstimator."""
        self._look(now_ms)
        self.estimator.on_sent(sequence, frame_bytes, now_ms)

    def on_rtt(self, rtt_ms: float, now_ms: float) -> None:
        """As LinkEstimator."""
        self._look(now_ms)
        self.estimator.on_rtt(rtt_ms, now_ms)

    def on_ack(self, ack: AckTimes, now_ms: float) -> None:
        """As LinkEstimator."""
        self._look(now_ms)
        self.estimator.on_ack(ack, now_ms)

    def on_probe(self, since_ms: float | None, now_ms: float) -> None:
        """As LinkEstimator."""
        self._look(now_ms)
        self.estimator.on_probe(since_ms)

    def lost(self, now_ms: float) -> None:
        """As LinkEstimator."""
        self._look(now_ms)
        self.estimator.lost()

    def estimate(self, now_ms: float) -> LinkEstimate:
        """The estimate of the last look."""
        if not self._interval_ms:
            return self.estimator.estimate(now_ms)
        self._look(now_ms)
        return self._seen

    def _look(self, now_ms: float) -> None:
        if self._interval_ms and now_ms >= self._next_ms:
            at_ms = self._first_ms + self._interval_ms * ((now_ms - self._first_ms) // self._interval_ms)
            self._seen = self.estimator.estimate(at_ms)
            self._next_ms = at_ms + self._interval_ms
