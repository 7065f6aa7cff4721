"""Log-mel features at a cut: 16-bit floats, or 8-bit integers on one fixed scale.

Layout: encoding u8, bands u8, frames u16 little-endian; then the values, band by band.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from streamsplit.errors import CutError
from streamsplit.wire.media import Encoding

Floats = NDArray[np.float32]

_HEADER = struct.Struct("<BBH")

# From ln(1e-6), digital silence, to 7.4: full-scale square waves reach 7.3. Other values clip.
LOWEST, HIGHEST = -13.816, 7.4
INT8_STEP = (HIGHEST - LOWEST) / 254.0
INT8_ERROR = INT8_STEP / 2.0  # largest error of a value in LOWEST..HIGHEST: 0.042, or 0.18 dB
_MIDDLE = (HIGHEST + LOWEST) / 2.0


def pack_features(features: Floats, encoding: Encoding) -> bytes:
    """Features [f, t] as LOGMEL_FP16 or LOGMEL_INT8; raises CutError on another encoding, shape or NaN."""
    features = np.asarray(features, np.float32)
    if features.ndim != 2 or not 1 <= features.shape[0] <= 255 or features.shape[1] > 65_535:
        raise CutError(f"features: got shape {features.shape}, expected [1..255 bands, up to 65535 frames]")
    if not np.isfinite(features).all():
        raise CutError("features: got NaN or infinite values, expected finite log-mel")
    if encoding == Encoding.LOGMEL_FP16:
        values = np.clip(features, -65_504.0, 65_504.0).astype("<f2").tobytes()
    elif encoding == Encoding.LOGMEL_INT8:
        steps = np.rint((features - np.float32(_MIDDLE)) * np.float32(1.0 / INT8_STEP))
        values = np.clip(steps, -127, 127).astype(np.int8).tobytes()
    else:
        raise CutError(f"features: got {encoding!r}, expected logmel-fp16 or logmel-int8")
    return _HEADER.pack(encoding, *features.shape) + values


def unpack_features(payload: bytes | memoryview) -> Floats:
    """The features [f, t]; raises CutError on a wrong length, an unknown encoding or NaN."""
    if len(payload) < _HEADER.size:
        raise CutError(f"features: got {len(payload)} bytes, expected at least {_HEADER.size}")
    encoding, bands, frames = _HEADER.unpack_from(payload)
    widths = {int(Encoding.LOGMEL_FP16): 2, int(Encoding.LOGMEL_INT8): 1}
    if encoding not in widths or bands == 0:
        raise CutError(f"features: got encoding {encoding} and {bands} bands, expected logmel-fp16 or logmel-int8")
    expected = _HEADER.size + bands * frames * widths[encoding]
    if len(payload) != expected:
        raise CutError(f"features: got {len(payload)} bytes for [{bands}, {frames}], expected {expected}")
    if encoding == Encoding.LOGMEL_FP16:
        features = np.frombuffer(payload, "<f2", offset=_HEADER.size).astype(np.float32)
        if not np.isfinite(features).all():
            raise CutError("features: got NaN or infinite values, expected finite log-mel")
    else:
        steps = np.frombuffer(payload, np.int8, offset=_HEADER.size).astype(np.float32)
        features = steps * np.float32(INT8_STEP) + np.float32(_MIDDLE)
    return features.reshape(bands, frames)
