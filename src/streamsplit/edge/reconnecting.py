"""A microphone that may be unplugged: it is opened again for as long as it takes, and time goes on behind the gap."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator

from streamsplit.edge.blocks import RATE_HZ, AudioBlock, Source
from streamsplit.edge.outages import MICROPHONE, Backoff, Outages, often
from streamsplit.errors import AudioError

_log = logging.getLogger(__name__)


class ReconnectingSource:
    """The blocks of one source after the other, each opened when the one before it has failed with an AudioError.

    The first block after an outage says so, and begins as much later as the device was gone. A device that fails before
    it has ever given a block, and any other error, end the iteration.
    """

    def __init__(
        self,
        open_device: Callable[[], Source],
        reopen_device: Callable[[], Source],
        *,
        longest_s: float,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`longest_s`: of the wait between two tries. Raises what `open_device` raises."""
        self._source = open_device()
        self.info = self._source.info
        self.outages = Outages(MICROPHONE, clock_s)
        self._reopen, self._clock_s = reopen_device, clock_s
        self._backoff = Backoff(longest_s)
        self._longest_s = longest_s
        self._closed = threading.Event()
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[AudioBlock]:
        end_ms, moved_ms, last_s = 0.0, 0.0, math.nan  # of the newest block; nan: there is none yet
        source: Source | None = self._source
        while source is not None:
            began_s = self._clock_s()
            try:
                for block in source:
                    now_s = self._clock_s()
                    length_ms = len(block.samples) * 1000.0 / RATE_HZ
                    outage = bool(self.outages.reason)
                    if outage:
                        self.outages.end(now_s - length_ms / 1000.0)
                        gone_ms = 1000.0 * (now_s - last_s) - length_ms
                        moved_ms = end_ms + max(0.0, gone_ms) - block.start_ms
                    end_ms, last_s = block.start_ms + moved_ms + length_ms, now_s
                    yield block._replace(start_ms=block.start_ms + moved_ms, outage=outage)
                return
            except AudioError as error:
                if self._closed.is_set():
                    return
                if math.isnan(last_s):
                    raise
                if not self.outages.reason:
                    self._backoff.lost(self._clock_s() - began_s)
                    self.outages.begin(f"{error}; it is tried again {often(self._longest_s)}", last_s)
            source = self._again()

    def close(self) -> None:
        """Ends the iteration, and a wait under way."""
        self._closed.set()
        with self._lock:
            self._source.close()

    def _again(self) -> Source | None:
        """The device once more; None when it is closed."""
        while not self._closed.wait(self._backoff.wait_s()):
            try:
                source = self._reopen()
            except AudioError as error:
                _log.debug("not back yet: %s", error)
                continue
            with self._lock:
                self._source = source
                if self._closed.is_set():
                    source.close()
            return source
        return None
