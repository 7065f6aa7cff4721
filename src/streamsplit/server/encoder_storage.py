"""The server's own encoder as chunks in memory: every revision that it adopts, block by block."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.errors import ManifestError
from streamsplit.weights.revision import Weights, load_weights
from streamsplit.weights.streaming.encoder import encoder_chunks
from streamsplit.weights.streaming.encoder_delta import with_deltas
from streamsplit.weights.streaming.manifest import Manifest

KEPT = 3  # revisions whose blocks are held: devices go over to a new one when they can


class _Revision(NamedTuple):
    manifest: Manifest
    chunks: dict[str, bytes]  # and deltas, by digest; blocks that are equal in two revisions are held once


class EncoderStorage:
    """A ChunkStorage that `adopt` fills; it is called in one thread, all else in the event loop."""

    def __init__(self, settings: EncoderSettings) -> None:
        self._settings = EncoderSettings(**{name: getattr(settings, name) for name in EncoderSettings().as_dict()})
        self._revisions: deque[_Revision] = deque(maxlen=KEPT)
        self._given = ""  # revision of the manifest that was given last

    def adopt(self, weights: Weights, space: int, base: str = "", delta: bytes = b"") -> None:
        """Makes a revision of the encoder the newest, with deltas of the blocks that changed since the one before.

        `delta` is the int8 delta that leads to it from revision `base`, where there is one. Raises RevisionError where
        the weights are of another encoder.
        """
        encoder = make_encoder(self._settings)
        load_weights(encoder, weights)
        manifest, chunks = encoder_chunks(encoder.eval(), self._settings, space=space)
        held = {digest: data for revision in self._revisions for digest, data in revision.chunks.items()}
        if self._revisions:
            before = self._revisions[-1].manifest
            whole = delta if base and base == before.config["revision"] else b""
            manifest, deltas = with_deltas(before, manifest, held | chunks, whole)
            chunks |= deltas
        self._revisions.append(_Revision(manifest, {digest: held.get(digest, chunks[digest]) for digest in chunks}))

    async def manifest(self) -> Manifest:
        """Of the newest revision; raises ManifestError before the first."""
        newest = self._newest
        self._given = newest.revision
        return newest

    async def changed(self) -> bool:
        """Whether a revision was adopted since `manifest` gave the last one."""
        return self._newest.revision != self._given

    async def size(self, digest: str) -> int:
        """Bytes of a block's chunk or delta; raises ManifestError where it is no longer held."""
        return len(self._chunk(digest))

    async def read(self, digest: str, offset: int, length: int) -> bytes:
        """A range of a block's chunk or delta; raises ManifestError where it is no longer held."""
        return self._chunk(digest)[offset : offset + length]

    @property
    def _newest(self) -> Manifest:
        if not self._revisions:
            raise ManifestError("no revision of the encoder yet")
        return self._revisions[-1].manifest

    def _chunk(self, digest: str) -> bytes:
        for revision in reversed(list(self._revisions)):
            if digest in revision.chunks:
                return revision.chunks[digest]
        raise ManifestError(f"chunk {digest[:12]} is of a revision that is no longer held; fetch the manifest again")
