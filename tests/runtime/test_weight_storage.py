"""The weight server over S3-compatible storage and a shared Redis cache, both real servers on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn
from weight_stream_harness import client, folder_of_chunks, weight_server

from streamsplit.errors import ConfigError, ManifestError
from streamsplit.facade.streaming import StreamingBertModel
from streamsplit.facade.weight_server import AdvancedWeightServer, WeightServer
from streamsplit.server.block_cache import BLOCK_BYTES, BlockCachedStorage
from streamsplit.server.chunk_storage import FolderStorage, open_storage
from streamsplit.weights.streaming.manifest import Manifest, file_name, read_manifest

from streamed_models import VOCABULARY, chunked, saved  # isort: skip

obstore = pytest.importorskip("obstore", reason="needs the extra 'storage'")
redis = pytest.importorskip("redis", reason="needs the extra 'storage'")

from streamsplit.server.chunk_pruning import prune  # noqa: E402
from streamsplit.server.object_storage import ObjectStorage  # noqa: E402
from streamsplit.server.redis_cache import RedisBlocks  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("stored")
    saved(base / "tiny", "BertModel")
    chunked(base / "tiny", base / "chunks")
    return base / "chunks"


@pytest.fixture(scope="module")
def bucket(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A bucket of a local S3 server, which checks signatures, that holds the folder; options for obstore."""
    nanio = pytest.importorskip("nanio.app", reason="needs nanio, a small S3 server for Python 3.11 and later")
    from nanio.auth.credentials import StaticCredentialResolver
    from nanio.config import Settings

    buckets = tmp_path_factory.mktemp("buckets")
    (buckets / "weights").mkdir()
    keys = StaticCredentialResolver({"key": "the secret of the key"})
    app = nanio.build_app(Settings(data_dir=buckets, credentials=keys))
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, http="h11", loop="asyncio", lifespan="off")
    )
    bound = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([bound])))
    thread.start()
    options = {
        "endpoint": f"http://127.0.0.1:{bound.getsockname()[1]}", "access_key_id": "key",
        "secret_access_key": "the secret of the key", "region": "us-east-1", "virtual_hosted_style_request": "false",
        "client_options": {"allow_http": True},
    }  # fmt: skip
    store = obstore.store.from_url("s3://weights/models/tiny", **options)
    for path in folder.iterdir():
        obstore.put(store, path.name, path.read_bytes())
    yield options
    server.should_exit = True
    thread.join()


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A Redis server of this test alone."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server here; on Debian/Ubuntu: apt-get install redis-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        cwd=tmp_path, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        connection = redis.Redis(port=port)
        deadline = time.monotonic() + 60
        while True:
            try:
                connection.ping()
                break
            except redis.ConnectionError:
                assert time.monotonic() < deadline
        connection.close()
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


class Counted:
    """A storage that counts what is read from it."""

    def __init__(self, inner: Any, may: asyncio.Event | None = None) -> None:
        """Nothing comes before `may` is set."""
        self.inner = inner
        self.may = may
        self.reads = 0
        self.read_bytes = 0

    async def manifest(self) -> Manifest:
        return await self.inner.manifest()

    async def changed(self) -> bool:
        return await self.inner.changed()

    async def size(self, digest: str) -> int:
        return await self.inner.size(digest)

    async def read(self, digest: str, offset: int, length: int) -> bytes:
        self.reads += 1
        self.read_bytes += length
        if self.may is not None:
            await self.may.wait()
        return await self.inner.read(digest, offset, length)


def scraped(url: str) -> dict[str, float]:
    """The server's /metrics: sample -> value."""
    text = httpx.get(url.replace("ws", "http", 1) + "/metrics").text
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {sample: float(value) for sample, _, value in lines}


def behind(redis_url: str, storage: Any, **options: Any) -> BlockCachedStorage:
    return BlockCachedStorage(storage, RedisBlocks(redis_url), **options)


