"""A bound socket and a uvicorn server that leaves signals alone: what every way to serve begins with."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.config import WS_PROTOCOLS

from streamsplit.errors import ConfigError, PortInUseError

BACKLOG = 2048


class QuietServer(uvicorn.Server):
    """Without uvicorn's own signal handling, which raises the signal again after the end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(address: str, port: int) -> socket.socket:
    """A bound socket; raises PortInUseError or ConfigError in one line."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
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
        ws="websockets-sansio" if "websockets-sansio" in WS_PROTOCOLS else "websockets",
        ws_max_size=max_message_bytes,
        ws_per_message_deflate=False,
        ws_ping_interval=None,  # the protocol has its own
        timeout_graceful_shutdown=5,
        backlog=BACKLOG,
    )
