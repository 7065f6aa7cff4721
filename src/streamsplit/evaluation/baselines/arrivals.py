"""When what devices send reaches the server: at once and in order, or late, reordered and with losses."""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np


class Sent(NamedTuple):
    """A window on its way, as the device sent it: nothing in it is brought up to date when it arrives."""

    device: str
    window: int
    features: np.ndarray  # [f, t] as the server unpacks them
    embedding: np.ndarray
    revision: str
    starts: bool


class Arrivals:
    """A link without a clock: time is the number of windows heard by all devices together.

    Every window is lost with probability `lost_share`, or else delayed by 0..`late_windows` windows, each delay as
    likely, so that it overtakes others and is overtaken. What marks the first window after a gap is lost with it.
    """

    def __init__(self, late_windows: int = 0, lost_share: float = 0.0, seed: int = 0) -> None:
        self.late_windows, self.lost_share = late_windows, lost_share
        self._random = np.random.default_rng([seed, 83])
        self._underway: list[tuple[int, int, Sent]] = []  # due, count of windows sent before
        self._count = 0
        self._newest: dict[str, int] = {}
        self.lost = self.overtaken = 0

    @property
    def about(self) -> str:
        """What became of the windows, in a few words."""
        return (
            f"of {self._count} windows sent {self.lost} lost, {len(self._underway)} still under way, "
            f"{self.overtaken} after a later one of their device"
        )

    def send(self, now: int, sent: Sent, *, at_once: bool = False) -> None:
        """Takes a window that leaves its device at `now`; `at_once`: it is neither late nor lost."""
        delay, lost = 0, False
        if not at_once:
            delay = int(self._random.integers(self.late_windows + 1))
            lost = bool(self._random.random() < self.lost_share)
        self._count += 1
        if lost:
            self.lost += 1
        else:
            heapq.heappush(self._underway, (now + delay, self._count, sent))

    def due(self, now: int) -> list[Sent]:
        """Everything that has reached the server by `now` and was not given before, in its order of arrival."""
        here = []
        while self._underway and self._underway[0][0] <= now:
            sent = heapq.heappop(self._underway)[2]
            newest = self._newest.get(sent.device, -1)
            self.overtaken += sent.window < newest
            self._newest[sent.device] = max(newest, sent.window)
            here.append(sent)
        return here
