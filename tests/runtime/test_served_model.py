"""What the weight stream serves while its folder changes: many clients, chunks behind their manifest, slow limits."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from weight_stream_harness import client, folder_of_chunks, weight_server

from streamsplit.server.chunk_storage import FolderStorage
from streamsplit.server.served_model import ServedModel
from streamsplit.weights.streaming.manifest import file_name


def test_a_revision_that_many_clients_find_at_once_is_taken_once_and_old_chunks_go_on(tmp_path: Path) -> None:
    old = folder_of_chunks(tmp_path, seed=1, size=1_000)

    async def scenario() -> tuple[str, list[int | None]]:
        model = ServedModel(FolderStorage(tmp_path), revisions=3)
        await model.open()
        folder_of_chunks(tmp_path, seed=2, size=1_000)
        await asyncio.gather(*(model.renew() for _ in range(12)))
        return model.revision, [model.size(chunk.digest) for chunk in old.chunks]

    revision, sizes = asyncio.run(scenario())
    assert revision != old.revision and sizes == [chunk.stored_bytes for chunk in old.chunks]


def test_a_manifest_that_came_before_its_chunks_is_taken_once_they_are_there(tmp_path: Path) -> None:
    old = folder_of_chunks(tmp_path, seed=1, size=1_000)

    async def scenario() -> list[str]:
        model = ServedModel(FolderStorage(tmp_path))
        await model.open()
        new = folder_of_chunks(tmp_path, seed=2, size=1_000)
        late = tmp_path / file_name(new.chunks[1].digest)
        data = late.read_bytes()
        late.unlink()
        await model.renew()
        seen = [model.revision]
        late.write_bytes(data)
        await model.renew()
        assert model.revision == new.revision
        return seen

    assert asyncio.run(scenario()) == [old.revision]


def test_a_device_that_connects_anew_does_not_begin_its_limit_anew(tmp_path: Path) -> None:
    """The burst of half a second may go once; three connections of a burst each take the time of three."""
    folder_of_chunks(tmp_path, count=3, size=500_000)
    with weight_server(tmp_path, device_mb_per_s=1.0) as server:
        began = time.monotonic()
        for number in range(3):
            with client(server.url, device_id="again") as device:
                chunk = device.manifest().chunks[number]
                device.fetch(chunk.digest, chunk.stored_bytes).result(30)
        assert time.monotonic() - began > (1_500_000 - 500_000) / 1e6 - 0.1


def test_below_a_piece_in_the_time_that_a_client_waits_bytes_still_come(tmp_path: Path) -> None:
    """At 0.2 MB/s a piece of 1 MB would be waited for five seconds, and the client believes a silent link lost after
    one; it connects once, and all of it comes."""
    manifest = folder_of_chunks(tmp_path, count=1, size=350_000)
    with weight_server(tmp_path, device_mb_per_s=0.2) as server, client(server.url, silence_s=1.0) as device:
        chunk = device.manifest().chunks[0]
        assert len(device.fetch(chunk.digest, chunk.stored_bytes).result(30)) == manifest.chunks[0].stored_bytes
        assert device.connections == 1