class SilentAtFirst:
    """Stands before a Redis: takes connections and says nothing, until `talks`; then hands everything through."""

    def __init__(self, redis_url: str) -> None:
        self.connections = 0
        self.talks = False
        self._port = int(redis_url.rpartition(":")[2])

    async def __aenter__(self) -> SilentAtFirst:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError):
            if self.talks:
                other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._port)
                await asyncio.gather(self._pass(reader, other_writer), self._pass(other_reader, writer))
            else:
                while await reader.read(65536):
                    pass
        writer.close()

    @staticmethod
    async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()


def all_chunks(url: str) -> dict[str, bytes]:
    with client(url) as device:
        chunks = device.manifest().chunks
        futures = {chunk.digest: device.fetch(chunk.digest, chunk.stored_bytes) for chunk in chunks}
        return {digest: future.result(20).tobytes() for digest, future in futures.items()}


def test_a_model_runs_from_a_bucket_as_from_a_folder(folder: Path, bucket: dict[str, Any]):
    storage = ObjectStorage("s3://weights/models/tiny", bucket)
    ids = torch.arange(2, 12)[None] % VOCABULARY
    with weight_server(folder) as local, weight_server(storage) as remote:
        assert all_chunks(local.url) == all_chunks(remote.url)
        with StreamingBertModel.open(remote.url, prefetch=2) as model, StreamingBertModel.open(local.url) as other:
            assert torch.equal(model(input_ids=ids)[0], other(input_ids=ids)[0])


def test_a_bucket_or_object_that_is_missing_is_one_clear_error(bucket: dict[str, Any]):
    forged = {**bucket, "secret_access_key": "another secret"}
    for url, options in (
        ("s3://weights/models/none", bucket), ("s3://nothing/at-all", bucket), ("s3://weights/models/tiny", forged),
    ):  # fmt: skip
        with (
            pytest.raises(ManifestError, match=r"manifest\.json: cannot be read") as said,
            weight_server(ObjectStorage(url, options)),
        ):
            pass
        assert "\n" not in str(said.value)
    with pytest.raises(ConfigError, match="expected a folder or s3://bucket/prefix"):
        open_storage("gopher://x")


def test_servers_that_share_a_redis_read_the_storage_once(folder: Path, redis_url: str):
    first, second = (Counted(FolderStorage(folder)) for _ in range(2))
    with weight_server(behind(redis_url, first)) as server:
        expected = all_chunks(server.url)
    with weight_server(behind(redis_url, second)) as server:
        assert all_chunks(server.url) == expected
    manifest = read_manifest(folder)
    assert first.read_bytes == sum(chunk.stored_bytes for chunk in manifest.chunks) and second.read_bytes == 0
    assert {digest: (folder / f"{digest}.chunk").read_bytes() for digest in expected} == expected


def test_a_block_that_was_damaged_in_redis_is_read_again(folder: Path, redis_url: str):
    storage = Counted(FolderStorage(folder))
    with weight_server(behind(redis_url, storage, memory_bytes=0)) as server:
        expected = all_chunks(server.url)
        read = storage.read_bytes
        connection = redis.Redis.from_url(redis_url)
        for key in connection.keys("*"):
            connection.set(key, connection.get(key)[:-1] + b"\0")
        connection.close()
        assert all_chunks(server.url) == expected
        assert storage.read_bytes == 2 * read


def test_without_its_redis_the_server_goes_on(folder: Path):
    with weight_server(behind("redis://127.0.0.1:1", FolderStorage(folder))) as server:
        assert len(all_chunks(server.url)) == len(read_manifest(folder).chunks)
    with pytest.raises(ConfigError, match="expected redis://host:port"):
        RedisBlocks("http://x")


