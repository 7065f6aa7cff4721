"""One connection (`Connection`), what outlives it (`Link`), and the two coroutines that read and write it (`Pump`).

Neither coroutine computes nor touches the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from streamsplit.server.fleet import Device
from streamsplit.server.jobs import DeviceStream
from streamsplit.server.metrics import Metrics
from streamsplit.server.precedence import Precedence
from streamsplit.transport.pipe import Pipe
from streamsplit.weights.pacing import PacedSender
from streamsplit.weights.transfer import WeightTransfer
from streamsplit.wire import events
from streamsplit.wire.messages import Hello, Revision, WeightsRequest
from streamsplit.wire.session import ServerSession

SEND_BYTES = 32 << 10  # handed to the transport at a time


class Wake(asyncio.Event):
    """Has a connection's writer look at what is queued; until it does, weights let it go first."""

    def __init__(self, connection: Connection, precedence: Precedence) -> None:
        super().__init__()
        self._connection, self._precedence = connection, precedence

    def set(self) -> None:
        """There is something to send."""
        super().set()
        self._precedence.wants(self._connection)

    def clear(self) -> None:
        """The writer is at it."""
        super().clear()
        self._precedence.served(self._connection)


class Connection:
    """One WebSocket, or one connection over QUIC."""

    def __init__(self, pipe: Pipe, session: ServerSession, precedence: Precedence) -> None:
        self.pipe = pipe
        self.session = session
        self.number = session.connection
        self.wake = Wake(self, precedence)
        self.link: Link | None = None
        self.ending = False  # flush what is queued, then close
        self.replaced = False  # another transport has the session now
        self.fatal = False
        self.download: PacedSender | None = None
        self.requested: WeightsRequest | None = None  # being read from the disk
        self.budget = 0.0  # windows that may come before the rate limit
        self.budget_s = time.monotonic()
        self.throttled = False
        self.throttle_told_s = 0.0
        self.received_bytes = self.sent_bytes = 0  # of those on the socket, how many have been counted
        self.unclaimed_bytes = 0  # received before it was known which device this is

    def end(self, *, fatal: bool = False) -> None:
        """Lets the writer flush and close."""
        self.ending = True
        self.fatal = self.fatal or fatal
        self.wake.set()


class Link:
    """What outlives a connection of one device: the wire session (for `resume_expires_s`), the stream's position."""

    def __init__(self, device: Device, session: ServerSession, stream: DeviceStream) -> None:
        self.device = device
        self.session = session
        self.stream = stream
        self.connection: Connection | None = None
        self.held_revision = ""
        self.announced = ""
        self.steered = False  # told to send features, see Gateway.steer
        self.policy_sent = 0  # version of the policy sent in this connection
        self.policy_refused = 0  # version that the device had no use for: not sent again in this session
        self.takes_gradients = False  # offered in this connection, see gradients.GradientReturns
        self.local: tuple[Revision, WeightTransfer] | None = None

    @property
    def has_encoder(self) -> bool:
        """True for a device that can use weights."""
        return bool(self.device.hello and self.device.hello.encoder)

    def wake(self) -> None:
        """Has the writer look at what is queued, if there is one."""
        if self.connection is not None:
            self.connection.wake.set()


class Pump:
    """Moves bytes between connections and their sessions, counts them, and hands on what the sessions tell."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        on_hello: Callable[[Connection, Hello], Awaitable[None]],
        on_event: Callable[[Connection, events.Event], None],
        pace: Callable[[Connection], Awaitable[None]],
        feed: Callable[[Connection], None],
    ) -> None:
        """`pace` is awaited before the next message is read; `feed` may queue more before bytes are taken to send."""
        self._metrics = metrics
        self._on_hello = on_hello
        self._on_event = on_event
        self._pace = pace
        self._feed = feed

    async def read(self, connection: Connection) -> None:
        """Reads until either end has had enough."""
        while not connection.ending:
            received = await connection.pipe.receive()
            if received is None or connection.ending:
                return
            self._count_received(connection)
            received.give(connection.session, now_ms())
            for event in connection.session.events():
                if isinstance(event, events.HelloReceived):
                    await self._on_hello(connection, event.hello)
                else:
                    self._on_event(connection, event)
            connection.wake.set()
            await self._pace(connection)

    async def write(self, connection: Connection) -> None:
        """Writes what is queued whenever woken, keeps the session's deadlines, closes in the end."""
        try:
            while True:
                connection.wake.clear()
                if not connection.replaced:
                    connection.session.tick(now_ms())
                    for event in connection.session.events():
                        self._on_event(connection, event)
                    await self._flush(connection)
                if connection.ending:
                    await connection.pipe.finish(fatal=connection.fatal)
                    return
                deadline_ms = connection.session.next_deadline_ms()
                timeout_s = None if deadline_ms is None else max(0.0, (deadline_ms - now_ms()) / 1000)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(connection.wake.wait(), timeout_s)
        except OSError:  # the peer is gone; the reader notices, too
            connection.ending = True

    async def _flush(self, connection: Connection) -> None:
        while not connection.replaced:
            self._feed(connection)
            batch = connection.session.bytes_to_send(SEND_BYTES, now_ms())
            if not batch:
                return
            for data in batch:
                await connection.pipe.send(data)
            self._count_sent(connection)

    def _count_sent(self, connection: Connection) -> None:
        size = connection.pipe.count.up - connection.sent_bytes
        connection.sent_bytes += size
        self._metrics.downlink.inc(size)
        if connection.link is not None:
            connection.link.device.downlink_bytes += size

    def _count_received(self, connection: Connection) -> None:
        size = connection.pipe.count.down - connection.received_bytes
        connection.received_bytes += size
        self._metrics.uplink.inc(size)
        if connection.link is not None:
            connection.link.device.uplink_bytes += size
        else:  # the HELLO: counted for the device once it is known
            connection.unclaimed_bytes += size


def now_ms() -> float:
    """The clock of all sessions."""
    return 1000 * time.monotonic()
