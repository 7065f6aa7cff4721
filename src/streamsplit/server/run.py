"""`run_server`: the app under uvicorn, from a taken port's one-line error to a clean end on Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette

from streamsplit.errors import MissingExtraError
from streamsplit.server.app import create_app
from streamsplit.server.listener import QuietServer, listen, serve_until_stopped, uvicorn_config
from streamsplit.server.service import StreamServer
from streamsplit.server.settings import ServerSettings

if TYPE_CHECKING:
    from streamsplit.server.quic import QuicListener

LOG = logging.getLogger(__name__)
SWITCH_INTERVAL_S = 0.0005  # the loop gives up the GIL at every send; 5 ms each until it has it back add up to seconds


async def serve(
    settings: ServerSettings,
    *,
    app: Starlette | None = None,
    on_ready: Callable[[str, int], None] | None = None,
    on_end: Callable[[dict[str, Any]], None] | None = None,
    on_quic: Callable[[int, str], None] | None = None,
) -> None:
    """Serves until SIGINT or SIGTERM (or cancellation), then drains and writes a checkpoint.

    `app` comes from `create_app`, for a caller that wants to look into it. `on_ready(address, port)` is called when
    devices can connect, before it `on_quic(port, fingerprint)` where they can over QUIC, too; `on_end(status)` with
    what /api/status would say when everything accepted is done.
    """
    bound = listen(settings.server.bind_address, settings.server.port)
    address, port = bound.getsockname()[:2]
    app = create_app(settings) if app is None else app
    backend: StreamServer = app.state.server
    try:
        await backend.start()
        try:
            quic = await listen_quic(settings, backend)
        except BaseException:
            await backend.stop()
            raise
    except BaseException:
        bound.close()
        raise
    app.state.quic = quic
    server = QuietServer(uvicorn_config(app, 2 * settings.limits.max_frame_bytes + 1024))
    sys.setswitchinterval(SWITCH_INTERVAL_S)

    def ready() -> None:
        gc.collect()
        gc.freeze()  # what PyTorch brought stays: walking it again and again would stop the event loop
        LOG.info("listening on http://%s:%d", address, port)
        if quic is not None:
            LOG.info("and on quic://%s:%d, fingerprint %s", address, quic.port, quic.fingerprint)
            if on_quic is not None:
                on_quic(quic.port, quic.fingerprint)
        if on_ready is not None:
            on_ready(str(address), int(port))

    try:  # devices are told before uvicorn cuts their connections
        await serve_until_stopped(server, bound, ready=ready, closing=backend.gateway.close)
    finally:
        if quic is not None:
            await quic.close()
        last = await backend.stop()
        bound.close()
        if on_end is not None:
            on_end(last)


async def listen_quic(settings: ServerSettings, backend: StreamServer) -> QuicListener | None:
    """The listener for QUIC that the settings ask for; raises ConfigError, PortInUseError and MissingExtraError."""
    asked = settings.server
    if asked.quic_port is None:
        return None
    try:
        from streamsplit.server.certificate import certificate_files
        from streamsplit.server.quic import QuicListener
    except ImportError as error:
        raise MissingExtraError("listening for QUIC (server.quic_port)", "quic", str(error)) from error
    files = certificate_files(asked.quic_certificate, asked.quic_key, settings.data_path)
    return await QuicListener.open(asked.bind_address, asked.quic_port, files, backend.gateway.serve)


def run_server(
    settings: ServerSettings,
    *,
    on_ready: Callable[[str, int], None] | None = None,
    on_end: Callable[[dict[str, Any]], None] | None = None,
    on_quic: Callable[[int, str], None] | None = None,
) -> None:
    """Runs a server until Ctrl-C or SIGTERM; raises StreamSplitError with one line on what stops it from starting."""
    logging.basicConfig(level=settings.server.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(serve(settings, on_ready=on_ready, on_end=on_end, on_quic=on_quic))
