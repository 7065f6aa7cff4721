"""The server's compute thread in virtual time: micro-batches as the live worker makes them, at measured prices."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from streamsplit.server.settings import ComputeSettings
from streamsplit.simulation.clock import EventClock
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.table import CutTable
from streamsplit.wire.messages import Gmm, Message

# How much cheaper a window is in a batch of 64 than alone, by share of the blocks that the device computed:
# benchmarks/results/micro_batch.json, cuts 0, 3, 6, 9 and 12 of 13. A finished embedding has nothing to share.
_SAVING_AT = (0.0, 3 / 13, 6 / 13, 9 / 13, 12 / 13, 1.0)
_SAVING = (3.48, 3.79, 3.58, 2.80, 1.80, 1.0)
_SAVING_BATCH = 64


class Price(NamedTuple):
    """Server time of a batch of n equal windows: fixed_ms + n each_ms."""

    fixed_ms: float
    each_ms: float


def batch_price(table: CutTable, cut: Cut) -> Price:
    """From the table's server time at batch 1 and the measured saving at batch 64; raises CutError."""
    alone_ms = table.row(cut).server_ms
    saving = float(np.interp(cut.block / table.num_blocks, _SAVING_AT, _SAVING))
    each_ms = alone_ms * (_SAVING_BATCH / saving - 1) / (_SAVING_BATCH - 1)
    return Price(alone_ms - each_ms, each_ms)


class Arrived(NamedTuple):
    """One window at the server."""

    owner: Any  # who is told when it is durable
    sequence: int
    cut: Cut
    price: Price
    arrived_s: float
    capture_ms: int
    frame: Any  # wire.frame.Frame
    want_gmm: bool


class Answered(NamedTuple):
    """One completed window and what its device is told."""

    window: Arrived
    answer: Message
    gmm: Gmm | None


class Completes(Protocol):
    """What computes: zeros of the right size, or the real encoder."""

    def complete(self, batch: Sequence[Arrived]) -> list[list[Answered]]:
        """The windows of a batch by group of equal work, in the order in which the groups are computed."""
        ...


class ComputeThread:
    """One thread for a whole fleet: takes what has come within `wait_ms` of the oldest, completes group by group.

    `committed(answers, compute_ms, taken_s)` is called when a group is durable: after its computation and `commit_ms`.
    """

    def __init__(
        self,
        clock: EventClock,
        settings: ComputeSettings,
        completes: Completes,
        committed: Callable[[list[Answered], float, float], None],
        *,
        factor: float = 1.0,
        commit_ms: float = 0.0,
    ) -> None:
        self.busy_s = 0.0
        self.batches = 0
        self.windows = 0
        self._clock, self._settings, self._completes, self._committed = clock, settings, completes, committed
        self._factor, self._commit_s = factor, commit_ms / 1000.0
        self._wait_s = settings.wait_ms / 1000.0
        self._waiting: deque[Arrived] = deque()
        self._busy = False

    @property
    def waiting(self) -> int:
        """Windows not yet taken up."""
        return len(self._waiting)

    def submit(self, window: Arrived) -> None:
        """Queues a window."""
        self._waiting.append(window)
        if self._busy:
            return
        if len(self._waiting) >= self._settings.batch_windows:
            self._take()
        elif len(self._waiting) == 1:
            self._clock.at(window.arrived_s + self._wait_s, self._due)

    def _due(self) -> None:
        """A batch is full, or its oldest window has waited for company long enough."""
        if self._busy or not self._waiting:
            return
        due_s = self._waiting[0].arrived_s + self._wait_s
        if len(self._waiting) >= self._settings.batch_windows or self._clock.now_s >= due_s:
            self._take()
        else:
            self._clock.at(due_s, self._due)

    def _take(self) -> None:
        waiting, clock = self._waiting, self._clock
        batch = [waiting.popleft() for _ in range(min(len(waiting), self._settings.batch_windows))]
        self._busy = True
        self.batches += 1
        self.windows += len(batch)
        taken_s = at_s = clock.now_s
        for group in self._completes.complete(batch):
            fixed_ms = max(answered.window.price.fixed_ms for answered in group)
            spent_ms = self._factor * (fixed_ms + sum(answered.window.price.each_ms for answered in group))
            at_s += spent_ms / 1000.0
            clock.at(at_s + self._commit_s, self._committed, group, spent_ms, taken_s)
        self.busy_s += at_s - taken_s
        clock.at(at_s, self._free)

    def _free(self) -> None:
        self._busy = False
        self._due()
