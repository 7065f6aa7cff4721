"""A device's WebSocket as the gateway sees it, bytes counted as they are on the TCP stream."""

from __future__ import annotations

from starlette.websockets import WebSocket, WebSocketDisconnect

from streamsplit.transport.count import ByteCount, websocket_bytes
from streamsplit.transport.pipe import Channel, Received

CLOSE_POLICY = 1008


class WebSocketPipe:
    """See `transport.pipe.Pipe`; a message is a frame."""

    def __init__(self, websocket: WebSocket) -> None:
        """An accepted one."""
        self.count = ByteCount()
        self.ended = ""
        self._websocket = websocket

    @property
    def peer(self) -> str:
        """The device's address."""
        return self._websocket.client.host if self._websocket.client else ""

    async def receive(self) -> Received | None:
        """The next message."""
        try:
            message = await self._websocket.receive()
        except (WebSocketDisconnect, RuntimeError):
            return None
        if message["type"] == "websocket.disconnect":
            return None
        data = message.get("bytes")
        received = (
            Received((message.get("text") or "").encode(), Channel.TEXT)
            if data is None
            else Received(data, Channel.MESSAGE)
        )
        self.count.received(websocket_bytes(len(received.data), masked=True))
        return received

    async def send(self, frame: bytes) -> None:
        """One message."""
        try:
            await self._websocket.send_bytes(frame)
        except (WebSocketDisconnect, RuntimeError) as error:
            raise ConnectionError(str(error)) from error
        self.count.sent(websocket_bytes(len(frame), masked=False))

    async def finish(self, *, fatal: bool = False) -> None:
        """Says goodbye."""
        try:
            await self._websocket.close(CLOSE_POLICY if fatal else 1000)
        except (WebSocketDisconnect, RuntimeError) as error:
            raise ConnectionError(str(error)) from error

    def abort(self) -> None:
        """Nothing to do: the connection ends with its handler."""
