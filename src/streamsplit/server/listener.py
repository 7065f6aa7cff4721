"""A bound socket and a uvicorn server that leaves signals alone: what every way to serve begins with."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn

from streamsplit.errors import ConfigError, PortInUseError
from streamsplit.server.frame_buffer import websocket_protocol

BACKLOG = 2048
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class QuietServer(uvicorn.Server):
    """Without uvicorn's own signal handling, which raises the signal again after the end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(address: str, port: int) -> socket.socket:
    """A bound socket; raises PortInUseError or ConfigError in one line."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, or asyncio leaves Nagle's delay on
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((address, port))
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"port {port} on {address} is taken; stop the other program or choose another with --port"
            ) from None
        raise ConfigError(
            f"'server.bind_address': cannot listen on {address}:{port} ({error.strerror or error})"
        ) from None
    bound.set_inheritable(True)
    return bound


def uvicorn_config(app: Any, max_message_bytes: int) -> uvicorn.Config:
    """How every app of this package runs: the app starts itself, the protocol pings, nothing is compressed twice."""
    return uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",  # started by the caller, so that what stops it from starting is one line
        http="h11",  # whatever else is installed: requests are few, and what is tested is what runs
        ws=websocket_protocol(),
        ws_max_size=max_message_bytes,
        ws_per_message_deflate=False,
        ws_ping_interval=None,  # the protocol has its own
        timeout_graceful_shutdown=5,
        backlog=BACKLOG,
    )


async def serve_until_stopped(
    server: QuietServer, bound: socket.socket, *, ready: Callable[[], None], closing: Callable[[], Awaitable[None]]
) -> None:
    """Serves until SIGINT, SIGTERM or cancellation; a second signal ends it at once.

    `ready` is called when clients can connect, `closing` before their connections are cut.
    """
    loop = asyncio.get_running_loop()
    wanted = asyncio.Event()

    def stop() -> None:
        if wanted.is_set():
            server.force_exit = True
        wanted.set()

    installed = []
    for number in SIGNALS:
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not in the main thread, or Windows
            loop.add_signal_handler(number, stop)
            installed.append(number)
    task = asyncio.create_task(server.serve(sockets=[bound]))
    waiting = asyncio.create_task(wanted.wait())
    try:
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        if server.started:
            ready()
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        await closing()
        server.should_exit = True
        await task
        for number in installed:
            loop.remove_signal_handler(number)
