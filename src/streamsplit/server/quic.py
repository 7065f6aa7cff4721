"""The UDP port for devices that come over QUIC: every connection goes to the gateway, as every WebSocket does."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from functools import partial

from aioquic.asyncio.server import QuicServer

from streamsplit.errors import ConfigError, PortInUseError
from streamsplit.server.certificate import CertificateFiles
from streamsplit.transport.pipe import Pipe
from streamsplit.transport.quic import QuicPipe, configuration


class QuicListener:
    """Listens from `open` to `close`."""

    def __init__(self, server: QuicServer, transport: asyncio.DatagramTransport, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.port = int(transport.get_extra_info("sockname")[1])
        self._server = server
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(
        cls, address: str, port: int, files: CertificateFiles, serve: Callable[[Pipe], Awaitable[None]]
    ) -> QuicListener:
        """Raises PortInUseError or ConfigError in one line. `serve` lives as long as a device's connection."""
        made = configuration(is_client=False)
        try:
            made.load_cert_chain(files.certificate, files.key)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"'server.quic_certificate': {files.certificate} and {files.key} do not load ({error}); give PEM files"
            ) from error
        opened: list[QuicListener] = []

        def connected(pipe: QuicPipe) -> None:
            opened[0]._start(serve(pipe))

        loop = asyncio.get_running_loop()
        try:
            transport, server = await loop.create_datagram_endpoint(
                lambda: QuicServer(configuration=made, create_protocol=partial(QuicPipe, opened=connected)),
                local_addr=(address, port),
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUseError(
                    f"UDP port {port} on {address} is taken; stop the other program or set another server.quic_port"
                ) from None
            raise ConfigError(
                f"'server.bind_address': cannot listen on UDP {address}:{port} ({error.strerror or error})"
            ) from None
        opened.append(cls(server, transport, files.fingerprint))
        return opened[0]

    async def close(self) -> None:
        """Ends what still stands, and listens no more."""
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Awaitable[None]) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
