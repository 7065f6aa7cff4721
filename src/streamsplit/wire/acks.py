"""The receiver's side of acknowledgements: when to send one, and the times it carries."""

from __future__ import annotations

import math
from typing import NamedTuple

from streamsplit.wire.frame import Frame
from streamsplit.wire.messages import Ack


class _Arrival(NamedTuple):
    now_ms: float
    timestamp_ms: int
    total_bytes: int


class AckPlanner:
    """Gathers acknowledgements: one goes out after `every_frames` of them or `delay_ms` after the first."""

    def __init__(self, every_frames: int, delay_ms: float) -> None:
        self.every_frames = every_frames
        self.delay_ms = delay_ms
        self.through = 0  # what an ack would say now
        self._told = 0  # what the last ack said
        self._due_ms = math.inf
        self._arrivals: dict[int, _Arrival] = {}

    def restart(self, through: int) -> None:
        """A new connection, whose WELCOME or HELLO says `through`; arrival times of the old one mean nothing there."""
        self.through = self._told = through
        self._due_ms = math.inf
        self._arrivals.clear()

    def arrived(self, frame: Frame, now_ms: float, total_bytes: int) -> None:
        """Remembers when a numbered frame came, until it is acknowledged."""
        self._arrivals[frame.sequence] = _Arrival(now_ms, frame.timestamp_ms, total_bytes)

    def acknowledge(self, through: int, now_ms: float) -> None:
        """Frames up to `through` are done with."""
        if through > self.through:
            self.through = through
            self._due_ms = min(self._due_ms, now_ms + self.delay_ms)
            if self.through - self._told >= self.every_frames:
                self._due_ms = now_ms

    def repeat(self, now_ms: float) -> None:
        """The peer sent again what was acknowledged: tell it once more."""
        self._due_ms = min(self._due_ms, now_ms + self.delay_ms)

    @property
    def deadline_ms(self) -> float:
        """When the next ack must go; infinity if none is owed."""
        return self._due_ms

    def compose(self, now_ms: float, credit: int = 0) -> Ack:
        """The ack to send now."""
        arrival = self._arrivals.get(self.through)
        for sequence in [s for s in self._arrivals if s <= self.through]:
            del self._arrivals[sequence]
        self._told = self.through
        self._due_ms = math.inf
        if arrival is None:
            return Ack(through=self.through, credit=credit)
        return Ack(
            through=self.through,
            echo_ms=arrival.timestamp_ms,
            held_ms=max(0.0, float(now_ms - arrival.now_ms)),
            received_bytes=arrival.total_bytes,
            arrived_ms=max(0, int(arrival.now_ms)),
            credit=credit,
        )
