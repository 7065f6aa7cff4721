"""A stream of samples in any pieces, coded frame by frame (numpy only)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamsplit.codec.tinystream.integer import HIGHEST, IntegerEncoder
from streamsplit.errors import AudioError, CutError

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]  # [quantizers, frames]


class FrameStream:
    """Collects samples until they are whole frames; what codes them is `code`."""

    def __init__(self, hop: int, quantizers: int) -> None:
        self.hop, self.quantizers = hop, quantizers
        self._rest = np.zeros(0, np.float32)

    def push(self, samples: Floats) -> Indices:
        """Indices of the frames that the samples [n], in -1..1, complete.

        Raises AudioError on another shape or numbers that are not finite; the stream goes on as if they had not come.
        """
        samples = np.asarray(samples, np.float32)
        if samples.ndim != 1 or not np.isfinite(samples).all():
            raise AudioError(f"tinystream: got an array of shape {samples.shape}, expected finite mono samples [n]")
        joined = np.concatenate([self._rest, samples])
        whole = len(joined) - len(joined) % self.hop
        self._rest = joined[whole:]
        if not whole:
            return np.zeros((self.quantizers, 0), np.int64)
        return self.code(joined[:whole])

    def finish(self) -> Indices:
        """Indices of what is left, filled up with silence; none where nothing is."""
        return self.push(np.zeros(-len(self._rest) % self.hop, np.float32))

    def code(self, samples: Floats) -> Indices:
        """Indices of whole frames of samples."""
        raise NotImplementedError


class IntegerEncoderStream(FrameStream):
    """Encodes a stream as a microcontroller does, without torch."""

    def __init__(self, encoder: IntegerEncoder, num_quantizers: int | None = None) -> None:
        """Sends the first `num_quantizers` (all of them: None); raises CutError where there are not that many."""
        available = len(encoder.codebooks)
        if num_quantizers is not None and not 1 <= num_quantizers <= available:
            raise CutError(f"tinystream: got {num_quantizers} quantizers, expected 1..{available}")
        super().__init__(encoder.hop, num_quantizers or available)
        self._encoder, self._state = encoder, encoder.initial()

    def code(self, samples: Floats) -> Indices:
        """Through the program, from 16-bit samples."""
        whole = np.rint(np.clip(samples, -1.0, 1.0) * HIGHEST).astype(np.int16)
        indices, self._state = self._encoder.step(whole, self._state)
        return indices[: self.quantizers]
