"""The weight server over S3-compatible storage and a shared Redis cache, both real servers on this machine."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from weight_stream_harness import client, weight_server

from streamsplit.errors import ConfigError, ManifestError
from streamsplit.facade.streaming import StreamingBertModel
from streamsplit.facade.weight_server import AdvancedWeightServer, WeightServer
from streamsplit.server.chunk_storage import FolderStorage, open_storage
from streamsplit.weights.streaming.manifest import Manifest, read_manifest

from streamed_models import VOCABULARY, chunked, saved  # isort: skip

moto_server = pytest.importorskip("moto.server", reason="needs moto[server]")
obstore = pytest.importorskip("obstore", reason="needs the extra 'storage'")
redis = pytest.importorskip("redis", reason="needs the extra 'storage'")

from streamsplit.server.chunk_pruning import prune  # noqa: E402
from streamsplit.server.object_storage import ObjectStorage  # noqa: E402
from streamsplit.server.redis_cache import RedisCachedStorage  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("stored")
    saved(base / "tiny", "BertModel")
    chunked(base / "tiny", base / "chunks")
    return base / "chunks"


@pytest.fixture(scope="module")
def bucket(folder: Path) -> Iterator[dict[str, str]]:
    """A bucket of a local S3 server that holds the folder; options for obstore."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {
        "endpoint": f"http://{host}:{port}", "access_key_id": "x", "secret_access_key": "x", "region": "us-east-1",
        "virtual_hosted_style_request": "false",
    }  # fmt: skip
    assert httpx.put(f"{options['endpoint']}/weights").status_code == 200
    store = obstore.store.from_url("s3://weights/models/tiny", **options, client_options={"allow_http": True})
    for path in folder.iterdir():
        obstore.put(store, path.name, path.read_bytes())
    yield {**options, "client_options": {"allow_http": True}}
    server.stop()


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

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.read_bytes = 0

    async def manifest(self) -> Manifest:
        return await self.inner.manifest()

    async def changed(self) -> bool:
        return await self.inner.changed()

    async def size(self, digest: str) -> int:
        return await self.inner.size(digest)

    async def read(self, digest: str, offset: int, length: int) -> bytes:
        self.read_bytes += length
        return await self.inner.read(digest, offset, length)


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
    for url in ("s3://weights/models/none", "s3://nothing/at-all"):
        with (
            pytest.raises(ManifestError, match=r"manifest\.json: cannot be read"),
            weight_server(ObjectStorage(url, bucket)),
        ):
            pass
    with pytest.raises(ConfigError, match="expected a folder or s3://bucket/prefix"):
        open_storage("gopher://x")


def test_servers_that_share_a_redis_read_the_storage_once(folder: Path, redis_url: str):
    first, second = (Counted(FolderStorage(folder)) for _ in range(2))
    with weight_server(RedisCachedStorage(first, redis_url)) as server:
        expected = all_chunks(server.url)
    with weight_server(RedisCachedStorage(second, redis_url)) as server:
        assert all_chunks(server.url) == expected
    manifest = read_manifest(folder)
    assert first.read_bytes == sum(chunk.stored_bytes for chunk in manifest.chunks) and second.read_bytes == 0
    assert {digest: (folder / f"{digest}.chunk").read_bytes() for digest in expected} == expected


def test_a_block_that_was_damaged_in_redis_is_read_again(folder: Path, redis_url: str):
    storage = Counted(FolderStorage(folder))
    with weight_server(RedisCachedStorage(storage, redis_url)) as server:
        expected = all_chunks(server.url)
        connection = redis.Redis.from_url(redis_url)
        for key in connection.keys("*"):
            connection.set(key, connection.get(key)[:-1] + b"\0")
        connection.close()
        assert all_chunks(server.url) == expected


def test_without_its_redis_the_server_goes_on(folder: Path):
    with weight_server(RedisCachedStorage(FolderStorage(folder), "redis://127.0.0.1:1")) as server:
        assert len(all_chunks(server.url)) == len(read_manifest(folder).chunks)
    with pytest.raises(ConfigError, match="expected redis://host:port"):
        RedisCachedStorage(FolderStorage(folder), "http://x")


def test_a_range_across_blocks_is_put_together_from_them(tmp_path: Path, redis_url: str):
    data = bytes(range(256)) * 10_000
    (tmp_path / ("ab" * 32 + ".chunk")).write_bytes(data)

    async def read() -> list[bytes]:
        storage = RedisCachedStorage(FolderStorage(tmp_path), redis_url)
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
