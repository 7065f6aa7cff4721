"""Bytes of a WebSocket to where they belong: in pieces of any size, with control frames between, and nothing else."""

from __future__ import annotations

import asyncio
import hashlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from streamsplit.edge.transport import ByteCount
from streamsplit.edge.weight_receiver import FrameReceiver
from streamsplit.errors import ProtocolError
from streamsplit.wire.chunks import ChunkClient, ChunkServer, Event, Failed, Placement

DATA = np.random.default_rng(0).bytes(300_000)
DIGEST = hashlib.sha256(DATA).hexdigest()


def handshaken() -> ClientProtocol:
    """The library's end of a connection after its handshake."""
    protocol, server = ClientProtocol(parse_uri("ws://127.0.0.1:1/")), ServerProtocol()
    protocol.send_request(protocol.connect())
    server.receive_data(b"".join(protocol.data_to_send()))
    (request,) = server.events_received()
    server.send_response(server.accept(request))
    protocol.receive_data(b"".join(server.data_to_send()))
    protocol.events_received()
    return protocol


class Transport:
    """What a socket's transport does, without one."""

    def __init__(self) -> None:
        self.written, self.closing = b"", False

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close


class Client:
    """A session with one chunk asked for, and the receiver that feeds it."""

    def __init__(self) -> None:
        self.session, self.server = ChunkClient(), ChunkServer()
        self.session.open("pi")
        (hello,) = self.session.bytes_to_send()
        self.server.receive(hello)
        self.session.receive(self.server.accept("0" * 64, 100))
        self.request = self.session.request(DIGEST, 0, len(DATA))
        self.server.receive(self.session.bytes_to_send()[0])
        self.got, self.at, self.events, self.count = bytearray(len(DATA)), 0, [], ByteCount()
        protocol = handshaken()
        self.transport = Transport()
        connection: Any = SimpleNamespace(transport=self.transport, protocol=protocol)
        self.receiver = FrameReceiver(
            connection, self.count, self.session, place=self._place, placed=self._placed, happened=self._happened
        )

    def _place(self, placement: Placement) -> memoryview:
        assert placement.offset == self.at
        return memoryview(self.got)[self.at : self.at + placement.length]

    def _placed(self, placement: Placement, size: int) -> None:
        self.at += size

    def _happened(self, events: list[Event]) -> None:
        self.events += events

    def feed(self, data: bytes, step: int) -> None:
        """As a transport does: as many bytes as it has and the receiver has room for."""
        while data and not self.transport.closing:
            room = self.receiver.get_buffer(-1)
            size = min(len(room), step, len(data))
            assert size > 0
            room[:size] = data[:size]
            self.receiver.buffer_updated(size)
            data = data[size:]


def frame(payload: bytes, opcode: Opcode = Opcode.BINARY, *, fin: bool = True, mask: bool = False) -> bytes:
    return Frame(opcode, payload, fin).serialize(mask=mask)


def pieces(client: Client, sizes: list[int]) -> list[bytes]:
    made, at = [], 0
    for size in sizes:
        made.append(frame(client.server.data(client.request, DATA[at : at + size], at + size == len(DATA))))
        at += size
    return made


@pytest.mark.parametrize("step", [1, 7, 4096, 1 << 20])
def test_pieces_lie_in_their_places_however_they_come(step: int) -> None:
    async def run() -> Client:
        client = Client()
        sizes = [0, 1, 90, 200, 65_600, 4_095, len(DATA) - 69_986]
        stream = pieces(client, sizes)
        stream.insert(3, frame(b"still there?", Opcode.PING))
        stream.append(frame(client.server.fault("bad_transfer", "no")))
        if step == 1:  # all borders, and not every byte of the middle
            head = b"".join(stream)[:70_000]
            client.feed(head, 1)
            client.feed(b"".join(stream)[70_000:], 4096)
        else:
            client.feed(b"".join(stream), step)
        assert client.count.down == len(b"".join(stream))
        return client

    client = asyncio.run(run())
    assert bytes(client.got) == DATA and client.at == len(DATA)
    assert [event.last for event in client.events[:-1]] == [False] * 6 + [True]
    assert client.events[-1] == Failed(0, "bad_transfer", "no")
    assert client.transport.written[0] == 0x80 | Opcode.PONG


def broken(client: Client, what: str) -> bytes:
    good = client.server.data(client.request, DATA[:1000], False)
    return {
        "masked": frame(good, mask=True),
        "a text": frame(b"hello there, here is a text", Opcode.TEXT),
        "in parts": frame(good, fin=False),
        "too large": b"\x82\x7f" + (1 << 21).to_bytes(8, "big") + good,
        "too short": frame(b"x"),
        "of another request": frame(good[:4] + (99).to_bytes(4, "little") + good[8:]),
        "longer than it says": frame(good + b"x"),
        "of more than was asked for": frame(client.server.data(client.request, bytes(len(DATA) + 1), True)),
        "a large ping": b"\x89\x7e\x10\x00" + bytes(4096),
    }[what]


@pytest.mark.parametrize(
    "what",
    [
        "masked", "a text", "in parts", "too large", "too short", "of another request", "longer than it says",
        "of more than was asked for", "a large ping",
    ],
)  # fmt: skip
def test_anything_else_ends_the_connection(what: str) -> None:
    async def run() -> None:
        client = Client()
        client.feed(broken(client, what), 4096)
        assert client.transport.closing and client.at == 0
        with pytest.raises(ProtocolError):
            await client.receiver.ended

    asyncio.run(run())


def test_a_close_of_the_server_is_answered() -> None:
    async def run() -> None:
        client = Client()
        client.feed(frame((1001).to_bytes(2, "big"), Opcode.CLOSE), 4096)
        assert client.transport.closing and client.transport.written[0] == 0x80 | Opcode.CLOSE
        client.receiver.connection_lost(None)
        with pytest.raises(ConnectionError):
            await client.receiver.ended

    asyncio.run(run())