def test_a_redis_that_says_nothing_is_asked_once_and_again_after_a_while(
    tmp_path: Path, redis_url: str, caplog: pytest.LogCaptureFixture
):
    manifest = folder_of_chunks(tmp_path, count=20, size=1000)
    now_s = 100.0

    async def run() -> None:
        nonlocal now_s
        async with SilentAtFirst(redis_url) as between:
            redis_blocks = RedisBlocks(between.url, timeout_s=0.1, clock_s=lambda: now_s)
            storage = BlockCachedStorage(FolderStorage(tmp_path), redis_blocks, memory_bytes=0)

            async def read_all() -> None:
                for chunk in manifest.chunks:
                    data = await storage.read(chunk.digest, 0, chunk.stored_bytes)
                    assert hashlib.sha256(data).hexdigest() == chunk.digest

            await read_all()
            assert (between.connections, redis_blocks.errors, redis_blocks.skipped) == (1, 1, 39)
            assert not redis_blocks.usable
            now_s += 1.0  # still silent: tried once more, and left alone for longer
            await read_all()
            assert (between.connections, redis_blocks.errors, redis_blocks.skipped) == (2, 2, 78)
            now_s += 1.9
            await read_all()
            assert between.connections == 2
            between.talks, redis_blocks._timeout_s = True, 20.0
            now_s += 0.1
            await read_all()
            assert redis_blocks.usable and (redis_blocks.hits, redis_blocks.misses) == (0, 20)
            await read_all()
            assert redis_blocks.hits == 20
            await storage.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    said = [record.message for record in caplog.records if "Redis" in record.message]
    assert len(said) == 2 and "no answer within 0.1 s" in said[0] and "in use again" in said[1]


def test_fifty_clients_that_want_the_same_cold_chunk_cause_one_read(tmp_path: Path):
    manifest = folder_of_chunks(tmp_path, count=1, size=2 * BLOCK_BYTES)
    chunk = manifest.chunks[0]

    async def run() -> Counted:
        counted = Counted(FolderStorage(tmp_path), may=asyncio.Event())
        storage = BlockCachedStorage(counted)
        reads = [asyncio.create_task(storage.read(chunk.digest, 0, chunk.stored_bytes)) for _ in range(50)]
        while storage.flights.joined < 49:
            await asyncio.sleep(0)
        reads[0].cancel()  # who began it leaves
        counted.may.set()
        answers = await asyncio.gather(*reads, return_exceptions=True)
        assert isinstance(answers[0], asyncio.CancelledError)
        assert set(answers[1:]) == {(tmp_path / file_name(chunk.digest)).read_bytes()}
        return counted

    counted = asyncio.run(run())
    assert counted.reads == 2 and counted.read_bytes == chunk.stored_bytes


def test_a_read_that_fails_is_told_to_all_who_waited_and_tried_again(tmp_path: Path):
    chunk = folder_of_chunks(tmp_path, count=1, size=1000).chunks[0]
    path = tmp_path / file_name(chunk.digest)

    async def run() -> None:
        counted = Counted(FolderStorage(tmp_path), may=asyncio.Event())
        storage = BlockCachedStorage(counted)
        await storage.size(chunk.digest)
        path.rename(tmp_path / "elsewhere")
        reads = [asyncio.create_task(storage.read(chunk.digest, 0, 1000)) for _ in range(3)]
        while storage.flights.joined < 2:
            await asyncio.sleep(0)
        counted.may.set()
        assert {type(e) for e in await asyncio.gather(*reads, return_exceptions=True)} == {ManifestError}
        (tmp_path / "elsewhere").rename(path)
        assert len(await storage.read(chunk.digest, 0, 1000)) == 1000

    asyncio.run(run())


def test_memory_holds_the_blocks_that_were_read_last_within_its_budget(tmp_path: Path):
    first, second, third = folder_of_chunks(tmp_path, count=3, size=1000).chunks

    async def run() -> None:
        counted = Counted(FolderStorage(tmp_path))
        storage = BlockCachedStorage(counted, memory_bytes=2010)
        for chunk in (first, second, first, third, first, second):
            await storage.read(chunk.digest, 0, chunk.stored_bytes)
            assert storage.counts.held_bytes <= 2010
        assert counted.reads == 4 and (storage.counts.hits, storage.counts.misses) == (2, 4)

    asyncio.run(run())


