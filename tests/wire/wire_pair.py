"""A device's and a server's session joined by a perfect wire, for tests that look at one thing at a time."""

from __future__ import annotations

from typing import Any, TypeVar

from streamsplit.wire.events import Event, HelloReceived
from streamsplit.wire.frame import Frame, decode_frame
from streamsplit.wire.messages import Hello, Result
from streamsplit.wire.session import CLIENT_SETTINGS, ClientSession, ServerSession, SessionSettings
from streamsplit.wire.types import FrameType

E = TypeVar("E", bound=Event)
TOKEN = b"resume-token-001"


def hello(**changes: Any) -> Hello:
    """A HELLO of device 'porch' with an empty queue that will number its windows from 1."""
    fields: dict[str, Any] = {
        "protocol": 1,
        "device_id": "porch",
        "token": "secret",
        "epoch": 77,
        "oldest_sequence": 1,
        "next_sequence": 1,
    }
    return Hello(**{**fields, **changes})


def result(sequence: int) -> Result:
    """A RESULT for one window."""
    return Result(sequence=sequence, window=sequence, capture_ms=sequence * 500, uncertainty=1.0)


class Pair:
    """Both ends, one clock; `pump` carries every frame over at once and keeps what it carried."""

    def __init__(self, server: SessionSettings | None = None, client: SessionSettings = CLIENT_SETTINGS) -> None:
        self.now_ms = 1000.0
        self.server_settings = server or SessionSettings()
        self.client = ClientSession(client, self.now_ms)
        self.server = ServerSession(self.now_ms, self.server_settings)
        self.up: list[Frame] = []
        self.down: list[Frame] = []

    def pump(self) -> None:
        moved = True
        while moved:
            moved = False
            for sender, receiver, log in (
                (self.client, self.server, self.up),
                (self.server, self.client, self.down),
            ):
                while batch := sender.bytes_to_send(now_ms=self.now_ms):
                    for data in batch:
                        log.append(decode_frame(data))
                        receiver.receive(data, self.now_ms)
                    moved = True

    def open(self, received_through: int = 0, **changes: Any) -> None:
        """Handshake of a new session; the events of both ends are thrown away."""
        self.client.hello(hello(**changes), self.now_ms)
        self.pump()
        self.server.accept(self.now_ms, session_id="s-1", resume_token=TOKEN, received_through=received_through)
        self.pump()
        assert self.client.is_open and self.server.is_open
        self.client.events(), self.server.events()

    def cut(self) -> None:
        """Both ends notice that the transport is gone."""
        self.client.disconnected(self.now_ms)
        self.server.disconnected(self.now_ms)

    def come_back(self, **changes: Any) -> ServerSession:
        """HELLO on a new transport, up to the server's decision; returns the fresh session that got it."""
        self.client.hello(hello(**changes), self.now_ms)
        fresh = ServerSession(self.now_ms, self.server_settings)
        for data in self.client.bytes_to_send(now_ms=self.now_ms):
            fresh.receive(data, self.now_ms)
        assert isinstance(fresh.events()[-1], HelloReceived)
        return fresh

    def feed(self, *sequences: int, payload: bytes = b"w" * 40) -> None:
        for sequence in sequences:
            assert self.client.send_window(FrameType.EMBEDDING, sequence, sequence * 500, payload)

    def later(self, ms: float) -> None:
        self.now_ms += ms


def only(kind: type[E], events: list[Event]) -> list[E]:
    """The events of one kind."""
    return [event for event in events if isinstance(event, kind)]
