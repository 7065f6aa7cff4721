"""A weight server on a loopback port, a link that breaks or lies, and small chunked models."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from streamsplit.edge.weight_client import WeightClient
from streamsplit.edge.weight_link import WeightLinkSettings
from streamsplit.server.chunk_storage import FolderStorage
from streamsplit.server.settings import AuthSettings, WeightStreamSettings
from streamsplit.server.weight_app import serve_weights
from streamsplit.weights.streaming.manifest import FORMAT, NAME, Chunk, Manifest, encode_manifest, file_name
from streamsplit.wire.chunks import ChunkServer, Open

sys.path.append(str(Path(__file__).resolve().parents[1] / "weights" / "streaming"))


CHUNK_BYTES = 900_000


def weight_threads() -> set[threading.Thread]:
    """Threads of weight clients that are alive."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("weights")}


def raised_by(*works: Callable[[], object]) -> list[BaseException | None]:
    """What each call raised, all of them made at once in threads; they must end."""
    raised: list[BaseException | None] = [None] * len(works)

    def call(index: int) -> None:
        try:
            works[index]()
        except BaseException as error:
            raised[index] = error

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return raised


def folder_of_chunks(folder: Path, count: int = 3, size: int = CHUNK_BYTES, seed: int = 0) -> Manifest:
    """Chunks of noise with a manifest: the server does not look into them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    chunks = []
    for index in range(count):
        data = rng.bytes(size + index)
        digest = hashlib.sha256(data).hexdigest()
        (folder / file_name(digest)).write_bytes(data)
        chunks.append(
            Chunk(
                name=f"layer.{index}", role="layer", digest=digest, stored_bytes=len(data), raw_bytes=len(data),
                memory_bytes=len(data), tensors=(f"layer.{index}.weight",),
            )
        )  # fmt: skip
    manifest = Manifest(
        format=FORMAT, model="noise", model_type="bert", architecture="BertModel", dtype="fp32", config={},
        stacks=("layer",), chunks=tuple(chunks),
    )  # fmt: skip
    (folder / NAME).write_bytes(encode_manifest(manifest))
    return manifest


class Running:
    """Something that serves in a thread with a loop of its own."""

    def __init__(self, main: Callable[[Callable[[int], None]], Any]) -> None:
        self.port = 0
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(main(self._on_ready))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(30.0)
        if self._error is not None:
            raise self._error

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(30.0)
        assert not self._thread.is_alive()

    def _on_ready(self, port: int) -> None:
        self.port = port
        self._ready.set()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()
            self._loop.close()


@contextlib.contextmanager
def weight_server(folder: Path | Any, *, token: str = "", port: int = 0, **settings: Any) -> Iterator[Running]:
    """The real server over a folder of chunks or another storage."""
    storage = FolderStorage(folder) if isinstance(folder, Path) else folder

    async def main(ready: Callable[[int], None]) -> None:
        await serve_weights(
            storage, port=port, settings=WeightStreamSettings(**settings), auth=AuthSettings(shared_token=token),
            on_ready=lambda _, taken: ready(taken),
        )  # fmt: skip

    running = Running(main)
    try:
        yield running
    finally:
        running.stop()


@contextlib.contextmanager
def client(url: str, **settings: Any) -> Iterator[WeightClient]:
    """A client that gives up quickly."""
    made = WeightClient(url, WeightLinkSettings(**{"attempts": 3, "backoff_s": 0.01, "silence_s": 5.0, **settings}))
    try:
        yield made
    finally:
        made.close()


class LyingServer:
    """Speaks the protocol and does with each reply what `reply` says: (session, request, data) -> messages, or None
    to cut the connection."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = encode_manifest(manifest)
        self.revision = manifest.revision
        self.connections = 0
        self.asked: list[tuple[str, int, int]] = []
        self.reply: Callable[[ChunkServer, int, str, bytes], list[bytes | None]] = self.honest

    @staticmethod
    def honest(session: ChunkServer, request: int, digest: str, data: bytes) -> list[bytes | None]:
        return [session.data(request, data, True)]

    async def main(self, ready: Callable[[int], None]) -> None:
        async with serve(self._serve, "127.0.0.1", 0, compression=None) as server:
            ready(server.sockets[0].getsockname()[1])
            await asyncio.Event().wait()

    async def _serve(self, socket: ServerConnection) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionClosed):
            await self._answer(socket)

    async def _answer(self, socket: ServerConnection) -> None:
        session = ChunkServer()
        async for message in socket:
            asked = session.receive(message)
            if isinstance(asked, Open):
                await socket.send(session.accept(self.revision, len(self.manifest)))
                continue
            if not asked.digest:
                await socket.send(session.data(asked.request, self.manifest, True))
                continue
            self.asked.append((asked.digest, asked.offset, asked.length))
            stored = (self.folder / file_name(asked.digest)).read_bytes()
            data = stored[asked.offset : asked.offset + asked.length]
            for part in self.reply(session, asked.request, asked.digest, data):
                if part is None:
                    await asyncio.sleep(0.05)  # what was sent has arrived
                    socket.transport.abort()
                    return
                await socket.send(part)


@contextlib.contextmanager
def lying(folder: Path, manifest: Manifest) -> Iterator[tuple[LyingServer, Running]]:
    server = LyingServer(folder, manifest)
    running = Running(server.main)
    try:
        yield server, running
    finally:
        running.stop()
