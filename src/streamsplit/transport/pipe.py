"""One connection as both ends see it (`Pipe`), whatever carries it, and what comes out of it (`Received`)."""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple, Protocol

from streamsplit.transport.count import ByteCount
from streamsplit.wire.endpoint import Endpoint


class Channel(Enum):
    """On which way bytes came."""

    MESSAGE = "exactly one frame"
    STREAM = "frames one behind the other, cut anywhere"
    DATAGRAM = "at most one frame, where messages are lost and overtake each other"
    TEXT = "a message that is not binary"


class Received(NamedTuple):
    """What one `receive` gave."""

    data: bytes
    channel: Channel

    def give(self, session: Endpoint[Any], now_ms: float) -> None:
        """Hands it to a session."""
        if self.channel is Channel.MESSAGE:
            session.receive(self.data, now_ms)
        elif self.channel is Channel.STREAM:
            session.receive_stream(self.data, now_ms)
        elif self.channel is Channel.DATAGRAM:
            session.receive_datagram(self.data, now_ms)
        else:
            session.fail("bad_message", "got a text message, expected binary frames")


class Pipe(Protocol):
    """One connection; used in the event loop only."""

    count: ByteCount  # of the bytes on its socket

    @property
    def peer(self) -> str:
        """The other end's address; "" where it is not known."""

    @property
    def ended(self) -> str:
        """Why the connection broke; "" while it stands, and where it ended in good order."""

    async def receive(self) -> Received | None:
        """What comes next; None once the connection is over."""

    async def send(self, frame: bytes) -> None:
        """Sends an encoded frame, and waits while much is unsent; raises ConnectionError once the other end is gone."""

    async def finish(self, *, fatal: bool = False) -> None:
        """Ends it when what was sent has arrived, or after a while; `fatal`: because of an error."""

    def abort(self) -> None:
        """Ends it at once."""
