"""A chunk's bytes: safetensors whose data begins at a multiple of 64, opened without a copy and without trust."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from streamsplit.errors import ManifestError
from streamsplit.weights.streaming.buffers import ALIGNMENT, aligned_buffer
from streamsplit.weights.streaming.limits import MAX_HEADER_BYTES
from streamsplit.weights.streaming.manifest import Chunk
from streamsplit.weights.streaming.pieces import zstandard_module
from streamsplit.weights.streaming.quantise import Tensors

ZSTD_LEVEL = 6
ZSTD_WORTH = 0.95  # compressed only below this share of the size
_LENGTH = struct.Struct("<Q")
_DTYPES = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I8": torch.int8, "U8": torch.uint8,
    "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool,
}  # fmt: skip


def pack_tensors(tensors: Tensors) -> bytes:
    """Safetensors bytes; the header is padded so that the data is aligned in an aligned buffer."""
    data = save({name: tensor.detach().contiguous() for name, tensor in tensors.items()})
    (length,) = _LENGTH.unpack_from(data)
    end = _LENGTH.size + length
    padding = -end % ALIGNMENT
    return _LENGTH.pack(length + padding) + data[_LENGTH.size : end] + b" " * padding + data[end:]


def header_bytes(data: bytes) -> int:
    """Offset of the data in `pack_tensors`' bytes."""
    return int(_LENGTH.size + _LENGTH.unpack_from(data)[0])


def open_tensors(buffer: np.ndarray, *, in_place: bool = False) -> Tensors:
    """The tensors of a chunk as views into its buffer [bytes] uint8; raises ManifestError on anything malformed.

    Tensors that lie askew in memory are copied, but not with `in_place`.
    """
    size = len(buffer)
    if size < _LENGTH.size:
        raise ManifestError(f"got a chunk of {size} bytes, expected at least {_LENGTH.size}")
    length = int(_LENGTH.unpack(buffer[: _LENGTH.size].tobytes())[0])
    start = _LENGTH.size + length
    if start > MAX_HEADER_BYTES or start > size:
        raise ManifestError(f"got a chunk header of {length} bytes in {size}, expected at most {MAX_HEADER_BYTES}")
    try:
        header = json.loads(buffer[_LENGTH.size : start].tobytes())
        header.pop("__metadata__", None)
        return {name: _view(buffer, start, name, entry, in_place) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ManifestError(f"the chunk's header does not parse ({type(error).__name__}: {error})") from None


def compress(data: bytes) -> bytes | None:
    """zstd of the data where that is worth a decompression, else None."""
    packed = bytes(zstandard_module().ZstdCompressor(level=ZSTD_LEVEL).compress(data))
    return packed if len(packed) < ZSTD_WORTH * len(data) else None


def unpacked(chunk: Chunk, stored: np.ndarray) -> np.ndarray:
    """The chunk's safetensors bytes from its stored ones, whose hash was checked; raises ManifestError."""
    if chunk.encoding == "none":
        return stored
    zstandard = zstandard_module()
    result = aligned_buffer(chunk.raw_bytes)
    view, at = memoryview(result), 0  # type: ignore[arg-type]
    try:
        with zstandard.ZstdDecompressor().stream_reader(memoryview(stored)) as reader:  # type: ignore[arg-type]
            while at < len(view) and (count := reader.readinto(view[at:])):
                at += count
            rest = reader.read(1)
    except zstandard.ZstdError as error:
        raise ManifestError(f"chunk '{chunk.name}' does not decompress ({error})") from None
    if at != chunk.raw_bytes or rest:
        raise ManifestError(f"chunk '{chunk.name}' does not decompress to {chunk.raw_bytes} bytes")
    return result


def _view(buffer: np.ndarray, start: int, name: str, entry: Any, in_place: bool) -> torch.Tensor:
    dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
        raise ValueError(f"shape or place of '{name}'")
    count = math.prod(shape)
    if end - begin != count * dtype.itemsize or start + end > len(buffer):
        raise ValueError(f"size of '{name}'")
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    part = buffer[start + begin : start + end]
    if part.ctypes.data % ALIGNMENT and not in_place:
        part = _copied(part)
    return torch.from_numpy(part).view(dtype).reshape(shape)


def _copied(part: np.ndarray) -> np.ndarray:
    copy = aligned_buffer(len(part))
    copy[:] = part
    return copy
