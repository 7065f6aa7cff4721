"""Who goes first in the event loop: sound and what answers it, then weights, as the wire's priorities have it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

from streamsplit.wire.types import Priority

PATIENCE_S = 0.02  # a piece of weights waits no longer, so that a server that is never idle still hands some out
_URGENT = tuple(priority for priority in Priority if priority < Priority.BULK)


class Session(Protocol):
    """A wire session, as far as its queue goes."""

    def queued_bytes(self, priority: Priority) -> int: ...


class Sender(Protocol):
    """A connection with frames to send."""

    @property
    def session(self) -> Session: ...


class Precedence:
    """Windows that are not answered yet, and frames above the class of bulk that no socket has been given yet."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self.patience_s = patience_s
        self.windows = 0  # of sound, received and not answered
        self._senders: set[Sender] = set()  # woken, and not at it yet
        self._turn = asyncio.Lock()
        self._calm = asyncio.Event()

    @property
    def urgent(self) -> bool:
        """Whether something waits that goes before weights."""
        return self.windows > 0 or any(
            sender.session.queued_bytes(priority) for sender in self._senders for priority in _URGENT
        )

    def received(self) -> None:
        """A window has come in."""
        self.windows += 1

    def answered(self) -> None:
        """A window's result is queued."""
        self.windows -= 1
        self._calm.set()

    def wants(self, sender: Sender) -> None:
        """A connection has something to send."""
        self._senders.add(sender)

    def served(self, sender: Sender) -> None:
        """A connection hands over what it has, or is gone."""
        self._senders.discard(sender)
        self._calm.set()

    async def bulk_turn(self) -> None:
        """Returns when the next piece of weights may go: one at a time, after whatever the sockets have brought."""
        async with self._turn:
            await asyncio.sleep(0)
            if not self.urgent:
                return
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._until_calm(), self.patience_s)

    async def _until_calm(self) -> None:
        while self.urgent:
            self._calm.clear()
            await self._calm.wait()
