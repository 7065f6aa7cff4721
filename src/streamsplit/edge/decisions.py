"""What a device decided and what came of it: told to policies that learn, judged in hindsight, counted and journalled.

Runs in the worker thread, as the policy does; results come in through the runtime's inbox.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

from streamsplit.edge.counters import Counters
from streamsplit.edge.pipeline import Outcome
from streamsplit.splitting.decision import Experience, Policy
from streamsplit.splitting.decision_log import DecisionLog
from streamsplit.splitting.hindsight import Realised
from streamsplit.splitting.link import LinkEstimate
from streamsplit.splitting.policy import learner_of
from streamsplit.wire.frame import HEADER_BYTES
from streamsplit.wire.messages import Result

MAX_AWAITED = 4096


class Arrival(NamedTuple):
    """A result, as the event loop saw it come in."""

    result: Result
    latency_ms: float  # capture to result
    at_s: float  # monotonic


class _Awaited(NamedTuple):
    outcome: Outcome
    left_s: float  # monotonic, when the window was in the queue


class Decisions:
    """Follows every decision to its outcome."""

    def __init__(
        self,
        log: DecisionLog,
        counters: Counters,
        *,
        policy: Callable[[], Policy],
        link: Callable[[], LinkEstimate],
        note: Callable[..., None],
    ) -> None:
        self.log = log
        self._counters = counters
        self._policy, self._link, self._note = policy, link, note
        self._awaited: dict[tuple[int, int], _Awaited] = {}  # by epoch and sequence

    def made(self, outcome: Outcome, epoch: int, sequence: int | None, late_ms: float) -> None:
        """A window was processed; `late_ms` is its age, from its end. One that stays is done."""
        with self._counters.lock:
            self._counters.decisions, self._counters.cut_changes = self.log.decisions, self.log.changes
        if outcome.decision is None:
            return
        if sequence is not None:
            if len(self._awaited) >= MAX_AWAITED:
                self._awaited.pop(next(iter(self._awaited)))
            self._awaited[epoch, sequence] = _Awaited(outcome, time.monotonic())
        elif not outcome.decision.cut.sends:
            self._done(outcome, None, Experience(outcome.observation, outcome.cut, late_ms, math.nan))

    def answered(self, epoch: int, arrival: Arrival) -> None:
        """The result of a window came in."""
        awaited = self._awaited.pop((epoch, arrival.result.sequence), None)
        if awaited is None:
            return
        outcome = awaited.outcome
        network_ms = max((arrival.at_s - awaited.left_s) * 1000.0, 0.0)
        latency_ms = max(arrival.latency_ms, network_ms)
        self._done(outcome, arrival.result, Experience(outcome.observation, outcome.cut, latency_ms, network_ms))

    def rejected(self, epoch: int, sequence: int) -> None:
        """The server had no use for a window."""
        self._awaited.pop((epoch, sequence), None)

    def _done(self, outcome: Outcome, result: Result | None, experience: Experience) -> None:
        learner = learner_of(self._policy())
        if learner is not None and outcome.observation.link_up:  # waiting for a dead link teaches nothing about cuts
            learner.learn(experience)
        decision, link = outcome.decision, self._link()
        assert decision is not None
        judged = self.log.judge(
            decision,
            Realised(
                outcome.cut, experience.latency_ms, experience.network_ms, outcome.edge_ms,
                HEADER_BYTES + len(outcome.payload) if outcome.payload is not None else 0,
                link.bandwidth_bps, link.rtt_ms,
                result.server_ms if result is not None else 0.0, result.queue_ms if result is not None else 0.0,
                self.log.doubt(outcome.uncertainty), decision.observation.last_cut,
                decision.observation.backlog_bytes,
            ),
        )  # fmt: skip
        if judged is None:
            return
        with self._counters.lock:
            self._counters.judged, self._counters.regret = self.log.judged, self.log.mean_regret
        self._note(
            "hindsight", window=outcome.window, cut=str(outcome.cut), cost=judged.cost, regret=judged.regret,
            best=str(judged.best), expected=decision.expected, latency_ms=experience.latency_ms,
            network_ms=experience.network_ms,
        )  # fmt: skip
