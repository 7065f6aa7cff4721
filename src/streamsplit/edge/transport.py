"""A connection to the server by what its URL says, every byte on the socket counted: WebSocket here."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK, InvalidHandshake, InvalidStatus, InvalidURI

from streamsplit.edge.settings import ServerLinkSettings
from streamsplit.errors import ConfigError, ConnectionRefused, MissingExtraError
from streamsplit.transport.count import ByteCount, UdpByteCount
from streamsplit.transport.pipe import Channel, Pipe, Received
from streamsplit.wire.frame import HEADER_BYTES
from streamsplit.wire.types import MAX_FRAME_BYTES

_UNSENT_BYTES = 16 << 10  # that may wait in the kernel: what became urgent meanwhile does not queue behind more
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HOPELESS = (401, 403, 404, 426)


class WebSocketPipe:
    """See `transport.pipe.Pipe`; a message is a frame."""

    def __init__(self, socket: ClientConnection, count: ByteCount) -> None:
        self.count = count
        self.ended = ""
        self._socket = socket

    @property
    def peer(self) -> str:
        """The server's address."""
        address = self._socket.remote_address
        return str(address[0]) if address else ""

    async def receive(self) -> Received | None:
        """The next message."""
        try:
            data = await self._socket.recv()
        except ConnectionClosed as error:
            self.ended = "" if isinstance(error, ConnectionClosedOK) else str(error)
            return None
        return Received(data, Channel.MESSAGE) if isinstance(data, bytes) else Received(data.encode(), Channel.TEXT)

    async def send(self, frame: bytes) -> None:
        """One message."""
        try:
            await self._socket.send(frame)
        except ConnectionClosed as error:
            raise ConnectionError(str(error)) from error

    async def finish(self, *, fatal: bool = False) -> None:
        """Says goodbye."""
        await self._socket.close(1008 if fatal else 1000)

    def abort(self) -> None:
        """Hangs up."""
        self._socket.transport.abort()


class _CountingTransport:
    """The socket's transport, with `write` counted."""

    def __init__(self, inner: asyncio.Transport, count: ByteCount) -> None:
        self._inner = inner
        self._count = count

    def write(self, data: bytes) -> None:
        self._count.sent(len(data))
        self._inner.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def byte_count(settings: ServerLinkSettings) -> ByteCount:
    """What counts the bytes of a device's connections."""
    return UdpByteCount() if settings.lossy else ByteCount()


async def open_pipe(settings: ServerLinkSettings, count: ByteCount) -> Pipe:
    """Connects; raises as `open_socket`, and MissingExtraError for quic:// without aioquic."""
    if not settings.lossy:
        socket = await open_socket(settings.url, count, settings.connect_timeout_s, settings.tls_ca_file)
        return WebSocketPipe(socket, count)
    try:
        from streamsplit.transport.quic_client import Trust, open_quic
    except ImportError as error:
        raise MissingExtraError("a connection over QUIC (quic://)", "quic", str(error)) from error
    parts = urlsplit(settings.url)
    trust = Trust(settings.fingerprint, settings.tls_ca_file, settings.tls_unverified)
    return await open_quic(str(parts.hostname), int(parts.port or 0), trust, count, settings.connect_timeout_s)


def trusted(url: str, ca_file: str) -> ssl.SSLContext | None:
    """Whom a wss:// connection trusts: the system's authorities, or those of a PEM file alone; raises ConfigError."""
    if urlsplit(url).scheme != "wss":
        return None
    if not ca_file:
        return ssl.create_default_context()
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror or error
        raise ConfigError(f"'tls_ca_file': got {ca_file!r}, expected a PEM file of certificates ({reason})") from None


async def open_socket(url: str, count: ByteCount, timeout_s: float, ca_file: str = "") -> ClientConnection:
    """Connects; raises ConnectionRefused where trying again cannot help, OSError or TimeoutError where it may."""
    context = trusted(url, ca_file)

    class Counted(ClientConnection):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(_CountingTransport(transport, count))  # type: ignore[arg-type]

        def data_received(self, data: bytes) -> None:
            count.received(len(data))
            super().data_received(data)

    try:
        connection = await connect(
            url, create_connection=Counted, compression=None, open_timeout=timeout_s, ping_interval=None,
            close_timeout=2.0, max_size=MAX_FRAME_BYTES + HEADER_BYTES, write_limit=_UNSENT_BYTES,
            proxy=None if urlsplit(url).hostname in _LOOPBACK else True, ssl=context,
        )  # fmt: skip
    except InvalidURI as error:
        raise ConnectionRefused(f"{url}: {error}; expected ws://host:port/v1/stream") from error
    except ssl.SSLCertVerificationError as error:
        raise ConnectionRefused(
            f"{url}: the server's certificate is not trusted ({error.verify_message}); see 'tls_ca_file'"
        ) from error
    except InvalidStatus as error:
        status = error.response.status_code
        if status in _HOPELESS:
            raise ConnectionRefused(
                f"{url}: the server answered HTTP {status}; check the URL (path /v1/stream) and what stands before it"
            ) from error
        raise ConnectionError(f"the server answered HTTP {status}") from error
    except InvalidHandshake as error:
        raise ConnectionError(f"no WebSocket there ({error})") from error
    opened = connection.transport.get_extra_info("socket")
    if opened is not None:
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
    return connection
