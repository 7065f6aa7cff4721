"""The ASGI app: WebSocket /v1/stream for devices, HTTP for people and machines."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import lru_cache, wraps
from importlib import resources
from typing import Any

import msgspec
import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from streamsplit.errors import CheckpointError, ConfigError, CutError, StoreError
from streamsplit.server.fleet import cut_name, finite
from streamsplit.server.records import WindowRecord
from streamsplit.server.served_model import ServedModel
from streamsplit.server.service import StreamServer
from streamsplit.server.settings import ServerSettings
from streamsplit.server.websocket import WebSocketPipe

MAX_WINDOWS = 20_000
MAX_BODY_BYTES = 1 << 20
Handler = Callable[[Request], Awaitable[Response]]


def create_app(settings: ServerSettings) -> Starlette:
    """The app with its own server inside (`app.state.server`), started and stopped by the ASGI lifespan."""
    server = StreamServer(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await server.start()
        try:
            yield
        finally:
            await server.stop()

    async def stream(websocket: WebSocket) -> None:
        await websocket.accept()
        await server.gateway.serve(WebSocketPipe(websocket))

    def weights(model: ServedModel) -> Callable[[WebSocket], Awaitable[None]]:
        async def serve(websocket: WebSocket) -> None:
            await server.weight_stream.serve(websocket, model)

        return serve

    app = Starlette(
        routes=[
            WebSocketRoute("/v1/stream", stream),
            *(WebSocketRoute(path, weights(model)) for path, model in server.streamed.paths.items()),
            Route("/", page),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", guarded(metrics)),
            Route("/api/status", guarded(status)),
            Route("/api/windows", guarded(windows)),
            Route("/api/revision", guarded(revision)),
            Route("/api/labels", guarded(labels), methods=["GET", "POST"]),
            Route("/api/policy", guarded(policy), methods=["GET", "POST"]),
        ],
        lifespan=lifespan,
        exception_handlers={StoreError: on_store_error},
    )
    app.state.server = server
    return app


def guarded(handler: Handler) -> Handler:
    """Asks for 'Authorization: Bearer <auth.api_token>' where the settings name one."""

    @wraps(handler)
    async def checked(request: Request) -> Response:
        token = _server(request).settings.auth.api_token
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and not hmac.compare_digest(given.encode(), token.encode()):
            return JSONResponse(
                {"error": "bad_token", "detail": "send 'Authorization: Bearer <auth.api_token>'"},
                status_code=401,
                headers={"WWW-Authenticate": "Bearer"},
            )
        return await handler(request)

    return checked


async def on_store_error(_: Request, error: Exception) -> Response:
    """The database cannot be read now."""
    return JSONResponse({"error": "store", "detail": str(error)}, status_code=503)


async def page(_: Request) -> Response:
    """The live page; asks /api/status by itself."""
    return HTMLResponse(
        _page(),
        headers={
            "Content-Security-Policy": (
                "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
            )
        },
    )


@lru_cache(maxsize=1)
def _page() -> str:
    return resources.files("streamsplit.server").joinpath("page.html").read_text(encoding="utf-8")


async def healthz(_: Request) -> Response:
    """200 while the process answers."""
    return PlainTextResponse("ok\n")


async def readyz(request: Request) -> Response:
    """200 while windows can be accepted, 503 with the reason otherwise."""
    reason = _server(request).not_ready()
    return PlainTextResponse(f"{reason or 'ready'}\n", status_code=503 if reason else 200)


async def metrics(request: Request) -> Response:
    """Prometheus exposition."""
    return Response(_server(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def status(request: Request) -> Response:
    """Devices, totals, latencies, revision, refiner, last events."""
    body = msgspec.json.encode(await _server(request).status())
    return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})


async def windows(request: Request) -> Response:
    """Recent windows, newest last: ?device=ID (default all) &limit=N &embeddings=1 (base64 of fp16)."""
    server = _server(request)
    try:
        limit = int(request.query_params.get("limit", "200"))
    except ValueError:
        limit = 0
    if not 1 <= limit <= MAX_WINDOWS:
        return _bad(f"limit: got {request.query_params.get('limit')!r}, expected 1..{MAX_WINDOWS}")
    device = request.query_params.get("device")
    embeddings = request.query_params.get("embeddings", "0") in ("1", "true", "yes")
    records = await asyncio.to_thread(server.store.recent_windows, device, limit)
    body = await asyncio.to_thread(
        lambda: json.dumps(
            {"dim": server.settings.encoder.embedding_dim, "windows": [window_json(r, embeddings) for r in records]}
        )
    )
    return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})


async def revision(request: Request) -> Response:
    """The current weights as a safetensors file; ?revision=HEX for an older one that is still kept."""
    server = _server(request)
    wanted = request.query_params.get("revision", server.revision)
    if wanted != server.revision and server.weights.space_of(wanted) is None:
        return _bad(f"revision: got {wanted[:80]!r}, which this server never had", 404)
    try:
        data = await asyncio.to_thread(server.files.weights_bytes, wanted)
    except CheckpointError:
        return _bad(f"revision {wanted[:12]} is no longer kept", 404)
    return Response(
        data,
        media_type="application/octet-stream",
        headers={
            "X-Revision": wanted,
            "X-Space": str(server.weights.space_of(wanted)),
            "Content-Disposition": f'attachment; filename="{wanted[:12]}.safetensors"',
        },
    )


async def labels(request: Request) -> Response:
    """GET: the labels. POST {"label": TEXT, "windows": [{"device", "epoch", "sequence"}...]}: their mean becomes the
    label's prototype, and the nearest prototype names new windows. The refiner learns the label from those it holds."""
    server = _server(request)
    if request.method == "GET":
        return JSONResponse({"labels": list(server.labels.names)})
    body = await request.body()
    if len(body) > MAX_BODY_BYTES:
        return _bad(f"got {len(body)} bytes, expected at most {MAX_BODY_BYTES}", 413)
    try:
        values = json.loads(body)
        label = values["label"]
        keys = [(str(w["device"]), int(w["epoch"]), int(w["sequence"])) for w in values["windows"]]
    except (ValueError, KeyError, TypeError) as error:
        return _bad(f'got {type(error).__name__}: {error}, expected {{"label": ..., "windows": [...]}}')
    if not isinstance(label, str) or not 0 < len(label) <= 128 or not 0 < len(keys) <= 1000:
        return _bad("expected a label of 1..128 characters and 1..1000 windows")
    found = await asyncio.to_thread(
        lambda: [
            r
            for device, epoch, sequence in keys
            for r in server.store.results_from(device, epoch, sequence, 1)
            if r.sequence == sequence
            and r.embedding is not None
            and server.weights.space_of(r.revision) == server.space
        ]
    )
    if not found:
        return _bad("none of these windows has an embedding of the current revision's space", 404)
    vectors = np.stack([np.frombuffer(r.embedding or b"", "<f2").astype(np.float32) for r in found])
    space = server.space
    try:
        await asyncio.wrap_future(server.compute.call(lambda: server.labels.add(label, vectors, space)))
    except (ConfigError, CheckpointError) as error:
        return _bad(str(error))
    server.teach(label, found)
    return JSONResponse({"label": label, "windows": len(found)})


