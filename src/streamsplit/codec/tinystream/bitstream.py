"""The bitstream: packets of bit-packed indices behind an 8-byte header (numpy only; the C side writes the same bytes).

Header, little-endian: version u8 (1); u8 with quantizers - 1 in the high and bits of an index - 1 in the low four bits;
frames u16; four bytes of the model's id. Then frame by frame, quantizer by quantizer, the indices, most significant
bit first, with no gaps; zero bits fill the last byte.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamsplit.errors import CutError

VERSION = 1
MODEL_ID_BYTES = 4
MOST_FRAMES = 0xFFFF
MOST_QUANTIZERS = MOST_INDEX_BITS = 16
_HEADER = struct.Struct("<BBH4s")
HEADER_BYTES = _HEADER.size

Indices = NDArray[np.int64]  # [quantizers, frames]


class Packet(NamedTuple):
    """Indices and what wrote them."""

    indices: Indices
    index_bits: int
    model_id: bytes


def pack(indices: NDArray[np.integer], index_bits: int, model_id: bytes) -> bytes:
    """One packet of indices [quantizers, frames]; raises CutError if they do not fit a packet or `index_bits`."""
    indices = np.asarray(indices)
    if indices.ndim != 2 or not 1 <= len(indices) <= MOST_QUANTIZERS or indices.shape[1] > MOST_FRAMES:
        raise CutError(
            f"tinystream: got indices of shape {indices.shape}, expected [1..{MOST_QUANTIZERS}, at most {MOST_FRAMES}]"
        )
    if not 1 <= index_bits <= MOST_INDEX_BITS or len(model_id) != MODEL_ID_BYTES:
        raise CutError(
            f"tinystream: got {index_bits} bits and a model id of {len(model_id)} bytes, expected "
            f"1..{MOST_INDEX_BITS} and {MODEL_ID_BYTES}"
        )
    if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < 1 << index_bits:
        raise CutError(f"tinystream: got an index outside 0..{(1 << index_bits) - 1}")
    header = _HEADER.pack(VERSION, (len(indices) - 1) << 4 | (index_bits - 1), indices.shape[1], model_id)
    places = np.arange(index_bits - 1, -1, -1)
    bits = indices.T.astype(np.int64)[..., None] >> places & 1  # [frames, quantizers, bits]
    return header + np.packbits(bits.astype(np.uint8).ravel()).tobytes()


def unpack(data: bytes | memoryview, model_id: bytes | None = None) -> Packet:
    """The one packet that `data` is; raises CutError if it is cut short, longer, of another version or model."""
    packet, used = unpack_first(data, model_id)
    if used != len(data):
        raise CutError(f"tinystream: got {len(data) - used} bytes behind a packet of {used}")
    return packet


def unpack_first(data: bytes | memoryview, model_id: bytes | None = None) -> tuple[Packet, int]:
    """The packet that `data` begins with, and its bytes; raises CutError as `unpack`."""
    view = memoryview(data)
    if len(view) < HEADER_BYTES:
        raise CutError(f"tinystream: got {len(view)} bytes, expected at least {HEADER_BYTES}")
    version, sizes, frames, writer = _HEADER.unpack_from(view)
    if version != VERSION:
        raise CutError(f"tinystream: got version {version}, expected {VERSION}")
    if model_id is not None and writer != model_id:
        raise CutError(
            f"tinystream: got codes of model {writer.hex()}, expected {model_id.hex()}; load the codec that wrote them"
        )
    quantizers, index_bits = (sizes >> 4) + 1, (sizes & 15) + 1
    count = frames * quantizers * index_bits
    size = HEADER_BYTES + -(-count // 8)
    if len(view) < size:
        raise CutError(f"tinystream: got {len(view)} bytes, expected {size} for {frames} frames")
    bits = np.unpackbits(np.frombuffer(view[HEADER_BYTES:size], np.uint8))
    if bits[count:].any():
        raise CutError("tinystream: got bits behind the last frame, expected zeros")
    places = 1 << np.arange(index_bits - 1, -1, -1, dtype=np.int64)
    indices = bits[:count].reshape(frames, quantizers, index_bits) @ places
    return Packet(np.ascontiguousarray(indices.T), index_bits, bytes(writer)), size
