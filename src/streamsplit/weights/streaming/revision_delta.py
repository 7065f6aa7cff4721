"""From one revision of a chunk to the next in few bytes; what results is checked against the new chunk's hash.

'exact' is zstd of the XOR of both chunks' bytes: for the same weights with few of them changed. 'int8' is
`weights.delta`'s: steps of a 254th of each row's largest change, and the publisher's new weights *are* what everybody
computes from them, so the revision is the same everywhere and the next delta makes up for what rounding left out.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from streamsplit.errors import ManifestError, RevisionError
from streamsplit.weights.delta import apply_in_place, make_delta
from streamsplit.weights.revision import Weights
from streamsplit.weights.streaming.buffers import aligned_buffer
from streamsplit.weights.streaming.chunk_file import open_tensors, pack_tensors
from streamsplit.weights.streaming.manifest import Chunk, Delta
from streamsplit.weights.streaming.pieces import zstandard_module

WORTH = 0.8  # a delta is published below this share of the chunk
LEVEL = 9
_PIECE_BYTES = 1 << 18


def exact_delta(base: bytes, new: bytes) -> bytes | None:
    """The bytes of an exact delta, or None where it would not be worth it."""
    if len(base) != len(new):
        return None
    difference = np.frombuffer(base, np.uint8) ^ np.frombuffer(new, np.uint8)
    packed = bytes(zstandard_module().ZstdCompressor(level=LEVEL).compress(difference.tobytes()))
    return packed if len(packed) < WORTH * len(new) else None


def int8_delta(base: bytes, new: bytes) -> tuple[bytes, bytes] | None:
    """The bytes of an int8 delta, and of the chunk that it leads to; None for chunks that are not all float32."""
    old, wanted = _weights(_buffer(base)), _weights(_buffer(new))
    if old is None or wanted is None or old.keys() != wanted.keys():
        return None
    if any(old[name].shape != wanted[name].shape for name in old):
        return None
    packed = make_delta(old, wanted)
    return packed.payload, pack_tensors({name: torch.from_numpy(array) for name, array in packed.result.items()})


def applied(chunk: Chunk, delta: Delta, base: np.ndarray, data: np.ndarray) -> np.ndarray:
    """The new chunk's stored bytes [size] uint8 from the old one's and a delta's; raises ManifestError.

    They are made in the memory of `base`, which is of no use afterwards, whatever happens.
    """
    if len(base) != chunk.stored_bytes:
        raise ManifestError(f"got a base of {len(base)} bytes, expected {chunk.stored_bytes}")
    if delta.kind == "exact":
        _patch(base, data)
    else:
        old = _weights(base)
        if old is None:
            raise ManifestError("got a base that is not all float32, expected one that the delta was made for")
        try:
            apply_in_place(old, memoryview(data))  # type: ignore[arg-type]
        except RevisionError as error:
            raise ManifestError(f"the delta does not apply ({error})") from None
    got = hashlib.sha256(base).hexdigest()  # type: ignore[arg-type]
    if got != chunk.digest:
        raise ManifestError(f"the delta leads to {got[:12]}, expected {chunk.digest[:12]}")
    return base


def _patch(base: np.ndarray, data: np.ndarray) -> None:
    """XORs with what the delta unpacks to, piece by piece."""
    zstandard = zstandard_module()
    piece, at = np.empty(_PIECE_BYTES, np.uint8), 0
    try:
        with zstandard.ZstdDecompressor().stream_reader(memoryview(data)) as reader:  # type: ignore[arg-type]
            while count := reader.readinto(memoryview(piece)):  # type: ignore[arg-type]
                if at + count > len(base):
                    raise ManifestError(f"got a delta of more than {len(base)} bytes")
                base[at : at + count] ^= piece[:count]
                at += count
    except zstandard.ZstdError as error:
        raise ManifestError(f"the delta does not decompress ({error})") from None
    if at != len(base):
        raise ManifestError(f"got a delta of {at} bytes, expected {len(base)}")


def _weights(buffer: np.ndarray) -> Weights | None:
    tensors = open_tensors(buffer, in_place=True)
    if any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        return None
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _buffer(data: bytes) -> np.ndarray:
    buffer = aligned_buffer(len(data))
    buffer[:] = np.frombuffer(data, np.uint8)
    return buffer
