"""Weights on the move: announces revisions, hands out their bytes in chunks, takes what devices learned."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

from streamsplit.errors import ProtocolError, RevisionError
from streamsplit.server.models import RevisionFiles
from streamsplit.weights.pacing import PacedSender
from streamsplit.weights.revision import Weights
from streamsplit.weights.transfer import WeightTransfer
from streamsplit.wire.messages import Revision, WeightsRequest

MAX_LOCAL_BYTES = 32 << 20  # of one device's own learning
CACHED_PAYLOADS = 4


class Newest(NamedTuple):
    """The current revision, and from which one a delta leads to it."""

    revision: str
    base: str  # "": none
    full_bytes: int
    delta_bytes: int
    breaks_space: bool


class WeightService:
    """The weights that devices may ask for; reads files, so `load` belongs in a thread."""

    def __init__(self, files: RevisionFiles, chunk_bytes: int) -> None:
        self.files = files
        self._chunk_bytes = chunk_bytes
        self._lock = threading.Lock()
        self.newest: Newest | None = None
        self._spaces: dict[str, int] = {}
        self._cache: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    def adopt(self, revision: str, base: str, space: int) -> Newest:
        """Makes a revision, whose files are written, the one to announce; blocks on the disk."""
        full = self.payload(revision, "")
        if full is None:
            raise RevisionError(f"revision {revision[:12]}: its files are missing in {self.files.folder}")
        delta = self.payload(revision, base) if base else None
        breaks = self.newest is not None and self._spaces.get(self.newest.revision, space) != space
        self._spaces[revision] = space
        self.newest = Newest(revision, base if delta is not None else "", len(full), len(delta or b""), breaks)
        return self.newest

    def know(self, revision: str, space: int) -> None:
        """Notes the embedding space of an older revision."""
        self._spaces[revision] = space

    def space_of(self, revision: str) -> int | None:
        """The embedding space of a revision; None for one this server never had."""
        return self._spaces.get(revision)

    def announcement(self, held: str) -> Revision | None:
        """What to tell a device that holds revision `held` ('' = none): a delta where one leads from it, else full."""
        newest = self.newest
        if newest is None or held == newest.revision:
            return None
        breaks = self.space_of(held) != self.space_of(newest.revision)
        if newest.base and held == newest.base:
            return Revision(
                revision=newest.revision,
                base=newest.base,
                kind="delta",
                total_bytes=newest.delta_bytes,
                breaks_space=breaks,
            )
        return Revision(
            revision=newest.revision, base="", kind="full", total_bytes=newest.full_bytes, breaks_space=breaks
        )

    def payload(self, revision: str, base: str) -> bytes | None:
        """Bytes that lead from `base` ('' = nothing) to `revision`; blocks on the disk where they are not cached."""
        key = (revision, base)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
            data = self.files.payload(revision, base)
            if data is not None:
                self._cache[key] = data
                while len(self._cache) > CACHED_PAYLOADS:
                    self._cache.popitem(last=False)
        return data

    def open_transfer(self, request: WeightsRequest) -> PacedSender:
        """What a device asked for; blocks on the disk. Raises ProtocolError('bad_transfer')."""
        payload = self.payload(request.revision, request.base)
        if payload is None:
            way = f"from {request.base[:12]}" if request.base else "in full"
            raise ProtocolError(
                "bad_transfer", f"revision {request.revision[:12]} {way} is not here; wait for REVISION"
            )
        if request.offset > len(payload):
            raise ProtocolError("bad_transfer", f"got offset {request.offset}, expected at most {len(payload)}")
        return PacedSender(request.revision, request.base, payload, request.offset, self._chunk_bytes)

    def accept_local(self, offer: Revision) -> WeightTransfer:
        """A receiver for what a device learned; raises ProtocolError('bad_transfer') where it cannot be merged."""
        newest = self.newest
        if offer.kind != "local" or not 0 < offer.total_bytes <= MAX_LOCAL_BYTES or offer.samples < 1 or not offer.base:
            raise ProtocolError(
                "bad_transfer",
                f"got '{offer.kind}' of {offer.total_bytes} bytes over {offer.samples} windows, expected 'local' of "
                f"1..{MAX_LOCAL_BYTES} bytes over at least 1, with a base",
            )
        space = self.space_of(offer.base)
        if newest is None or space is None or space != self.space_of(newest.revision):
            raise ProtocolError(
                "bad_transfer", f"base {offer.base[:12]} is unknown or outdated; fetch the newest weights"
            )
        return WeightTransfer(offer.revision, offer.total_bytes, offer.base)

    def difference(self, transfer: WeightTransfer) -> Weights:
        """A device's learning as weights minus its base; blocks. Raises RevisionError or CheckpointError."""
        base = self.files.weights(transfer.base)
        learned = transfer.finish(base)
        return {name: learned[name] - base[name] for name in base}