def test_the_caches_of_a_server_are_on_its_page(tmp_path: Path, redis_url: str):
    manifest = folder_of_chunks(tmp_path, count=3, size=BLOCK_BYTES - 2)  # 3 or 4 blocks: sizes grow by 1
    total = sum(chunk.stored_bytes for chunk in manifest.chunks)
    first = BlockCachedStorage(FolderStorage(tmp_path), RedisBlocks(redis_url))
    with weight_server(first) as server:
        for _ in range(2):
            all_chunks(server.url)
        page = scraped(server.url)
    name = "streamsplit_weight_cache_"
    assert page[name + "storage_reads_total"] == page[name + 'lookups_total{outcome="miss",tier="redis"}'] == 3
    assert page[name + 'bytes_total{tier="storage"}'] == total == page[name + "held_bytes"]
    assert page[name + 'bytes_total{tier="memory"}'] >= total  # the second time, and small pieces of a block
    assert page[name + "redis_usable"] == 1 and page[name + 'lookups_total{outcome="error",tier="redis"}'] == 0
    hits, misses = (page[name + f'lookups_total{{outcome="{outcome}",tier="memory"}}'] for outcome in ("hit", "miss"))
    assert hits >= 3 and page[name + 'hit_rate{tier="memory"}'] == pytest.approx(hits / (hits + misses))
    with weight_server(BlockCachedStorage(FolderStorage(tmp_path), RedisBlocks(redis_url))) as server:
        all_chunks(server.url)
        page = scraped(server.url)
    assert page[name + 'bytes_total{tier="redis"}'] == total and page[name + 'bytes_total{tier="storage"}'] == 0
    assert page[name + 'hit_rate{tier="redis"}'] == 1
    with weight_server(behind("redis://127.0.0.1:1", FolderStorage(tmp_path))) as server:
        all_chunks(server.url)
        page = scraped(server.url)
    assert page[name + "redis_usable"] == 0 and page[name + 'lookups_total{outcome="error",tier="redis"}'] == 1
    assert page[name + 'lookups_total{outcome="skipped",tier="redis"}'] == 5  # of two commands for each block
    for reason in ("storage", "socket", "sound"):
        assert page[f'streamsplit_weight_stream_wait_seconds_count{{reason="{reason}"}}'] >= 3
    assert page["streamsplit_weight_stream_request_seconds_count"] == 4  # with the manifest


def test_a_range_across_blocks_is_put_together_from_them(tmp_path: Path, redis_url: str):
    data = bytes(range(256)) * 10_000
    (tmp_path / ("ab" * 32 + ".chunk")).write_bytes(data)

    async def read() -> list[bytes]:
        storage = behind(redis_url, FolderStorage(tmp_path))
        try:
            places = [(0, 10), (1_048_570, 12), (2_097_100, 1000), (2_559_999, 1), (0, len(data)), (1_048_570, 12)]
            return [await storage.read("ab" * 32, offset, length) for offset, length in places]
        finally:
            await storage.close()

    got = asyncio.run(read())
    assert got == [
        data[:10],
        data[1_048_570:1_048_582],
        data[2_097_100:2_098_100],
        data[-1:],
        data,
        data[1_048_570:1_048_582],
    ]


def test_the_servers_of_the_seed_start_and_stop_within_a_loop(folder: Path, redis_url: str):
    async def run(server: WeightServer, start: Any) -> int:
        task = asyncio.create_task(start())
        await asyncio.wait_for(server.ready(), 20)
        try:
            return len(await asyncio.to_thread(all_chunks, f"ws://127.0.0.1:{server.port}"))
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    plain = WeightServer(folder, port=0)
    advanced = AdvancedWeightServer(chunks_dir=folder, redis_url=redis_url, port=0)
    counts = [asyncio.run(run(plain, plain.start_server)), asyncio.run(run(advanced, advanced.start_servers))]
    assert counts == [len(read_manifest(folder).chunks)] * 2


def test_a_bucket_is_pruned_as_a_folder_is(folder: Path, bucket: dict[str, Any]):
    options = {**bucket}
    store = obstore.store.from_url("s3://weights/models/pruned", **options)
    for path in folder.iterdir():
        obstore.put(store, path.name, path.read_bytes())
    stray = f"{'0' * 64}.chunk"
    obstore.put(store, stray, b"of no revision")
    storage = ObjectStorage("s3://weights/models/pruned", bucket)
    young = asyncio.run(prune(storage, keep=1, now_s=time.time()))
    assert young.files == 0
    result = asyncio.run(prune(storage, keep=1, now_s=time.time() + 7200))
    assert (result.files, result.bytes) == (1, 14)
    left = {o["path"] for batch in obstore.list(store) for o in batch}
    assert left == {path.name for path in folder.iterdir()}
