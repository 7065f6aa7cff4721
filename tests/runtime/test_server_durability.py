"""What the server accepted it keeps, once: through kill -9, a full disk, and a slow refiner beside."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import re
import signal
import sqlite3
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from server_harness import TestDevice, device, embedding_window, make_settings, running
from websockets.exceptions import ConnectionClosed

from streamsplit.encoders.factory import make_encoder
from streamsplit.server import store as store_module
from streamsplit.server.run import run_server
from streamsplit.server.settings import ServerSettings
from streamsplit.weights.revision import encoder_weights, revision_of, revision_prefix

PREFIX = revision_prefix(revision_of(encoder_weights(make_encoder())))


def serve(connection: Connection, values: dict[str, Any]) -> None:
    """A server process."""
    run_server(ServerSettings.from_mapping(values), on_ready=lambda _, port: connection.send(port))


@contextlib.contextmanager
def server_process(folder: Path, port: int = 0) -> Iterator[tuple[Any, int]]:
    """A server in a process of its own, and its port."""
    values = {"server": {"port": port, "data_dir": str(folder)}, "training": {"enabled": False}}
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, values))
    process.start()
    try:
        assert ours.poll(60.0)
        yield process, ours.recv()
    finally:
        if process.is_alive():
            process.terminate()
        process.join(30.0)


def test_kill_9_in_mid_stream_loses_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    async def feed(d: TestDevice, windows: range) -> None:
        for window in windows:
            with contextlib.suppress(ConnectionClosed):
                await d.send(embedding_window(window, PREFIX))

    async def main() -> None:
        with server_process(tmp_path) as (process, port):
            d = await TestDevice(port).connect()
            await feed(d, range(150))
            await d.until(lambda: d.acked >= 40)
            os.kill(process.pid, signal.SIGKILL)
            await feed(d, range(150, 200))
            process.join(10.0)
            await d.close()
        acked_before = d.acked
        assert acked_before < 200
        d.hello["results_from"] = 1
        with server_process(tmp_path, port) as (process, port):
            await d.connect()
            assert d.opened is not None and not d.opened.welcome.resumed
            assert d.opened.feed_from > acked_before  # what was acknowledged is there
            await d.until(lambda: d.acked == 200 and {r.sequence for r in d.results} == set(range(1, 201)))
            await d.close()

    asyncio.run(main())
    with sqlite3.connect(tmp_path / "server.sqlite") as database:
        rows = database.execute("SELECT sequence, window, error FROM windows ORDER BY sequence").fetchall()
        counted = database.execute("SELECT windows, received_through FROM streams").fetchall()
    assert rows == [(sequence, sequence - 1, "") for sequence in range(1, 201)]
    assert counted == [(200, 200)]


def test_sigterm_ends_the_process_cleanly_and_tells_the_devices(tmp_path: Path) -> None:
    async def main() -> None:
        with server_process(tmp_path) as (process, port):
            d = await TestDevice(port).connect()
            await d.send(embedding_window(0, PREFIX))
            await d.until(lambda: d.acked == 1)
            process.terminate()
            with contextlib.suppress(AssertionError):
                await d.until(lambda: d.closed is not None)
            assert d.closed is not None and d.closed.code == "shutting_down" and d.closed.retry
            await d.close()
            process.join(20.0)
            assert process.exitcode == 0

    asyncio.run(main())
    assert not (tmp_path / "server.sqlite-wal").exists()  # closed in good order


def test_while_the_disk_is_full_nothing_is_acknowledged_and_readyz_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "RETRY_S", 0.02)

    async def main() -> None:
        with running(make_settings(tmp_path)) as server:
            store = server.backend.store
            async with device(server.port) as d:
                await d.send(embedding_window(0, PREFIX))
                await d.until(lambda: d.acked == 1)
                pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
                store._writer.execute(f"PRAGMA max_page_count = {pages}")
                for window in range(1, 60):
                    await d.send(embedding_window(window, PREFIX))
                while store.failure is None:
                    await asyncio.sleep(0.01)
                answer = server.get("/readyz")
                assert answer.status_code == 503 and "full" in answer.text
                assert server.get("/healthz").status_code == 200
                assert "store: " in server.status()["not_ready"]
                assert d.acked < 60 and len(d.results) < 60
                store._writer.execute("PRAGMA max_page_count = 1000000")
                await d.until(lambda: d.acked == 60 and len(d.results) == 60)
                assert server.get("/readyz").status_code == 200

    asyncio.run(main())


def test_a_server_whose_folder_cannot_be_written_ends_with_one_line(tmp_path: Path) -> None:
    from streamsplit.errors import StoreError

    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be opened .*server\.data_dir"):
        run_server(make_settings(tmp_path / "file" / "data"))


def test_the_event_loop_stays_prompt_while_a_batch_is_computed(tmp_path: Path) -> None:
    """The model never runs in the loop: it answers while the worker is held up for half a second."""
    with running(make_settings(tmp_path)) as server:
        held = server.backend.compute.call(lambda: time.sleep(0.5))
        times = []
        while not held.done():
            started = time.monotonic()
            assert server.get("/healthz").status_code == 200
            times.append(time.monotonic() - started)
        assert len(times) >= 3
        assert sorted(times)[len(times) // 2] < 0.1


def test_metrics_tell_what_happened(tmp_path: Path) -> None:
    async def main(port: int) -> None:
        async with device(port) as d:
            for window in range(20):
                await d.send(embedding_window(window, PREFIX))
            await d.send(b"?")
            await d.until(lambda: d.acked == 21)

    with running(make_settings(tmp_path)) as server:
        asyncio.run(main(server.port))
        text = server.get("/metrics").text
        values = dict(re.findall(r"^(streamsplit_\S+) (\S+)$", text, re.MULTILINE))
        assert float(values['streamsplit_windows_total{cut="13:embedding-fp16"}']) == 20
        assert float(values['streamsplit_windows_rejected_total{code="bad_media"}']) == 1
        assert float(values["streamsplit_batch_windows_sum"]) == 20
        assert float(values["streamsplit_uplink_bytes_total"]) > 20 * 296
