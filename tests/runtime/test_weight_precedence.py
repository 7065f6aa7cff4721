"""Weights pour from the main server while sound comes in: not one piece goes between a window and its answer."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
import server_harness
from server_harness import device, embedding_window, make_settings, running
from weight_stream_harness import client, folder_of_chunks

from streamsplit.server.app import create_app
from streamsplit.server.precedence import Precedence
from streamsplit.weights.revision import revision_prefix
from streamsplit.wire.types import FrameType, Priority

pytestmark = pytest.mark.realtime

READERS, WINDOWS = 3, 12


class Recorder:
    """Writes down what goes in and out of the app, in the order in which its event loop does it."""

    def __init__(self, app: Any, log: list[tuple[str, int]]) -> None:
        self._app, self._log = app, log

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return

        async def received() -> Any:
            message = await receive()
            if path == "/v1/stream" and message.get("bytes"):
                self._log.append(("in", message["bytes"][1]))
            return message

        async def sent(message: Any) -> None:
            data = message.get("frame") or message.get("bytes")
            if data and path == "/v1/stream":
                self._log.append(("out", data[1]))
            elif data and len(data) > 4096:
                self._log.append(("weights", len(data)))
            await send(message)

        await self._app(scope, received, sent)


def test_not_one_piece_of_weights_goes_between_a_window_and_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = folder_of_chunks(tmp_path / "chunks", count=2, size=3_000_000)
    log: list[tuple[str, int]] = []

    def recorded(settings: Any) -> Any:
        app = create_app(settings)
        app.add_middleware(Recorder, log=log)
        return app

    monkeypatch.setattr(server_harness, "create_app", recorded)
    over, fetched = threading.Event(), [0] * READERS

    def pour(number: int, port: int) -> None:
        with client(f"ws://127.0.0.1:{port}", device_id=f"reader-{number}") as reader:
            reader.manifest()
            while not over.is_set():
                for chunk in manifest.chunks:
                    fetched[number] += len(reader.fetch(chunk.digest, chunk.stored_bytes).result(60))

    async def listen(port: int, prefix: int) -> None:
        async with device(port) as d:
            for window in range(WINDOWS):
                at, before = len(log), sum(fetched)
                while sum(kind == "weights" for kind, _ in log[at:]) < READERS or sum(fetched) == before:
                    await asyncio.sleep(0.001)  # weights go while nothing else does
                await d.send(embedding_window(window, prefix))
                await d.until(lambda number=window: len(d.results) > number)

    settings = make_settings(tmp_path / "server", weights={"chunks_dir": str(tmp_path / "chunks")})
    with running(settings) as server:
        server.backend.precedence.patience_s = 60.0  # no clock decides what is counted here
        readers = [threading.Thread(target=pour, args=(n, server.port)) for n in range(READERS)]
        for reader in readers:
            reader.start()
        try:
            asyncio.run(listen(server.port, revision_prefix(server.backend.revision)))
        finally:
            over.set()
            for reader in readers:
                reader.join(60)
    between, waiting, answered = 0, False, 0
    for kind, value in log:
        if kind == "in" and value == FrameType.EMBEDDING:
            waiting = True
        elif kind == "out" and value == FrameType.RESULT:
            waiting, answered = False, answered + 1
        elif kind == "weights" and waiting:
            between += 1
    assert answered == WINDOWS and between == 0
    assert min(fetched) > 0


class Sender:
    """A connection with something of one class to send."""

    def __init__(self, priority: Priority) -> None:
        self.priority, self.session = priority, self

    def queued_bytes(self, priority: Priority) -> int:
        return 100 if priority is self.priority else 0


@pytest.mark.parametrize("priority", list(Priority))
def test_every_class_above_bulk_goes_first_and_bulk_does_not(priority: Priority) -> None:
    async def run() -> None:
        precedence, sender = Precedence(patience_s=60.0), Sender(priority)
        precedence.wants(sender)
        turn = asyncio.create_task(precedence.bulk_turn())
        for _ in range(20):
            await asyncio.sleep(0)
        assert turn.done() is (priority is Priority.BULK)
        precedence.served(sender)
        await asyncio.wait_for(turn, 10)

    asyncio.run(run())


def test_weights_are_not_starved_by_sound_without_end() -> None:
    async def run() -> None:
        precedence = Precedence(patience_s=0.001)
        precedence.received()
        for _ in range(3):
            await asyncio.wait_for(precedence.bulk_turn(), 10)
        assert precedence.urgent

    asyncio.run(run())
