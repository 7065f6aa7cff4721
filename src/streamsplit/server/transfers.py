"""Weights that cross connections: announcements and downloads to devices, what devices learned back up.

What may be fetched and merged is decided by `weight_service.WeightService`; how fast chunks go, by `weights.pacing`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from streamsplit.errors import CheckpointError, ProtocolError, RevisionError
from streamsplit.server.connection import Connection, Link, now_ms
from streamsplit.server.metrics import Metrics
from streamsplit.server.store import Store
from streamsplit.server.weight_service import WeightService
from streamsplit.weights.revision import Weights
from streamsplit.weights.transfer import WeightTransfer
from streamsplit.wire.messages import Error, Revision, WeightsRequest
from streamsplit.wire.types import FrameFlag, FrameType, Priority


class Transfers:
    """The weights' side of every connection."""

    def __init__(
        self,
        weights: WeightService,
        *,
        store: Store,
        metrics: Metrics,
        merge: Callable[[str, str, Weights, int], None],
        start: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        """`merge` takes device, base, difference and number of windows; `start` runs work in the background."""
        self._weights = weights
        self._store = store
        self._metrics = metrics
        self._merge = merge
        self._start = start

    # -- announcements -------------------------------------------------------------------------------------------

    def greet(self, link: Link) -> None:
        """Tells a device that just came in with other weights than the newest."""
        held, newest = link.held_revision, self._weights.newest
        if not link.has_encoder or held == (newest.revision if newest else ""):
            return
        if held and self._weights.space_of(held) is None:
            link.session.send(Error(code="unknown_revision", detail=f"revision {held[:12]} is not known here"))
        self.announce(link)

    def announce(self, link: Link) -> bool:
        """Tells a device of the newest revision; False where it holds it or has been told."""
        newest = self._weights.newest
        message = self._weights.announcement(link.held_revision)
        if newest is None or message is None or link.announced == newest.revision:
            return False
        if not link.session.send(message):
            return False
        link.announced = newest.revision
        link.wake()
        return True

    # -- down ----------------------------------------------------------------------------------------------------

    def on_request(self, connection: Connection, request: WeightsRequest) -> None:
        """The start of a download, or news of how far the one under way has come."""
        download = connection.download
        if download is None or not download.confirm(request.revision, request.base, request.offset, now_ms()):
            connection.download = None
            connection.requested = request
            self._start(self._open_download(connection, request))
        elif download.done:
            connection.download = None
            self._metrics.transfers.labels("down").inc()

    async def _open_download(self, connection: Connection, request: WeightsRequest) -> None:
        try:
            download = await asyncio.to_thread(self._weights.open_transfer, request)
        except ProtocolError as error:
            connection.session.send(Error(code=error.code, detail=error.detail))
        else:
            if connection.requested is request:  # else the device has asked for something else meanwhile
                connection.download = download
        connection.wake.set()

    # -- up ------------------------------------------------------------------------------------------------------

    def on_offer(self, link: Link, offer: Revision) -> None:
        """A device has learned: asks for the bytes, from where an earlier connection ended."""
        if offer.kind == "local" and offer == link.device.learned:  # came whole; the device has not heard so
            link.session.send(WeightsRequest(revision=offer.revision, base=offer.base, offset=offer.total_bytes))
            return
        try:
            if link.local is None or link.local[0] != offer:
                link.local = (offer, self._weights.accept_local(offer))
        except ProtocolError as error:
            link.session.send(Error(code=error.code, detail=error.detail))
            return
        transfer = link.local[1]
        link.session.send(WeightsRequest(revision=offer.revision, base=offer.base, offset=transfer.received))

    def on_chunk(self, link: Link, data: bytes) -> None:
        """A part of what a device learned: confirms it, and merges the whole once it is there."""
        if link.local is None:
            link.session.send(Error(code="bad_transfer", detail="got a chunk that was not asked for"))
            return
        offer, transfer = link.local
        before = transfer.received
        try:
            complete = transfer.add(data)
        except RevisionError as error:
            link.local = None
            link.session.send(Error(code="bad_transfer", detail=str(error)[:500]))
            return
        if transfer.received > before:
            link.session.send(WeightsRequest(revision=offer.revision, base=offer.base, offset=transfer.received))
        if complete:
            link.local, link.device.learned = None, offer
            self._start(self._take_local(link, offer, transfer))

    async def _take_local(self, link: Link, offer: Revision, transfer: WeightTransfer) -> None:
        try:
            difference = await asyncio.to_thread(self._weights.difference, transfer)
        except (RevisionError, CheckpointError) as error:
            link.session.send(Error(code="bad_transfer", detail=str(error)[:500]))
            link.wake()
            return
        self._metrics.transfers.labels("up").inc()
        self._merge(link.device.id, offer.base, difference, offer.samples)
        self._store.record_event("local_learning", f"{offer.samples} windows on {offer.base[:12]}", link.device.id)


def feed_download(connection: Connection) -> None:
    """Queues the next chunk of a download when its window allows one and no other bulk waits."""
    download, session = connection.download, connection.session
    if download is None or session.queued_bytes(Priority.BULK):
        return
    chunk = download.peek()
    if chunk is not None:
        data, last = chunk
        if session.send_media(FrameType.WEIGHTS, data, now_ms(), FrameFlag.FINAL if last else FrameFlag.NONE):
            download.advance(now_ms())
