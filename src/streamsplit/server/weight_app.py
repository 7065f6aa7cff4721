"""The weight stream alone: an app with /v1/weights, /healthz and /metrics, and how to serve it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from prometheus_client import CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from streamsplit.errors import ConfigError
from streamsplit.server.block_cache import BlockCachedStorage
from streamsplit.server.chunk_storage import ChunkStorage
from streamsplit.server.listener import QuietServer, listen, serve_until_stopped, uvicorn_config
from streamsplit.server.metrics import WeightStreamMetrics
from streamsplit.server.precedence import Precedence
from streamsplit.server.served_model import ServedModel
from streamsplit.server.settings import TOKEN_VARIABLE, AuthSettings, WeightStreamSettings, is_loopback
from streamsplit.server.weight_stream import WeightStream
from streamsplit.wire.types import MAX_MESSAGE_BYTES

LOG = logging.getLogger(__name__)


def create_weight_app(stream: WeightStream, model: ServedModel, registry: CollectorRegistry) -> Starlette:
    """The app; `model` is opened by whoever serves it."""

    async def weights(websocket: WebSocket) -> None:
        await stream.serve(websocket, model)

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    return Starlette(
        routes=[
            WebSocketRoute("/v1/weights", weights),
            Route("/healthz", healthz),
            Route("/metrics", metrics),
        ]
    )


async def serve_weights(
    storage: ChunkStorage,
    *,
    address: str = "127.0.0.1",
    port: int = 8765,
    settings: WeightStreamSettings | None = None,
    auth: AuthSettings | None = None,
    on_ready: Callable[[str, int], None] | None = None,
) -> None:
    """Serves until SIGINT, SIGTERM or cancellation; `on_ready(address, port)` is called when clients can connect.

    Raises ManifestError for chunks that cannot be served, PortInUseError, and ConfigError for an address that others
    can reach without a token.
    """
    settings, auth = settings or WeightStreamSettings(), auth or AuthSettings()
    if not is_loopback(address) and not auth.allow_open and not auth.token_for(""):
        raise ConfigError(f"'address': got {address} without a token; set {TOKEN_VARIABLE} or give one")
    registry = CollectorRegistry()
    metrics = WeightStreamMetrics(registry)
    metrics.watch(storage)
    stream = WeightStream(settings, auth, metrics, Precedence().bulk_turn)
    model = ServedModel(storage)
    await model.open()
    bound = listen(address, port)
    server = QuietServer(uvicorn_config(create_weight_app(stream, model, registry), 4 * MAX_MESSAGE_BYTES))

    def ready() -> None:
        at, taken = bound.getsockname()[:2]
        LOG.info("weights at ws://%s:%d/v1/weights", at, taken)
        if on_ready is not None:
            on_ready(str(at), int(taken))

    async def closing() -> None:
        """Clients notice by themselves, and come back where they were."""

    try:
        await serve_until_stopped(server, bound, ready=ready, closing=closing)
    finally:
        bound.close()
        if isinstance(storage, BlockCachedStorage):
            await storage.close()
