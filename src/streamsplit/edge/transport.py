"""One WebSocket connection to the server, with every byte on the TCP socket counted."""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI

from streamsplit.errors import ConfigError, ConnectionRefused
from streamsplit.wire.frame import HEADER_BYTES
from streamsplit.wire.types import MAX_FRAME_BYTES

SEGMENT_BYTES = 1448  # TCP payload of an Ethernet-sized packet, with timestamps
PACKET_HEADER_BYTES = 52  # IPv4 20 + TCP 20 + timestamps 12
_UNSENT_BYTES = 16 << 10  # that may wait in the kernel: what became urgent meanwhile does not queue behind more
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HOPELESS = (401, 403, 404, 426)


class ByteCount:
    """Bytes on the TCP socket over all connections, HTTP handshake and WebSocket headers included.

    With TLS it is what goes into it. `packet_bytes` adds an estimate of TCP/IP headers: full segments, and one pure
    acknowledgement for every second segment of the other direction.
    """

    def __init__(self) -> None:
        self.up = 0
        self.down = 0
        self._up_segments = 0
        self._down_segments = 0

    def sent(self, size: int) -> None:
        """The socket was handed `size` bytes."""
        self.up += size
        self._up_segments += math.ceil(size / SEGMENT_BYTES)

    def received(self, size: int) -> None:
        """The socket gave `size` bytes."""
        self.down += size
        self._down_segments += math.ceil(size / SEGMENT_BYTES)

    @property
    def packet_bytes(self) -> tuple[int, int]:
        """Estimated (up, down) on the link with TCP/IP headers."""
        return (
            self.up + PACKET_HEADER_BYTES * (self._up_segments + self._down_segments // 2),
            self.down + PACKET_HEADER_BYTES * (self._down_segments + self._up_segments // 2),
        )


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
        raise ConfigError(f"'ca_file': got {ca_file!r}, expected a PEM file of certificates ({reason})") from None


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
            f"{url}: the server's certificate is not trusted ({error.verify_message}); name its authority in 'ca_file'"
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
