"""Virtual time: what happens next, in order of time and, at one time, in the order in which it was asked for."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any


class EventClock:
    """A queue of calls to be made at times, in seconds. Nothing here waits: time jumps from one call to the next."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.events = 0  # calls made so far
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0

    @property
    def now_ms(self) -> float:
        """The time as the wire sessions count it."""
        return self.now_s * 1000.0

    def at(self, time_s: float, call: Callable[..., None], *arguments: Any) -> None:
        """Has `call` made at a time, at once (but after what was asked for before) if that is past; never at inf."""
        if time_s == math.inf:
            return
        self._number += 1
        heapq.heappush(self._heap, (max(time_s, self.now_s), self._number, call, arguments))

    def run(self, until_s: float) -> None:
        """Makes every call due up to and including `until_s`, which is the time afterwards."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= until_s:
            self.now_s, _, call, arguments = pop(heap)
            self.events += 1
            call(*arguments)
        self.now_s = max(self.now_s, until_s)
