"""The listening socket: small answers leave at once, a taken port is one line."""

from __future__ import annotations

import asyncio
import socket

import pytest

from streamsplit.errors import ConfigError, PortInUseError
from streamsplit.server.listener import listen


def test_connections_send_without_nagles_delay() -> None:
    """An answer of a few bytes would wait for the acknowledgement of the one before it, up to 40 ms."""

    async def accepted() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        class Looks(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                end: socket.socket = transport.get_extra_info("socket")
                found.set_result(end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

        bound = listen("127.0.0.1", 0)
        server = await asyncio.get_running_loop().create_server(Looks, sock=bound)
        _, writer = await asyncio.open_connection(*bound.getsockname()[:2])
        nodelay = await asyncio.wait_for(found, 10.0)
        writer.close()
        server.close()
        return nodelay

    assert asyncio.run(accepted()) == 1


def test_a_port_that_is_taken_and_an_address_that_is_not_here_are_named() -> None:
    with listen("127.0.0.1", 0) as first:
        first.listen()
        with pytest.raises(PortInUseError, match="is taken"):
            listen("127.0.0.1", first.getsockname()[1])
    with pytest.raises(ConfigError, match=r"'server\.bind_address': cannot listen on 192\.0\.2\.1"):
        listen("192.0.2.1", 0)
