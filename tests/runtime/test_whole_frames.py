"""A large frame of the weight stream is never cut by what the server says in between: a pong, a goodbye."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import SEND_EOF, State
from websockets.uri import parse_uri
from weight_stream_harness import folder_of_chunks, weight_server

from streamsplit.wire.chunks import HEADER_BYTES, LONE_PIECE_BYTES, ChunkClient


class SlowClient:
    """Reads when it is told to, through a small window."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        self._socket.settimeout(20.0)
        self._socket.connect(("127.0.0.1", port))
        self.protocol = ClientProtocol(parse_uri(f"ws://127.0.0.1:{port}/v1/weights"), max_size=None)
        self.protocol.send_request(self.protocol.connect())
        self._flush()
        while self.protocol.state is not State.OPEN:
            self.protocol.receive_data(self._socket.recv(1 << 16))
            self.protocol.events_received()

    def _flush(self) -> None:
        for data in self.protocol.data_to_send():
            if data != SEND_EOF:
                self._socket.sendall(data)

    def say(self, messages: list[bytes]) -> None:
        for message in messages:
            self.protocol.send_binary(message)
        self._flush()

    def ping(self) -> None:
        self.protocol.send_ping(b"there?")
        self._flush()

    def frames(self, until: int) -> list[Frame]:
        """Whole frames as they come, up to the first of this kind; the protocol raises on anything torn."""
        found: list[Frame] = []
        while not any(frame.opcode == until for frame in found):
            data = self._socket.recv(1 << 16)
            if data:
                self.protocol.receive_data(data)
            else:
                self.protocol.receive_eof()
            assert self.protocol.parser_exc is None, self.protocol.parser_exc
            found += [event for event in self.protocol.events_received() if isinstance(event, Frame)]
            assert data or any(frame.opcode == until for frame in found), "the connection ended before"
        return found


def test_a_pong_and_a_goodbye_wait_for_the_end_of_a_frame(tmp_path: Path) -> None:
    manifest = folder_of_chunks(tmp_path, count=1, size=8 * LONE_PIECE_BYTES)
    chunk = manifest.chunks[0]
    with weight_server(tmp_path) as server:
        client, session = SlowClient(server.port), ChunkClient()
        session.open("slow", "")
        client.say(session.bytes_to_send())
        for frame in client.frames(Opcode.BINARY):
            if frame.opcode == Opcode.BINARY:
                session.receive(bytes(frame.data))
        session.request(chunk.digest, 0, chunk.stored_bytes)
        client.say(session.bytes_to_send())
        time.sleep(0.3)  # the window is full in the middle of a frame; without, there is less to see
        client.ping()
        frames: list[Frame] = []

        def read() -> None:
            time.sleep(0.3)  # the server is stopping by then
            frames.extend(client.frames(Opcode.CLOSE))

        reading = threading.Thread(target=read)
        reading.start()
    reading.join(20.0)
    kinds = [frame.opcode for frame in frames]
    assert kinds.count(Opcode.PONG) == 1 and kinds[-1] == Opcode.CLOSE and Opcode.BINARY in kinds
    whole = [len(frame.data) for frame in frames if frame.opcode == Opcode.BINARY]
    assert set(whole) == {HEADER_BYTES + LONE_PIECE_BYTES}
