"""One model that the weight stream serves: its newest manifest, and what may be asked for."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from streamsplit.errors import ManifestError
from streamsplit.server.chunk_storage import ChunkStorage
from streamsplit.weights.streaming.manifest import Manifest, encode_manifest

LOG = logging.getLogger(__name__)
REVISIONS = 8  # the newest one, and older ones for those who began with them


class ServedModel:
    """A manifest and the chunks behind it, in any storage; `open` before the first client."""

    def __init__(self, storage: ChunkStorage, revisions: int = REVISIONS) -> None:
        """`revisions` is how many of the newest ones' chunks are handed out."""
        self.storage = storage
        self.revision = ""
        self.manifest_bytes = b""
        self._renewing = asyncio.Lock()  # many clients may come at once after a publication
        self._refused = False
        self._stored: deque[dict[str, int]] = deque(maxlen=revisions)  # digest -> bytes, the newest revision last

    async def open(self) -> None:
        """Reads the manifest and looks whether every chunk is there; raises ManifestError with what is wrong."""
        manifest = await self.storage.manifest()
        await self._check_chunks(manifest)
        if manifest.revision != self.revision:
            self._adopt(manifest)

    async def renew(self) -> None:
        """Takes up a manifest that was written meanwhile; a bad one leaves the old one in force."""
        async with self._renewing:
            try:
                if self._refused or await self.storage.changed():
                    self._refused = True  # until all of it is there: chunks may come after their manifest
                    await self.open()
                    self._refused = False
            except ManifestError as error:
                LOG.error("the new manifest is not taken: %s", error)

    def size(self, digest: str) -> int | None:
        """Bytes of a chunk or delta; None where no revision of late names it."""
        return next((stored[digest] for stored in reversed(self._stored) if digest in stored), None)

    async def _check_chunks(self, manifest: Manifest) -> None:
        for digest, expected in manifest.stored.items():
            size = await self.storage.size(digest)
            if size != expected:
                raise ManifestError(
                    f"chunk {digest[:12]}: got {size} bytes in storage, expected {expected}; chunk the model again"
                )

    def _adopt(self, manifest: Manifest) -> None:
        self.manifest_bytes = encode_manifest(manifest)
        self.revision = manifest.revision
        self._stored.append(manifest.stored)
        LOG.info("streaming %s, revision %s, %d chunks", manifest.model, self.revision[:12], len(manifest.chunks))
