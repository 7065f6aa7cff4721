"""Chunked transfer of weights: chunk bytes, the sender's slices, and the receiver that puts them together.

A chunk, the payload of one WEIGHTS frame, little-endian: u32 prefix of the revision it leads to, u32 offset, data.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from streamsplit.errors import RevisionError
from streamsplit.weights.container import MAX_PAYLOAD_BYTES
from streamsplit.weights.delta import apply_delta, unpack_full
from streamsplit.weights.revision import Weights, check_revision, revision_of, revision_prefix
from streamsplit.wire.types import MAX_CHUNK_BYTES

_HEADER = struct.Struct("<II")
CHUNK_DATA_BYTES = MAX_CHUNK_BYTES - _HEADER.size
DEFAULT_CHUNK_BYTES = 8 << 10  # of data; what is urgent waits behind one of these at most


class Chunk(NamedTuple):
    """One piece of a weight payload."""

    prefix: int  # revision_prefix of the revision that the transfer leads to
    offset: int  # of the data in the payload
    data: bytes


def pack_chunk(chunk: Chunk) -> bytes:
    """Bytes of one chunk; raises RevisionError when it is empty or larger than 32 KiB with its header."""
    if not 0 < len(chunk.data) <= CHUNK_DATA_BYTES:
        raise RevisionError(f"got a chunk of {len(chunk.data)} bytes, expected 1..{CHUNK_DATA_BYTES}")
    return _HEADER.pack(chunk.prefix, chunk.offset) + chunk.data


def unpack_chunk(data: bytes | bytearray | memoryview) -> Chunk:
    """The chunk from its bytes; raises RevisionError when it is too short or too long."""
    view = memoryview(data)
    if not _HEADER.size < len(view) <= MAX_CHUNK_BYTES:
        raise RevisionError(f"got a chunk of {len(view)} bytes, expected {_HEADER.size + 1}..{MAX_CHUNK_BYTES}")
    prefix, offset = _HEADER.unpack_from(view)
    return Chunk(prefix, offset, bytes(view[_HEADER.size :]))


def chunks(payload: bytes, revision: str, offset: int = 0, size: int = CHUNK_DATA_BYTES) -> Iterator[bytes]:
    """Packed chunks of a payload from an offset on; raises RevisionError on an offset outside of it."""
    if not 0 <= offset <= len(payload):
        raise RevisionError(f"got offset {offset}, expected 0..{len(payload)}")
    prefix = revision_prefix(revision)
    for start in range(offset, len(payload), size):
        yield pack_chunk(Chunk(prefix, start, payload[start : start + size]))


class WeightTransfer:
    """Receives one announced transfer (REVISION message) chunk by chunk; survives lost connections.

    Memory grows with what has arrived, never beyond the announced total. After a reconnect, ask for `received` on.
    """

    def __init__(self, revision: str, total_bytes: int, base: str = "") -> None:
        """`base` is the revision that a delta applies to, "" for full weights."""
        if not 0 < total_bytes <= MAX_PAYLOAD_BYTES:
            raise RevisionError(f"got a transfer of {total_bytes} bytes, expected 1..{MAX_PAYLOAD_BYTES}")
        self.revision = check_revision(revision)
        self.base = check_revision(base) if base else ""
        self.total_bytes = total_bytes
        self._data = bytearray()

    @property
    def received(self) -> int:
        """Bytes so far: the offset to ask for next."""
        return len(self._data)

    @property
    def complete(self) -> bool:
        """True when every byte is here; `finish` may be called."""
        return len(self._data) == self.total_bytes

    def add(self, data: bytes | memoryview) -> bool:
        """Takes one packed chunk; True when the transfer is complete.

        A chunk that was received before (sent again after a reconnect) is ignored. Raises RevisionError on a chunk
        of another revision, a gap, or data beyond the announced total; what was received stays good.
        """
        chunk = unpack_chunk(data)
        if chunk.prefix != revision_prefix(self.revision):
            raise RevisionError(f"got a chunk of revision {chunk.prefix:08x}, expected {self.revision[:8]}")
        end = chunk.offset + len(chunk.data)
        if end > self.total_bytes:
            raise RevisionError(f"got data up to {end}, expected at most the announced {self.total_bytes} bytes")
        if chunk.offset > self.received:
            raise RevisionError(f"got a chunk at offset {chunk.offset}, expected {self.received}: ask again from there")
        if end > self.received:
            self._data += chunk.data[self.received - chunk.offset :]
        return self.complete

    def finish(self, base: Weights | None = None) -> Weights:
        """The new weights; a delta needs its base. Raises RevisionError when incomplete, damaged or on another base.

        After damage the transfer starts over from offset 0.
        """
        if not self.complete:
            raise RevisionError(f"got {self.received} of {self.total_bytes} bytes, expected all before finishing")
        if self.base and (base is None or revision_of(base) != self.base):
            raise RevisionError(f"this delta applies to revision {self.base}, which was not given")
        try:
            result = apply_delta(base, self._data) if self.base and base is not None else unpack_full(self._data)
            if revision_of(result) != self.revision:
                raise RevisionError(f"the payload leads to {revision_of(result)}, announced was {self.revision}")
        except RevisionError:
            self._data.clear()
            raise
        return result
