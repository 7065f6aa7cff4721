"""Sample-rate conversion (soxr, high quality) and stereo to mono; whole arrays and streams."""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray

from streamsplit.audio.logmel import check_samples
from streamsplit.errors import AudioError

Floats = NDArray[np.float32]

_LOWEST_HZ, _HIGHEST_HZ = 1_000, 768_000


def to_mono(audio: Floats) -> Floats:
    """Mono samples [n] from [n] or [n, channels]: the mean of the channels; raises AudioError on other shapes."""
    audio = np.asarray(audio)
    if audio.ndim == 2 and audio.shape[1]:
        audio = audio.mean(axis=1, dtype=np.float32)
    return check_samples(audio)


def resample(audio: Floats, from_hz: float, to_hz: float) -> Floats:
    """Samples [n] or [n, channels] at `from_hz` as mono [round(n to/from)] at `to_hz`; raises AudioError."""
    _check_rates(from_hz, to_hz)
    mono = to_mono(audio)
    if from_hz == to_hz or not len(mono):
        return mono
    return np.asarray(soxr.resample(mono, from_hz, to_hz), np.float32)


class StreamingResampler:
    """Resamples a stream chunk by chunk; all chunks and the flush together equal one pass over the whole."""

    def __init__(self, from_hz: float, to_hz: float) -> None:
        _check_rates(from_hz, to_hz)
        self.from_hz, self.to_hz = from_hz, to_hz
        self._stream = None if from_hz == to_hz else soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32")

    def push(self, samples: Floats) -> Floats:
        """The output [m] that is final after the next samples [n] or [n, channels]; it lags by the filter's delay."""
        mono = to_mono(samples)
        if self._stream is None:
            return mono
        return np.asarray(self._stream.resample_chunk(mono), np.float32)

    def flush(self) -> Floats:
        """What is left at the stream's end; the resampler is ready for a new stream then."""
        if self._stream is None:
            return np.zeros(0, np.float32)
        rest = np.asarray(self._stream.resample_chunk(np.zeros(0, np.float32), last=True), np.float32)
        self._stream.clear()
        return rest


def _check_rates(from_hz: float, to_hz: float) -> None:
    for hz in (from_hz, to_hz):
        if not _LOWEST_HZ <= hz <= _HIGHEST_HZ:
            raise AudioError(f"got a sample rate of {hz} Hz, expected {_LOWEST_HZ}..{_HIGHEST_HZ}")
