"""The weight stream over real sockets: what is asked for comes, checked, resumed, limited; nothing else comes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import msgspec
import pytest
import zstandard
from server_harness import device, embedding_window, make_settings, running
from websockets.asyncio.client import connect
from weight_stream_harness import CHUNK_BYTES, client, folder_of_chunks, lying, weight_server

from streamsplit.edge.weight_link import full_url
from streamsplit.errors import ConfigError, ConnectionRefused, ManifestError, PortInUseError, ProtocolError
from streamsplit.server.chunk_storage import FolderStorage
from streamsplit.server.weight_app import serve_weights
from streamsplit.weights.revision import revision_prefix
from streamsplit.weights.streaming.manifest import (
    NAME,
    Chunk,
    Manifest,
    encode_manifest,
    file_name,
)
from streamsplit.wire.chunks import ChunkClient


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder_of_chunks(tmp_path / "chunks")
    return tmp_path / "chunks"


def stored(folder: Path, chunk: Chunk) -> bytes:
    return (folder / file_name(chunk.digest)).read_bytes()


def test_the_manifest_and_every_chunk_come_as_they_are_stored(folder: Path):
    with weight_server(folder) as server, client(server.url) as device:
        manifest = device.manifest()
        futures = [device.fetch(chunk.digest, chunk.stored_bytes) for chunk in manifest.chunks]
        for chunk, future in zip(manifest.chunks, futures, strict=True):
            assert future.result(20).tobytes() == stored(folder, chunk)
        assert device.connections == 1
        total = sum(chunk.stored_bytes for chunk in manifest.chunks)
        assert total < device.count.down < 1.001 * total + 4000


def test_a_range_comes_alone_and_is_checked_by_its_parts(folder: Path):
    with weight_server(folder) as server, client(server.url) as device:
        chunk = device.manifest().chunks[1]
        data = stored(folder, chunk)
        before = device.count.down
        parts = [(70, hashlib.sha256(data[1000:1070]).digest()), (30, hashlib.sha256(data[1070:1100]).digest())]
        assert device.fetch_range(chunk.digest, 1000, 100, parts).result(20).tobytes() == data[1000:1100]
        assert device.count.down - before < 300
        wrong = [parts[0], (30, bytes(32))]
        with pytest.raises(ManifestError, match="damaged or not what was asked for"):
            device.fetch_range(chunk.digest, 1000, 100, wrong).result(20)


def test_one_chunk_that_many_ask_for_travels_once(folder: Path):
    manifest = folder_of_chunks(folder)
    chunk = manifest.chunks[0]
    with lying(folder, manifest) as (server, at), client(at.url) as device:
        device.manifest()
        all_asked = threading.Event()

        def held_back(session, request, digest, data):
            assert all_asked.wait(20)
            return [session.data(request, data, True)]

        server.reply = held_back
        with ThreadPoolExecutor(8) as pool:
            futures = list(pool.map(lambda _: device.fetch(chunk.digest, chunk.stored_bytes), range(8)))
        all_asked.set()
        assert {future.result(20).tobytes() for future in futures} == {stored(folder, chunk)}
        assert len(server.asked) == 1
        assert device.count.down < 1.1 * chunk.stored_bytes


def test_a_lost_connection_goes_on_in_mid_chunk(folder: Path):
    manifest = folder_of_chunks(folder)
    chunk = manifest.chunks[0]
    with lying(folder, manifest) as (server, at), client(at.url) as device:
        device.manifest()

        def broken(session, request, digest, data):
            if server.connections < 4:
                return [session.data(request, data[:250_000], False), None]
            return [session.data(request, data, True)]

        server.reply = broken
        assert device.fetch(chunk.digest, chunk.stored_bytes).result(20).tobytes() == stored(folder, chunk)
        assert [offset for _, offset, _ in server.asked] == [0, 250_000, 500_000, 750_000]
        assert device.count.down < 1.01 * chunk.stored_bytes + 5000


def test_a_restarted_server_is_found_again(folder: Path):
    with weight_server(folder) as server:
        port = server.port
        device_client = client(server.url, attempts=50, backoff_s=0.05)
        device = device_client.__enter__()
        chunks = device.manifest().chunks
        device.fetch(chunks[0].digest, chunks[0].stored_bytes).result(20)
    try:
        future = device.fetch(chunks[1].digest, chunks[1].stored_bytes)
        with weight_server(folder, port=port):
            assert future.result(20).tobytes() == stored(folder, chunks[1])
    finally:
        device_client.__exit__(None, None, None)


def test_a_server_that_is_not_there_is_given_up_on(folder: Path):
    with weight_server(folder) as server:
        url = server.url
    with client(url, backoff_s=0.001) as device, pytest.raises(ConnectionError, match="cannot be reached"):
        device.manifest()


def test_a_silent_server_is_left(folder: Path):
    manifest = folder_of_chunks(folder)
    with lying(folder, manifest) as (server, at), client(at.url, silence_s=0.2) as device:
        device.manifest()
        server.reply = lambda session, request, digest, data: []
        with pytest.raises(ConnectionError, match="cannot be reached"):
            device.fetch(manifest.chunks[0].digest, manifest.chunks[0].stored_bytes).result(20)
        assert server.connections >= 3


def lies(manifest: Manifest, folder: Path):
    other = stored(folder, manifest.chunks[1])
    return {
        "a bit is wrong": lambda s, r, d, data: [s.data(r, bytes([data[0] ^ 1]) + data[1:], True)],
        "another chunk's bytes": lambda s, r, d, data: [s.data(r, other[: len(data)], True)],
        "too short": lambda s, r, d, data: [s.data(r, data[:-1], True)],
        "too long": lambda s, r, d, data: [s.data(r, data + b"x", True)],
        "another request's id": lambda s, r, d, data: [s.data(r + 1, data, True)],
        "a text": lambda s, r, d, data: ["hello"],
        "no frame": lambda s, r, d, data: [b"\x01\x02"],
    }


@pytest.mark.parametrize(
    "lie",
    ["a bit is wrong", "another chunk's bytes", "too short", "too long", "another request's id", "a text", "no frame"],
)
def test_bytes_that_are_not_what_was_asked_for_never_arrive(folder: Path, lie: str):
    manifest = folder_of_chunks(folder)
    chunk = manifest.chunks[0]
    with lying(folder, manifest) as (server, at), client(at.url, faults=1) as device:
        device.manifest()
        server.reply = lies(manifest, folder)[lie]
        with pytest.raises((ManifestError, ProtocolError)):
            device.fetch(chunk.digest, chunk.stored_bytes).result(20)
        assert len(server.asked) == 2
        server.reply = server.honest
        assert device.fetch(chunk.digest, chunk.stored_bytes).result(20).tobytes() == stored(folder, chunk)


def test_two_replies_that_were_swapped_are_refused_and_asked_for_again(folder: Path):
    manifest = folder_of_chunks(folder, size=1000)
    first, second = manifest.chunks[:2]
    held: list[tuple[int, bytes]] = []

    def swapped(session, request, digest, data):
        held.append((request, data))
        if len(held) < 2:
            return []
        if len(held) > 2:
            return [session.data(request, data, True)]
        return [
            session.data(held[0][0], held[1][1][: len(held[0][1])], True),
            session.data(request, held[0][1] + b"x", True),
        ]

    with lying(folder, manifest) as (server, at), client(at.url) as device:
        device.manifest()
        server.reply = swapped
        futures = [device.fetch(chunk.digest, chunk.stored_bytes) for chunk in (first, second)]
        assert [future.result(20).tobytes() for future in futures] == [stored(folder, c) for c in (first, second)]
        assert len(server.asked) == 4


@pytest.mark.parametrize(("offset", "length"), [(0, CHUNK_BYTES + 1), (CHUNK_BYTES, 1), (1 << 40, 1)])
def test_a_range_beyond_the_chunk_is_refused_and_the_server_goes_on(folder: Path, offset: int, length: int):
    with weight_server(folder) as server, client(server.url) as device:
        chunk = device.manifest().chunks[0]
        with pytest.raises(ProtocolError, match="bad_transfer"):
            device.fetch_range(chunk.digest, offset, length, [(length, bytes(32))]).result(20)
        assert device.fetch(chunk.digest, chunk.stored_bytes).result(20).tobytes() == stored(folder, chunk)
        assert device.connections == 1


def test_a_file_that_the_manifest_does_not_name_is_not_served(folder: Path):
    data = b"secret"
    digest = hashlib.sha256(data).hexdigest()
    (folder / file_name(digest)).write_bytes(data)
    with weight_server(folder) as server, client(server.url) as device:
        refused = device.fetch(digest, len(data))
        with pytest.raises(ProtocolError, match="expected one of the manifest"):
            refused.result(20)


@pytest.mark.parametrize(
    "message", [b"", b"\x01\x43", b"x" * 5000, "text", b"\x01\x40\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\xc1"]
)
def test_a_client_that_speaks_something_else_is_shown_out_and_the_others_are_served(folder: Path, message):
    async def speak(url: str) -> bytes:
        async with connect(full_url(url), compression=None) as socket:
            await socket.send(message)
            return await asyncio.wait_for(socket.recv(), 10)

    with weight_server(folder) as server, client(server.url) as device:
        chunk = device.manifest().chunks[0]
        answer = asyncio.run(speak(server.url))
        assert ChunkClient().receive(answer)[0].request == 0
        assert device.fetch(chunk.digest, chunk.stored_bytes).result(20).tobytes() == stored(folder, chunk)
        text = httpx.get(server.url.replace("ws", "http") + "/metrics").text
        assert "streamsplit_weight_stream_refused_total{code=" in text
        sent = re.search(r"^streamsplit_weight_stream_bytes_total (\S+)$", text, re.MULTILINE)
        assert sent is not None and float(sent[1]) > chunk.stored_bytes  # and the manifest


def test_a_wrong_token_is_refused_and_not_tried_again(folder: Path):
    with weight_server(folder, token="right") as server:
        with client(server.url, token="right") as device:
            assert device.manifest().model == "noise"
        for token in ("", "wrong"):
            with client(server.url, token=token) as device, pytest.raises(ConnectionRefused, match="bad_token"):
                device.manifest()
            assert device.connections == 1


def test_a_device_gets_no_more_than_its_rate_and_does_not_slow_the_others(folder: Path):
    with (
        weight_server(folder, device_mb_per_s=2.0) as server,
        client(server.url, device_id="slow") as slow,
        client(server.url, device_id="slow") as twin,
        client(server.url, device_id="other") as other,
    ):
        chunks = slow.manifest().chunks
        started = time.monotonic()
        futures = [d.fetch(c.digest, c.stored_bytes) for d, c in zip((slow, twin, other), chunks, strict=True)]
        futures[2].result(20)
        alone = time.monotonic() - started
        for future in futures[:2]:
            future.result(20)
        both = time.monotonic() - started
    assert both >= (2 * CHUNK_BYTES / 1e6 - 0.5) / 2.0 - 0.05  # less what may go at once
    assert alone < both


@pytest.mark.realtime
def test_a_total_limit_is_shared_piece_by_piece(tmp_path: Path):
    manifest = folder_of_chunks(tmp_path / "chunks", count=2, size=2_000_000)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(weight_server(tmp_path / "chunks", total_mb_per_s=4.0))
        first, second = (stack.enter_context(client(server.url, device_id=name)) for name in ("a", "b"))
        first.manifest(), second.manifest()
        ends: list[float] = []
        futures = [d.fetch(c.digest, c.stored_bytes) for d, c in zip((first, second), manifest.chunks, strict=True)]
        for future in futures:
            future.add_done_callback(lambda _: ends.append(time.monotonic()))
        for future in futures:
            future.result(20)
    assert ends[1] - ends[0] < 0.4  # one after the other they would be 0.5 s apart


def test_a_full_server_says_so(folder: Path):
    with weight_server(folder, max_connections=1) as server, client(server.url) as device:
        device.manifest()
        with client(server.url) as second, pytest.raises(ConnectionError, match="1 clients are connected"):
            second.manifest()


def test_a_chunk_that_is_cut_short_while_the_server_runs_is_one_failed_request(folder: Path):
    with weight_server(folder) as server, client(server.url) as device:
        bad, good = device.manifest().chunks[:2]
        (folder / file_name(bad.digest)).write_bytes(stored(folder, bad)[:-10])
        with pytest.raises(ProtocolError, match=r"internal: .*ends before"):
            device.fetch(bad.digest, bad.stored_bytes).result(20)
        assert device.fetch(good.digest, good.stored_bytes).result(20).tobytes() == stored(folder, good)


def test_a_new_manifest_is_served_without_a_restart_and_old_chunks_go_on(folder: Path):
    with weight_server(folder) as server, client(server.url) as device:
        old = device.manifest()
        new = folder_of_chunks(folder, count=2, seed=5)
        with client(server.url) as later:
            assert later.manifest().revision == new.revision
        chunk = old.chunks[2]
        assert device.fetch(chunk.digest, chunk.stored_bytes).result(20).tobytes() == stored(folder, chunk)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / NAME).unlink(), "cannot be read"),
        (lambda f: next(f.glob("*.chunk")).unlink(), r"\.chunk: cannot be read"),
        (lambda f: next(f.glob("*.chunk")).write_bytes(b"x"), "got 1 bytes in storage"),
        (lambda f: (f / NAME).write_text("{}"), "does not parse"),
    ],
)
def test_a_folder_that_cannot_be_served_is_one_clear_error_at_the_start(folder: Path, damage, message: str):
    damage(folder)
    with pytest.raises(ManifestError, match=message), weight_server(folder):
        pass


def test_a_taken_port_and_an_open_address_without_a_token_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("STREAMSPLIT_TOKEN", raising=False)
    with weight_server(folder) as server, pytest.raises(PortInUseError), weight_server(folder, port=server.port):
        pass
    with pytest.raises(ConfigError, match="without a token"):
        asyncio.run(serve_weights(FolderStorage(folder), address="0.0.0.0", port=0))


def test_the_main_server_streams_weights_beside_its_devices_with_the_same_tokens(folder: Path, tmp_path: Path):
    weights = {"chunks_dir": str(folder), "redis_url": "redis://127.0.0.1:1"}  # where none is
    settings = make_settings(tmp_path / "server", weights=weights, auth={"device_tokens": {"pi": "own"}})
    with running(settings) as server:
        url = f"ws://127.0.0.1:{server.port}"
        with client(url, device_id="pi", token="own") as device:
            chunk = device.manifest().chunks[0]
            assert device.fetch(chunk.digest, chunk.stored_bytes).result(20).tobytes() == stored(folder, chunk)
        with client(url, device_id="pi") as device, pytest.raises(ConnectionRefused, match="bad_token"):
            device.manifest()
        page = server.get("/metrics").text
        assert "streamsplit_weight_stream_bytes_total" in page
        assert "streamsplit_weight_cache_redis_usable 0.0\n" in page


@pytest.mark.parametrize("url", ["localhost:8765", "http://localhost", "ws://", ""])
def test_an_address_that_is_no_websocket_is_refused(url: str):
    with pytest.raises(ConfigError, match="expected ws://host:port"):
        full_url(url)


def test_what_can_be_packed_travels_packed_where_the_client_asks_for_it(tmp_path: Path):
    folder = tmp_path / "chunks"
    manifest = folder_of_chunks(folder, count=1)
    data = bytes(600_000)
    chunk = msgspec.structs.replace(
        manifest.chunks[0], digest=hashlib.sha256(data).hexdigest(), stored_bytes=len(data), raw_bytes=len(data)
    )
    (folder / file_name(chunk.digest)).write_bytes(data)
    noise = manifest.chunks[0]
    both = (msgspec.structs.replace(chunk, name="zeros", tensors=("zeros",)), noise)
    (folder / NAME).write_bytes(encode_manifest(msgspec.structs.replace(manifest, chunks=both)))
    with weight_server(folder) as server:
        with client(server.url, compress=True) as device:
            assert device.fetch(chunk.digest, chunk.stored_bytes).result(20).tobytes() == data
            assert device.count.down < 5000
            assert device.fetch(noise.digest, noise.stored_bytes).result(20).tobytes() == stored(folder, noise)
        with client(server.url) as device:
            assert device.fetch(chunk.digest, chunk.stored_bytes).result(20).tobytes() == data
            assert device.count.down > len(data)


@pytest.mark.parametrize("payload", [b"no zstd", zstandard.compress(bytes(10_000_000)), zstandard.compress(b"short")])
def test_a_piece_that_does_not_unpack_to_what_it_says_is_refused(folder: Path, payload: bytes):
    manifest = folder_of_chunks(folder)
    chunk = manifest.chunks[0]
    with lying(folder, manifest) as (server, at), client(at.url, faults=0, compress=True) as device:
        server.reply = lambda s, r, d, data: [s.data(r, payload, True, packed_bytes=len(data))]
        with pytest.raises(ProtocolError, match="bad_transfer"):
            device.fetch(chunk.digest, chunk.stored_bytes).result(20)


@pytest.mark.realtime
def test_windows_of_sound_are_answered_while_weights_travel(tmp_path: Path):
    manifest = folder_of_chunks(tmp_path / "chunks", count=3, size=12_000_000)
    settings = make_settings(
        tmp_path / "server", weights={"chunks_dir": str(tmp_path / "chunks"), "total_mb_per_s": 18.0}
    )
    answered_meanwhile = []

    async def listen(port: int, futures: list) -> None:
        async with device(port, "pi") as d:
            for window in range(10):
                await d.send(embedding_window(window, revision_prefix(server.backend.revision)))
                await d.until(lambda number=window: len(d.results) > number)
                answered_meanwhile.append(not all(future.done() for future in futures))

    with running(settings) as server, client(f"ws://127.0.0.1:{server.port}", device_id="reader") as reader:
        reader.manifest()
        futures = [reader.fetch(chunk.digest, chunk.stored_bytes) for chunk in manifest.chunks]
        asyncio.run(listen(server.port, futures))
        for chunk, future in zip(manifest.chunks, futures, strict=True):
            assert future.result(30).tobytes() == stored(tmp_path / "chunks", chunk)
    assert sum(answered_meanwhile) >= 8