async def policy(request: Request) -> Response:
    """GET: version and size of the policy that devices are offered. POST ?version=N, body: a policy file (.npz); it is
    signed with policy.key and goes to every device that wants one. Posting asks for auth.api_token to be set."""
    server = _server(request)
    held = server.policies.current
    if request.method == "GET":
        return JSONResponse({"version": server.policies.version, "bytes": len(held.data) if held is not None else 0})
    if not server.settings.auth.api_token:
        return _bad("set auth.api_token: without one anybody could change what all devices do", 403)
    body = await request.body()
    try:
        version = int(request.query_params.get("version", ""))
    except ValueError:
        return _bad(f"version: got {request.query_params.get('version')!r}, expected a whole number")
    try:
        told = server.push_policy(version, body)
    except CutError as error:
        return _bad(str(error))
    except CheckpointError as error:
        return _bad(str(error), 507)
    return JSONResponse({"version": version, "devices": told})


def window_json(record: WindowRecord, embeddings: bool) -> dict[str, Any]:
    """One window of /api/windows."""
    values: dict[str, Any] = {
        name: finite(value) if isinstance(value, float) else value
        for name, value in zip(record._fields, record, strict=True)
        if name != "embedding"
    }
    values["cut"] = cut_name(record.block, record.encoding)
    if embeddings:
        values["embedding"] = None if record.embedding is None else base64.b64encode(record.embedding).decode()
    return values


def _bad(detail: str, status_code: int = 400) -> Response:
    return JSONResponse({"error": "bad_request", "detail": detail}, status_code=status_code)


def _server(request: Request) -> StreamServer:
    server: StreamServer = request.app.state.server
    return server
