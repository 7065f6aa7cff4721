"""A WebSocket whose large messages are received right where they belong, without a copy in between.

Takes over after the handshake (of the library websockets, which also makes what is sent and reads control frames).
The library copies a message several times before it hands it over, which is much for hundreds of megabytes.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.frames import Frame, Opcode
from websockets.protocol import State

from streamsplit.errors import ProtocolError
from streamsplit.transport.count import ByteCount
from streamsplit.wire.chunks import HEADER_BYTES, ChunkClient, Event, Placement
from streamsplit.wire.types import MAX_FRAME_BYTES

_STAGE_BYTES = 4096  # read at once where it is not known yet what comes
_WHOLE_BINARY = 0x82  # FIN and the opcode; what is fragmented, masked or extended is not ours
_MAX_CONTROL_BYTES = 125


class FrameReceiver(asyncio.BufferedProtocol):
    """Frames to a ChunkClient; bytes of chunks into the memory that `place` gives for them."""

    def __init__(
        self,
        connection: ClientConnection,
        count: ByteCount,
        session: ChunkClient,
        *,
        place: Callable[[Placement], memoryview],
        placed: Callable[[Placement, int], None],
        happened: Callable[[list[Event]], None],
    ) -> None:
        """`placed(placement, size)` is told of bytes as they come, `happened` of every whole frame.

        What these raise ends the connection, and is what `ended` raises.
        """
        self._connection, self._count, self._session = connection, count, session
        self._place, self._placed, self._happened = place, placed, happened
        self._transport: Any = connection.transport
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stage = memoryview(bytearray(_STAGE_BYTES))
        self._staged = 0
        self._target: memoryview | None = None  # of the frame under way
        self._at = 0
        self._placement: Placement | None = None
        self._transport.set_protocol(self)

    def send(self, messages: list[bytes]) -> None:
        """Binary messages; small ones, so nobody waits. Raises ConnectionError once the other end has said goodbye."""
        if self._connection.protocol.state is not State.OPEN:
            raise ConnectionError("the server closed the connection")
        for message in messages:
            self._connection.protocol.send_binary(message)
        self._flush()

    def close(self) -> None:
        """Says goodbye and closes."""
        if self._connection.protocol.state is State.OPEN:
            self._connection.protocol.send_close(1000)
            self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Closes without a word."""
        self._transport.abort()

    # -- called by the transport ---------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._stage[self._staged :] if self._target is None else self._target[self._at :]

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come."""
        self._count.received(nbytes)
        try:
            if self._target is None:
                self._staged += nbytes
                self._take_staged()
            else:
                self._took(nbytes)
        except Exception as error:  # the one place that all of it passes: whoever waits hears of it
            self._end(error)
            self._transport.abort()

    def eof_received(self) -> None:
        """The server has closed; the transport closes, too."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._end(ConnectionError(str(exc) if exc is not None else "the connection ended"))

    # -- inside --------------------------------------------------------------------------------------------------

    def _take_staged(self) -> None:
        """Goes through what was read ahead, frame by frame."""
        at = 0
        while (size := self._begin(at)) and not self._transport.is_closing():
            at += size
            rest = self._stage[at : self._staged]
            if self._target is None:
                continue
            took = min(len(rest), len(self._target))
            self._target[:took] = rest[:took]
            at += took
            if took or not len(self._target):
                self._took(took)
        rest_bytes = bytes(self._stage[at : self._staged])
        self._stage[: len(rest_bytes)] = rest_bytes
        self._staged = len(rest_bytes)

    def _begin(self, at: int) -> int:
        """Reads the headers of the next frame and makes room for it; their size, 0 where they are not whole yet."""
        have = self._staged - at
        if self._target is not None or have < 2:
            return 0
        first, second = self._stage[at], self._stage[at + 1]
        size = {126: 4, 127: 10}.get(second & 0x7F, 2)
        if have < size:
            return 0
        length = second & 0x7F
        if size > 2:
            (length,) = struct.unpack_from(">H" if size == 4 else ">Q", self._stage, at + 2)
        if second & 0x80:
            raise ProtocolError("bad_message", "got a masked frame from a server")
        if first & 0x08:
            if length > _MAX_CONTROL_BYTES:
                raise ProtocolError("bad_message", f"got a control frame of {length} bytes, expected at most 125")
            if have < size + length:
                return 0
            self._on_control(bytes(self._stage[at : at + size + length]))
            return size + length
        if first != _WHOLE_BINARY:
            raise ProtocolError("bad_message", f"got a frame that begins with {first:#x}, expected whole binary ones")
        if length > MAX_FRAME_BYTES + HEADER_BYTES:
            raise ProtocolError("frame_too_large", f"got {length} bytes, expected at most {MAX_FRAME_BYTES}")
        self._at, self._placement = 0, None
        if length < HEADER_BYTES:
            self._target = memoryview(bytearray(length))
            return size
        if have < size + HEADER_BYTES:
            return 0
        start = at + size
        self._placement = self._session.begin(bytes(self._stage[start : start + HEADER_BYTES]), length - HEADER_BYTES)
        if self._placement is None:
            self._target = memoryview(bytearray(length))
            return size
        self._target = self._place(self._placement)
        return size + HEADER_BYTES

    def _took(self, nbytes: int) -> None:
        target = self._target
        assert target is not None
        self._at += nbytes
        complete = self._at == len(target)
        if complete:
            self._target = None
        if self._placement is not None:
            self._placed(self._placement, nbytes)
        if not complete:
            return
        if self._placement is None:
            self._happened(self._session.receive(bytes(target)))
        else:
            self._happened([self._session.complete(self._placement)])

    def _on_control(self, raw: bytes) -> None:
        protocol = self._connection.protocol
        protocol.receive_data(raw)
        for event in protocol.events_received():
            if isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                raise ProtocolError("bad_message", "got a frame of data where a control frame began")
        self._flush()
        if protocol.state in (State.CLOSING, State.CLOSED):
            self._transport.close()

    def _flush(self) -> None:
        for data in self._connection.protocol.data_to_send():
            if data:
                self._transport.write(data)

    def _end(self, error: Exception) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)
            self.ended.exception()  # an end that nobody asks for is no loss
