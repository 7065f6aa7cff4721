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
from streamsplit.weights.delta import apply_delta, make_delta
from streamsplit.weights.revision import Weights
from streamsplit.weights.streaming.buffers import aligned_buffer
from streamsplit.weights.streaming.chunk_file import open_tensors, pack_tensors
from streamsplit.weights.streaming.manifest import Chunk, Delta
from streamsplit.weights.streaming.pieces import zstandard_module

WORTH = 0.8  # a delta is published below this share of the chunk
LEVEL = 9


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

    `base` is left as it is, whatever happens.
    """
    if delta.kind == "exact":
        result = _patched(base, data, chunk.stored_bytes)
    else:
        old = _weights(base)
        if old is None:
            raise ManifestError("got a base that is not all float32, expected one that the delta was made for")
        try:
            new = apply_delta(old, memoryview(data))  # type: ignore[arg-type]
        except RevisionError as error:
            raise ManifestError(f"the delta does not apply ({error})") from None
        result = _buffer(pack_tensors({name: torch.from_numpy(array) for name, array in new.items()}))
    got = hashlib.sha256(result).hexdigest()  # type: ignore[arg-type]
    if got != chunk.digest:
        raise ManifestError(f"the delta leads to {got[:12]}, expected {chunk.digest[:12]}")
    return result


def _patched(base: np.ndarray, data: np.ndarray, size: int) -> np.ndarray:
    if len(base) != size:
        raise ManifestError(f"got a base of {len(base)} bytes, expected {size}")
    zstandard = zstandard_module()
    result = aligned_buffer(size)
    view, at = memoryview(result), 0  # type: ignore[arg-type]
    try:
        with zstandard.ZstdDecompressor().stream_reader(memoryview(data)) as reader:  # type: ignore[arg-type]
            while at < size and (count := reader.readinto(view[at:])):
                at += count
    except zstandard.ZstdError as error:
        raise ManifestError(f"the delta does not decompress ({error})") from None
    if at != size:
        raise ManifestError(f"got a delta of {at} bytes, expected {size}")
    result ^= base
    return result


def _weights(buffer: np.ndarray) -> Weights | None:
    tensors = open_tensors(buffer)
    if any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        return None
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _buffer(data: bytes) -> np.ndarray:
    buffer = aligned_buffer(len(data))
    buffer[:] = np.frombuffer(data, np.uint8)
    return buffer
