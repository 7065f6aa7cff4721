"""What a device is told about its windows, and how results that it never got are sent again from the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from streamsplit.errors import StoreError
from streamsplit.server.connection import Connection, Link
from streamsplit.server.records import WindowRecord
from streamsplit.server.store import Store
from streamsplit.wire.messages import Error, Message, Result

LOG = logging.getLogger(__name__)


class StoredResults:
    """Sends durable results that a device lacks."""

    def __init__(self, store: Store, start: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        """`start` runs work in the background."""
        self._store = store
        self._start = start

    def send_again(self, connection: Connection, link: Link) -> None:
        """Starts sending durable results that the device lacks, as many as the session has room for."""
        wanted = link.session.results_wanted()
        if wanted:
            self._start(self._answer_from_store(connection, link, wanted))

    async def _answer_from_store(self, connection: Connection, link: Link, wanted: range) -> None:
        stream, hello = link.stream, link.device.hello
        try:
            records = await asyncio.to_thread(
                self._store.results_from, stream.device, stream.epoch, wanted.start, len(wanted)
            )
        except StoreError as error:
            LOG.error("%s: results could not be read again: %s", stream.device, error)
            return
        for record in records:
            if record.sequence in wanted:
                link.session.send(answer(record, want_embedding=bool(hello and hello.want_embedding)))
        connection.wake.set()


def answer(record: WindowRecord, *, want_embedding: bool) -> Message:
    """What a device is told about one durable window."""
    if record.error:
        code = "unknown_revision" if record.error == "unknown_revision" else "bad_window"
        return Error(code=code, detail=f"{record.error}: {record.detail}"[:500], sequence=record.sequence)
    return Result(
        sequence=record.sequence,
        window=record.window,
        capture_ms=record.capture_ms,
        uncertainty=record.uncertainty,
        cluster=record.cluster,
        label=record.label[:128],
        confidence=record.confidence,
        server_ms=max(0.0, record.server_ms),
        queue_ms=max(0.0, record.queue_ms),
        embedding=(record.embedding or b"") if want_embedding else b"",
    )
