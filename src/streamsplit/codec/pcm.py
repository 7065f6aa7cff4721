"""PCM at a cut: 16-bit little-endian samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamsplit.errors import CutError

_FULL_SCALE = 32_768.0


def pack_pcm(audio: NDArray[np.float32]) -> bytes:
    """Samples [n] in [-1, 1] as 2 n bytes; louder ones clip, within half a step (1/65536) otherwise.

    Raises CutError if the samples are not a finite one-dimensional array.
    """
    audio = np.asarray(audio, np.float32)
    if audio.ndim != 1 or not np.isfinite(audio).all():
        raise CutError(f"pcm16: got an array of shape {audio.shape}, expected finite mono samples [n]")
    return np.clip(np.rint(audio * _FULL_SCALE), -32_768, 32_767).astype("<i2").tobytes()


def unpack_pcm(payload: bytes | memoryview) -> NDArray[np.float32]:
    """The samples [n]; raises CutError on half a sample."""
    if len(payload) % 2:
        raise CutError(f"pcm16: got {len(payload)} bytes, expected an even number")
    return np.frombuffer(payload, "<i2").astype(np.float32) / np.float32(_FULL_SCALE)
