"""Bytes of one embedding (numpy only: usable on a device without torch).

Payload, little-endian: encoding u8 (wire.media.Encoding), reserved u8 = 0, u16 d, then
EMBEDDING_FP16, EXIT_FP16: d x f16; EMBEDDING_INT8: f32 scale, d x i8.
Errors per value for a unit-norm embedding: FP16 |error| <= max(|z| 2^-11, 2^-25); INT8 |error| <= max|z| / 254.
"""

from __future__ import annotations

import struct

import numpy as np

from streamsplit.errors import CutError
from streamsplit.wire.media import Encoding

MAX_DIM = 4096
HALVES = (Encoding.EMBEDDING_FP16, Encoding.EXIT_FP16)  # one layout; the second comes from an early exit

_HEADER = struct.Struct("<BBH")
_SCALE = struct.Struct("<f")
_LEVELS = 127


def pack_embedding(z: np.ndarray, encoding: Encoding) -> bytes:
    """Bytes of z [d]; raises CutError on NaN, infinite or too large values and on other encodings or shapes."""
    values = np.asarray(z, np.float32)
    if values.ndim != 1 or not 0 < len(values) <= MAX_DIM:
        raise CutError(f"got an embedding of shape {values.shape}, expected [d] with d in 1..{MAX_DIM}")
    if not np.isfinite(values).all():
        raise CutError("got NaN or infinite values in the embedding, expected finite ones")
    head = _HEADER.pack(encoding, 0, len(values))
    largest = np.abs(values).max()
    if encoding in HALVES:
        if largest > np.finfo(np.float16).max:
            raise CutError(f"got an embedding value of {largest:g}, expected at most 65504")
        return head + values.astype("<f2").tobytes()
    if encoding is Encoding.EMBEDDING_INT8:
        scale = np.float32(largest / _LEVELS)
        steps = np.rint(values / scale) if scale > 0 else np.zeros_like(values)
        return head + _SCALE.pack(scale) + np.clip(steps, -_LEVELS, _LEVELS).astype(np.int8).tobytes()
    raise CutError(f"got encoding {Encoding(encoding).label}, expected embedding-fp16, embedding-int8 or exit-fp16")


def unpack_embedding(data: bytes | bytearray | memoryview) -> np.ndarray:
    """z [d] float32 from `pack_embedding`'s bytes; raises CutError on anything else."""
    view = memoryview(data)
    if len(view) < _HEADER.size:
        raise CutError(f"got {len(view)} bytes, expected at least {_HEADER.size}")
    code, reserved, dim = _HEADER.unpack_from(view)
    if code not in (*HALVES, Encoding.EMBEDDING_INT8) or reserved:
        raise CutError(
            f"got embedding encoding {code}, {reserved}; expected embedding-fp16, embedding-int8 or exit-fp16"
        )
    half = code in HALVES
    expected = _HEADER.size + (2 * dim if half else _SCALE.size + dim)
    if not 0 < dim <= MAX_DIM or len(view) != expected:
        raise CutError(f"got {len(view)} bytes for {dim} values, expected {expected} and 1..{MAX_DIM} values")
    body = view[_HEADER.size :]
    if half:
        values = np.frombuffer(body, "<f2").astype(np.float32)
        if not np.isfinite(values).all():
            raise CutError("got NaN or infinite values in the embedding, expected finite ones")
        return values
    (scale,) = _SCALE.unpack_from(body)
    if not 0 <= scale < np.finfo(np.float32).max / 128:
        raise CutError(f"got INT8 scale {scale}, expected a finite number of at least 0")
    return np.frombuffer(body[_SCALE.size :], np.int8).astype(np.float32) * np.float32(scale)
