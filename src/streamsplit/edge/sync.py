"""Weights in both directions: the server's revisions come down in chunks, what the device learned goes up the same way.

Bookkeeping only: messages in, messages and chunks out. The receiver confirms chunk by chunk, and the sender goes no
further ahead than its window allows. A transfer survives lost connections and goes on where it stopped.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from streamsplit.weights.delta import Packed
from streamsplit.weights.pacing import PacedSender
from streamsplit.weights.revision import Weights, revision_prefix
from streamsplit.weights.transfer import WeightTransfer, unpack_chunk
from streamsplit.wire.messages import Revision, WeightsRequest

log = logging.getLogger(__name__)
_MAX_FAILURES = 3  # of one revision, then it is left alone until the server announces another


class Arrived(NamedTuple):
    """A complete transfer, still to be checked against its hash by `finish`."""

    transfer: WeightTransfer
    announced: Revision

    def finish(self, base: Weights) -> Weights:
        """The new weights; raises RevisionError when damaged or on another base."""
        return self.transfer.finish(base if self.transfer.base else None)


class WeightDownload:
    """Follows the server's announcements for a device that holds revision `have`."""

    def __init__(self, have: str) -> None:
        self.have = have
        self.received_bytes = 0  # of weight data, over all transfers
        self._transfer: WeightTransfer | None = None
        self._announced: Revision | None = None
        self._confirmation: WeightsRequest | None = None
        self._failures: dict[str, int] = {}

    @property
    def under_way(self) -> bool:
        """True while chunks are expected."""
        return self._transfer is not None

    @property
    def wanted(self) -> str:
        """Revision under way; "" for none."""
        return self._transfer.revision if self._transfer is not None else ""

    def announced(self, revision: Revision) -> WeightsRequest | None:
        """The server's newest weights; returns what to ask for, None when nothing is wanted."""
        if revision.kind == "local" or revision.revision == self.have:
            return None
        if self._failures.get(revision.revision, 0) >= _MAX_FAILURES:
            return None
        if revision.kind == "delta" and revision.base != self.have:
            log.info(
                "revision %s comes as a delta on another base than ours; waiting for the next", revision.revision[:8]
            )
            return None
        current = self._transfer
        same = current is not None and (current.revision, current.base, current.total_bytes) == (
            revision.revision, revision.base, revision.total_bytes,
        )  # fmt: skip
        if not same:
            self._transfer = WeightTransfer(revision.revision, revision.total_bytes, revision.base)
        self._announced = revision
        return self.resume()

    def resume(self) -> WeightsRequest | None:
        """After a reconnect: what to ask for so that the transfer goes on."""
        if self._transfer is None:
            return None
        return WeightsRequest(
            revision=self._transfer.revision, base=self._transfer.base, offset=self._transfer.received
        )

    def chunk(self, data: bytes) -> Arrived | None:
        """One WEIGHTS payload; returns the transfer when complete. Raises RevisionError on a chunk out of place.

        What is left of a transfer that was given up is left out. If it was news, there is a `confirmation` to send.
        """
        self._confirmation = None
        if self._transfer is None or self._announced is None:
            return None
        if unpack_chunk(data).prefix != revision_prefix(self._transfer.revision):
            return None
        before = self._transfer.received
        complete = self._transfer.add(data)
        self.received_bytes += self._transfer.received - before
        if self._transfer.received > before:
            self._confirmation = self.resume()
        if not complete:
            return None
        arrived = Arrived(self._transfer, self._announced)
        self._transfer = self._announced = None
        return arrived

    def confirmation(self) -> WeightsRequest | None:
        """What to tell the server of the chunk just taken: how far the transfer has come; None if it was no news."""
        return self._confirmation

    def adopted(self, revision: str) -> None:
        """The device holds `revision` now."""
        self.have = revision
        self._failures.clear()

    def failed(self, revision: str) -> None:
        """A transfer was damaged or does not fit; counts against the revision."""
        self._failures[revision] = self._failures.get(revision, 0) + 1
        self._transfer = self._announced = None


class WeightUpload:
    """Offers what the device learned, and hands out chunks as the server asks for them."""

    def __init__(self) -> None:
        self.sent_bytes = 0
        self._offer: Revision | None = None
        self._payload = b""
        self._sender: PacedSender | None = None  # None until the server asks
        self._past = ""  # revision of an offer that is over; confirmations of it may still come
        self.confirmed = ""  # revision of the last offer that the server has whole

    @property
    def under_way(self) -> bool:
        """True from the offer until the server has confirmed all of it."""
        return self._offer is not None

    def offer(self, packed: Packed, revision: str, base: str, samples: int) -> Revision:
        """Announces a difference from `base`; replaces an older offer."""
        self.drop()
        self._payload = packed.payload
        self._offer = Revision(
            revision=revision, base=base, kind="local", total_bytes=len(packed.payload), samples=samples
        )
        return self._offer

    def requested(self, request: WeightsRequest, now_ms: float) -> bool:
        """The server asks for the offer from an offset on, or confirms what it has; False when it is none of ours."""
        if self._offer is None or request.revision != self._offer.revision:
            return bool(self._past) and request.revision == self._past
        if request.offset > len(self._payload):
            return False
        sender, base = self._sender, self._offer.base
        if sender is None or not sender.confirm(request.revision, base, request.offset, now_ms):
            sender = PacedSender(self._offer.revision, base, self._payload, request.offset)
        self._sender = sender
        if sender.done:
            self.confirmed = request.revision
            self.drop()
        return True

    def reconnected(self) -> Revision | None:
        """After a reconnect: the offer to repeat."""
        self._sender = None
        return self._offer

    def next_chunk(self, now_ms: float) -> tuple[bytes, bool] | None:
        """(chunk, last) to send next, None when there is nothing to send now."""
        sender = self._sender
        chunk = None if sender is None else sender.peek()
        if sender is not None and chunk is not None:
            before = sender.window.sent
            sender.advance(now_ms)
            self.sent_bytes += sender.window.sent - before
        return chunk

    def drop(self) -> None:
        """Forgets the offer: confirmed, refused, or made of weights that are no longer the base."""
        if self._offer is not None:
            self._past = self._offer.revision
        self._offer, self._payload, self._sender = None, b"", None
