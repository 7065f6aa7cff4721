"""WeightServer and AdvancedWeightServer: the weight stream of one model, as an object to start from Python."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from streamsplit.server.chunk_storage import ChunkStorage, FolderStorage, open_storage
from streamsplit.server.settings import AuthSettings, WeightStreamSettings
from streamsplit.server.weight_app import serve_weights


class WeightServer:
    """Serves a folder that ModelChunker made, at ws://host:port/v1/weights."""

    def __init__(
        self, chunks_dir: str | Path, port: int = 8765, *, host: str = "127.0.0.1", token: str = "",
        settings: WeightStreamSettings | None = None,
    ) -> None:  # fmt: skip
        """An address that others can reach needs a token; `port` 0 takes a free one, see `port` once it serves."""
        self.host = host
        self.port = port
        self._storage: ChunkStorage = FolderStorage(chunks_dir)
        self._auth = AuthSettings(shared_token=token)
        self._settings = settings or WeightStreamSettings()
        self._ready = asyncio.Event()

    async def start_server(self) -> None:
        """Serves until SIGINT, SIGTERM or cancellation; raises in one line what stops it from starting."""
        try:
            await serve_weights(
                self._storage, address=self.host, port=self.port, settings=self._settings, auth=self._auth,
                on_ready=self._on_ready,
            )  # fmt: skip
        finally:
            self._ready.clear()

    async def ready(self) -> None:
        """Returns when clients can connect."""
        await self._ready.wait()

    def run(self) -> None:
        """The same outside an event loop."""
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(self.start_server())

    def _on_ready(self, _address: str, port: int) -> None:
        self.port = port
        self._ready.set()


class AdvancedWeightServer(WeightServer):
    """Serves from a folder or object storage, with a Redis cache that several servers share."""

    def __init__(
        self, chunks_dir: str | Path, redis_url: str = "", port: int = 8765, *, host: str = "127.0.0.1",
        token: str = "", settings: WeightStreamSettings | None = None,
    ) -> None:  # fmt: skip
        """`chunks_dir` is a folder or a URL such as s3://bucket/prefix; see WeightServer for the rest."""
        super().__init__(".", port, host=host, token=token, settings=settings)
        self._storage = open_storage(chunks_dir, redis_url, self._settings.memory_mb)

    async def start_servers(self) -> None:
        """The seed's name of `start_server`."""
        await self.start_server()
