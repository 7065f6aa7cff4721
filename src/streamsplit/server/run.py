"""`run_server`: the app under uvicorn, from a taken port's one-line error to a clean end on Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn
from starlette.applications import Starlette
from uvicorn.config import WS_PROTOCOLS

from streamsplit.errors import ConfigError, PortInUseError
from streamsplit.server.app import create_app
from streamsplit.server.service import StreamServer
from streamsplit.server.settings import ServerSettings

LOG = logging.getLogger(__name__)
SIGNALS = (signal.SIGINT, signal.SIGTERM)
BACKLOG = 2048
SWITCH_INTERVAL_S = 0.0005  # the loop gives up the GIL at every send; 5 ms each until it has it back add up to seconds


class _Server(uvicorn.Server):
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


async def serve(
    settings: ServerSettings, *, app: Starlette | None = None, on_ready: Callable[[str, int], None] | None = None
) -> None:
    """Serves until SIGINT or SIGTERM (or cancellation), then drains and writes a checkpoint.

    `app` comes from `create_app`, for a caller that wants to look into it. `on_ready(address, port)` is called when
    devices can connect.
    """
    bound = listen(settings.server.bind_address, settings.server.port)
    address, port = bound.getsockname()[:2]
    app = create_app(settings) if app is None else app
    backend: StreamServer = app.state.server
    try:
        await backend.start()
    except BaseException:
        bound.close()
        raise
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",  # started here, so that what stops it from starting is one line
        ws="websockets-sansio" if "websockets-sansio" in WS_PROTOCOLS else "websockets",
        ws_max_size=2 * settings.limits.max_frame_bytes + 1024,
        ws_per_message_deflate=False,
        ws_ping_interval=None,  # the protocol has its own
        timeout_graceful_shutdown=5,
        backlog=BACKLOG,
    )
    server = _Server(config)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
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
            gc.collect()
            gc.freeze()  # what PyTorch brought stays: walking it again and again would stop the event loop
            LOG.info("listening on http://%s:%d", address, port)
            if on_ready is not None:
                on_ready(str(address), int(port))
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        await backend.gateway.close()  # tells the devices before uvicorn cuts their connections
        server.should_exit = True
        await task
        await backend.stop()
        for number in installed:
            loop.remove_signal_handler(number)
        bound.close()


def run_server(settings: ServerSettings, *, on_ready: Callable[[str, int], None] | None = None) -> None:
    """Runs a server until Ctrl-C or SIGTERM; raises StreamSplitError with one line on what stops it from starting."""
    logging.basicConfig(level=settings.server.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(serve(settings, on_ready=on_ready))
