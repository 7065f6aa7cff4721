"""Large WebSocket messages out of memory that is used again, without a copy before the socket.

The library copies a message several times on its way, each time into fresh memory.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

from starlette.websockets import WebSocket
from uvicorn.config import WS_PROTOCOLS

EXTENSION = "streamsplit.frame_buffer"  # in scope['extensions'] where the connection takes a FrameBuffer
WRITE_BYTES = 128 << 10  # given to the transport at a time: what the socket does not take at once is copied
_HEADER_ROOM = 10  # of a WebSocket frame that is not masked
_WHOLE_BINARY = 0x82


class FrameBuffer:
    """One message: a header of its own, then a payload that is read into `payload`."""

    def __init__(self, header_bytes: int, payload_bytes: int) -> None:
        self._view = memoryview(bytearray(_HEADER_ROOM + header_bytes + payload_bytes))
        self._start = _HEADER_ROOM + header_bytes

    def payload(self, size_bytes: int) -> memoryview:
        """Where the next message's payload goes."""
        return self._view[self._start : self._start + size_bytes]

    def message(self, header: bytes, size_bytes: int) -> memoryview:
        """Header and payload."""
        self._view[_HEADER_ROOM : self._start] = header
        return self._view[_HEADER_ROOM : self._start + size_bytes]

    def frame(self, message: memoryview) -> memoryview:
        """The same as a WebSocket frame."""
        size = len(message)
        if size < 126:
            head = struct.pack("BB", _WHOLE_BINARY, size)
        elif size < 1 << 16:
            head = struct.pack(">BBH", _WHOLE_BINARY, 126, size)
        else:
            head = struct.pack(">BBQ", _WHOLE_BINARY, 127, size)
        start = _HEADER_ROOM - len(head)
        self._view[start:_HEADER_ROOM] = head
        return self._view[start : _HEADER_ROOM + size]


async def send_frame(websocket: WebSocket, buffer: FrameBuffer, header: bytes, size_bytes: int) -> None:
    """Sends a message out of the buffer, which is free again when this returns."""
    message = buffer.message(header, size_bytes)
    if EXTENSION in websocket.scope.get("extensions", {}):
        await websocket.send({"type": "websocket.send", "frame": buffer.frame(message)})
    else:
        await websocket.send_bytes(bytes(message))


def websocket_protocol() -> Any:
    """For uvicorn's setting `ws`: the library's own protocol, and one more way to send."""
    if "websockets-sansio" not in WS_PROTOCOLS:
        return "websockets"
    from uvicorn.protocols.utils import ClientDisconnected
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

    class FrameProtocol(WebSocketsSansIOProtocol):
        """Takes frames that are made already, one at a time, and lets go of their memory before `send` returns. What
        else is to be said waits for the end of a frame."""

        _under_way = False

        async def run_asgi(self) -> None:
            self._sending = asyncio.Lock()
            self._later: list[Callable[[], None]] = []
            extensions: Any = self.scope.setdefault("extensions", {})
            extensions[EXTENSION] = {}
            await super().run_asgi()

        async def send(self, message: Any) -> None:
            frame = message.get("frame")
            async with self._sending:
                if frame is None:
                    await super().send(message)
                    return
                self._under_way = True
                try:
                    await self._send_frame(frame)
                finally:
                    self._under_way = False
                    later, self._later = self._later, []
                    for work in later:
                        work()

        def shutdown(self) -> None:
            self._then(super().shutdown)

        def handle_ping(self) -> None:
            self._then(super().handle_ping)

        def _then(self, work: Callable[[], None]) -> None:
            if self._under_way:
                self._later.append(work)
            else:
                work()

        async def _send_frame(self, frame: memoryview) -> None:
            self.transport.set_write_buffer_limits(high=0)  # 'writable' then means that nothing of it is left
            for at in range(0, len(frame), WRITE_BYTES):
                await self.writable.wait()
                if self.disconnected or self.close_sent or self.transport.is_closing():
                    raise ClientDisconnected()
                self.transport.write(frame[at : at + WRITE_BYTES])
            await self.writable.wait()
            self.transport.set_write_buffer_limits()

    return FrameProtocol
