"""What keeps the fleet from sending more than the server can take: THROTTLE messages, and sockets read later."""

from __future__ import annotations

import asyncio
import time

from streamsplit.server.compute import ComputeWorker
from streamsplit.server.connection import Connection
from streamsplit.server.metrics import Metrics
from streamsplit.server.settings import ServerSettings
from streamsplit.server.store import Store
from streamsplit.wire.messages import Throttle

MAX_RATE_PAUSE_S = 1.0
THROTTLED_IN_FLIGHT = 4


class Backpressure:
    """The limits on a device's rate, on windows that wait to be computed and on the bytes they take."""

    def __init__(self, settings: ServerSettings, *, compute: ComputeWorker, store: Store, metrics: Metrics) -> None:
        self.pending_bytes = 0  # payloads of windows that are not durable yet, of all devices
        self._limits = settings.limits
        self._compute = compute
        self._store = store
        self._metrics = metrics

    async def pace(self, connection: Connection) -> None:
        """Slows down whoever sends too much: tells it, and reads its socket later. Others are not held up."""
        limits = self._limits
        now_s = time.monotonic()
        rate = limits.max_windows_per_s
        connection.budget = min(2 * rate, connection.budget + rate * (now_s - connection.budget_s))
        connection.budget_s = now_s
        if connection.budget < 0:
            self._throttle(connection, "rate", limits.max_in_flight, int(1000 / rate) + 1)
            await asyncio.sleep(min(MAX_RATE_PAUSE_S, -connection.budget / rate))
        elif self._compute.waiting > limits.max_waiting or self._store.failure is not None:
            reason = "busy" if self._store.failure is None else "store"
            self._throttle(connection, reason, min(THROTTLED_IN_FLIGHT, limits.max_in_flight), 0)
        while self.pending_bytes > limits.max_waiting_mb * 1e6 and not connection.ending:
            await asyncio.sleep(0.02)

    def relax(self, connection: Connection) -> None:
        """Lifts a throttle of more than two seconds ago once the server has caught up."""
        relaxed = self._compute.waiting < self._limits.max_waiting // 2 and self._store.failure is None
        if connection.throttled and relaxed and time.monotonic() - connection.throttle_told_s > 2.0:
            connection.throttled = False
            connection.session.send(Throttle(max_in_flight=self._limits.max_in_flight, reason="over"))
            connection.wake.set()

    def _throttle(self, connection: Connection, reason: str, max_in_flight: int, min_interval_ms: int) -> None:
        now_s = time.monotonic()
        if connection.link is None or now_s - connection.throttle_told_s < 1.0:
            return
        connection.throttle_told_s = now_s
        connection.throttled = True
        self._metrics.throttled.labels(reason).inc()
        connection.session.send(Throttle(max_in_flight=max_in_flight, min_interval_ms=min_interval_ms, reason=reason))
        connection.wake.set()
