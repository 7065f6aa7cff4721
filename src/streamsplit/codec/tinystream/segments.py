"""TinyStream at a cut: the codes of a piece of sound, as one stream of it would have them (numpy only)."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from streamsplit.codec.tinystream.bitstream import MODEL_ID_BYTES, pack
from streamsplit.codec.tinystream.integer import HIGHEST, IntegerEncoder
from streamsplit.codec.tinystream.integer_file import read_integer
from streamsplit.errors import CutError

Floats = NDArray[np.float32]
DEFAULT_CODEC = "tiny_mel"


class SegmentEncoder:
    """Codes pieces of a stream, each with the sound before it, as a microcontroller that hears all of it would.

    Frames are counted back from a piece's end. Pieces of whole frames that follow each other give the codes of one
    stream as long as each comes with `memory_frames` frames of what went before; what is missing of that is silence.
    """

    def __init__(self, encoder: IntegerEncoder, num_quantizers: int | None = None) -> None:
        """Sends the first `num_quantizers` (all of them: None); raises CutError where there are not that many."""
        available = len(encoder.codebooks)
        if num_quantizers is not None and not 1 <= num_quantizers <= available:
            raise CutError(f"tinystream: got {num_quantizers} quantizers, expected 1..{available}")
        self._encoder, self._quantizers = encoder, num_quantizers or available
        self._bits = encoder.codebooks.shape[1].bit_length() - 1

    @property
    def model_id(self) -> bytes:
        """Of the codec, as its packets name it."""
        return self._encoder.model_id[:MODEL_ID_BYTES]

    def encode(self, piece: Floats, before: Floats) -> bytes:
        """A packet of the codes of `piece` [n], in -1..1, after `before` [m]; raises CutError on other arrays."""
        if piece.ndim != 1 or before.ndim != 1 or not (np.isfinite(piece).all() and np.isfinite(before).all()):
            raise CutError(
                f"tinystream: got arrays of shape {piece.shape} after {before.shape}, expected finite mono samples"
            )
        hop, frames = self._encoder.hop, segment_frames(len(piece), self._encoder.hop)
        lead = min(self._encoder.memory_frames, max(0, len(before) + len(piece) - frames * hop) // hop)
        size = (lead + frames) * hop
        if not frames:
            return pack(np.zeros((self._quantizers, 0), np.int64), self._bits, self.model_id)
        heard = np.concatenate([before, piece])[-size:]
        samples = np.zeros(size, np.int16)
        samples[size - len(heard) :] = np.rint(np.clip(heard, -1.0, 1.0) * HIGHEST)
        indices, _ = self._encoder.step(samples, self._encoder.initial())
        return pack(indices[: self._quantizers, lead:], self._bits, self.model_id)


def segment_frames(samples: int, hop: int) -> int:
    """Frames that a piece of so many samples takes; the first may reach into the sound before it."""
    return -(-samples // hop)


@cache
def packaged_segments(name: str = DEFAULT_CODEC, num_quantizers: int | None = None) -> SegmentEncoder:
    """The encoder of a packaged codec, or of an integer codec's file; raises CheckpointError."""
    return SegmentEncoder(read_integer(name), num_quantizers)
