"""Log-mel features: 25 ms Hann frames every 10 ms, 128 mel bands, natural logarithm; batch and streaming.

Batch is the streaming step from its initial state, and any chunking of the input gives the same bits: every operation
works on one frame at a time, and the one that does not (the matrix product with the filterbank, whose rounding depends
on its shape) always runs on blocks of `BLOCK_FRAMES` frames aligned to the stream's frame number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamsplit.audio.mel import triangle_filters
from streamsplit.config import Settings, setting
from streamsplit.errors import AudioError, ConfigError
from streamsplit.wire.media import Resolution

Floats = NDArray[np.float32]

BLOCK_FRAMES = 10  # frames of one matrix product with the filterbank: 100 ms, divides the default stride
_BAND_GROUPS = 4  # products per block; each touches only the bins under its bands
_CACHE_FRAMES = 5 * BLOCK_FRAMES  # frames worked on at a time: intermediate arrays of about 100 KB stay in the cache

# Constants that encoders normalise with, (x - LOGMEL_MEAN) / LOGMEL_STD: mean and standard deviation over environmental
# recordings (-8.1, 4.6), read speech (-9.3, 3.6) and spoken digits (-9.5, 4.1), rounded. The same in both resolutions.
LOGMEL_MEAN = -8.5
LOGMEL_STD = 4.0


@dataclass(frozen=True, kw_only=True)
class LogMelSettings(Settings):
    """The analysis (v1, v2); `floor` is added to the mel power, so digital silence is ln(floor)."""

    sample_rate_hz: int = setting(16_000, low=4_000, high=192_000)
    window_samples: int = setting(400, low=16, high=8_192)
    hop_samples: int = setting(160, low=8, high=8_192)
    fft_samples: int = setting(512, low=16, high=16_384)
    mel_bands: int = setting(128, low=2, high=254)
    low_hz: float = setting(80.0, low=0.0)
    high_hz: float = setting(8_000.0, low=1.0)
    floor: float = setting(1e-6, low=1e-12, high=1.0)

    def check(self) -> None:
        """Refuses analyses whose parts do not fit together."""
        if self.fft_samples < self.window_samples:
            raise ConfigError(f"'fft_samples': got {self.fft_samples}, allowed >= window_samples {self.window_samples}")
        if 2 * self.hop_samples > self.window_samples:
            raise ConfigError(f"'hop_samples': got {self.hop_samples}, allowed <= half of {self.window_samples}")
        if not self.low_hz < self.high_hz <= self.sample_rate_hz / 2:
            got = f"{self.low_hz:g}, {self.high_hz:g}"
            raise ConfigError(f"'low_hz', 'high_hz': got {got}, allowed low < high <= {self.sample_rate_hz / 2:g}")
        if self.mel_bands % 2:
            raise ConfigError(f"'mel_bands': got {self.mel_bands}, allowed even numbers (reduced mode joins pairs)")

    def bands(self, resolution: Resolution) -> int:
        """Mel bands at `resolution`."""
        return self.mel_bands if resolution == Resolution.FULL else self.mel_bands // 2

    def hop(self, resolution: Resolution) -> int:
        """Samples between two frames at `resolution`."""
        return self.hop_samples if resolution == Resolution.FULL else 2 * self.hop_samples

    def span(self, frames: int) -> int:
        """Samples under `frames` consecutive full-rate frames."""
        return (frames - 1) * self.hop_samples + self.window_samples

    def frames(self, samples: int, resolution: Resolution = Resolution.FULL) -> int:
        """Frames that fit into `samples`; 0 when not even one does."""
        return max(0, 1 + (samples - self.window_samples) // self.hop(resolution))


class LogMelState(NamedTuple):
    """What a stream needs to go on: the samples not yet behind it, and the position of the next frame in its block."""

    tail: Floats  # fewer than window_samples samples, the start of the next frame
    position: int  # next frame's number modulo BLOCK_FRAMES


class _Group(NamedTuple):
    first_band: int
    last_band: int  # exclusive
    first_bin: int
    last_bin: int  # exclusive
    weights: Floats  # [bins of the group, bands of the group]


def mel_filterbank(settings: LogMelSettings | None = None, resolution: Resolution = Resolution.FULL) -> Floats:
    """Filters [f, bins], none of them empty; the reduced ones are the means of neighbouring pairs (v1 App. B)."""
    settings = settings or LogMelSettings()
    filters = triangle_filters(
        settings.sample_rate_hz, settings.fft_samples, settings.mel_bands, settings.low_hz, settings.high_hz
    )
    if resolution == Resolution.REDUCED:
        filters = (filters[0::2] + filters[1::2]) * np.float32(0.5)
    return filters


class StreamingLogMel:
    """Log-mel frames of a stream, chunk by chunk; the state is a value, so a stream can be copied and replayed.

    One object serves any number of streams, one after the other, but only one thread.
    """

    def __init__(self, settings: LogMelSettings | None = None, resolution: Resolution = Resolution.FULL) -> None:
        self.settings = settings or LogMelSettings()
        self.resolution = Resolution(resolution)
        self._window, self._groups = _tables(self.settings, self.resolution)
        self._hop = self.settings.hop(self.resolution)
        self._bands = self.settings.bands(self.resolution)
        # Kept, not state: fresh 100 KB arrays at every call make the allocator return and fault in pages all the time,
        # which costs more than the transform itself.
        points = self.settings.fft_samples
        self._scratch = (
            np.zeros((_CACHE_FRAMES, points), np.float32),
            np.empty((_CACHE_FRAMES, points // 2 + 1), np.complex64),
        )

    def initial(self) -> LogMelState:
        """The state before the first sample."""
        return LogMelState(np.zeros(0, np.float32), 0)

    def step(self, samples: Floats, state: LogMelState) -> tuple[Floats, LogMelState]:
        """Takes the stream's next samples [n]; gives the frames [f, t_new] that they complete, and the next state.

        Raises AudioError if the samples are not a finite one-dimensional array.
        """
        samples = check_samples(samples)
        signal = np.concatenate((state.tail, samples)) if len(state.tail) else samples
        frames = self.settings.frames(len(signal), self.resolution)
        if frames == 0:
            return np.zeros((self._bands, 0), np.float32), LogMelState(signal.copy(), state.position)
        features = self.frames(signal, frames, state.position)
        tail = signal[frames * self._hop :].copy()
        return features, LogMelState(tail, (state.position + frames) % BLOCK_FRAMES)

    def frames(self, signal: Floats, frames: int, position: int = 0) -> Floats:
        """The first `frames` frames [f, frames] of `signal` [n]; the first is frame `position` of a block."""
        features = np.empty((self._bands, frames), np.float32)
        start = 0
        while start < frames:
            stop = min(frames, start + _CACHE_FRAMES - (position + start) % BLOCK_FRAMES)
            power = self._power(signal[start * self._hop :], stop - start)
            features[:, start:stop] = self._project(power, (position + start) % BLOCK_FRAMES).T
            start = stop
        return features

    def _power(self, signal: Floats, frames: int) -> Floats:
        """Power spectrum [frames, bins]: one Fourier transform a row, so a row never depends on its neighbours."""
        shape, strides = (frames, len(self._window)), (4 * self._hop, 4)
        overlapping: Floats = np.ndarray(shape, np.float32, np.ascontiguousarray(signal).data, 0, strides)
        padded, spectrum = self._scratch
        np.multiply(overlapping, self._window, out=padded[:frames, : len(self._window)])
        # norm="forward" keeps numpy in single precision (its default norm casts to double and back); the window undoes
        # the scale.
        np.fft.rfft(padded[:frames], norm="forward", out=spectrum[:frames])  # type: ignore[arg-type]
        power: Floats = spectrum.real[:frames] ** 2
        power += spectrum.imag[:frames] ** 2
        return power

    def _project(self, power: Floats, position: int) -> Floats:
        """ln(power x filterbank + floor) [frames, f], computed on whole blocks."""
        frames, bins = power.shape
        blocks = -(-(position + frames) // BLOCK_FRAMES)
        if position or blocks * BLOCK_FRAMES != frames:
            padded = np.zeros((blocks * BLOCK_FRAMES, bins), np.float32)
            padded[position : position + frames] = power
            power = padded
        power = power.reshape(blocks, BLOCK_FRAMES, bins)
        mel = np.empty((blocks, BLOCK_FRAMES, self._bands), np.float32)
        for group in self._groups:
            np.matmul(
                power[:, :, group.first_bin : group.last_bin],
                group.weights,
                out=mel[:, :, group.first_band : group.last_band],
            )
        mel += np.float32(self.settings.floor)
        np.log(mel, out=mel)
        return mel.reshape(-1, self._bands)[position : position + frames]


def log_mel(audio: Floats, settings: LogMelSettings | None = None, resolution: Resolution = Resolution.FULL) -> Floats:
    """Log-mel features [f, t] of samples [n], t = 1 + (n - window) // hop; no frames if `audio` is too short.

    Raises AudioError if `audio` is not a finite one-dimensional array.
    """
    stream = StreamingLogMel(settings, resolution)
    return stream.step(audio, stream.initial())[0]


def reduce_resolution(features: Floats) -> Floats:
    """Reduced features [f/2, ceil(t/2)] from full ones [f, t]: means of band pairs (of powers), every second frame.

    Equal to the features that REDUCED gives on the same samples, up to rounding.
    """
    pairs = features[:, ::2]
    return np.logaddexp(pairs[0::2], pairs[1::2]) - np.float32(np.log(2.0))


def check_samples(samples: Floats) -> Floats:
    """The samples as float32 [n]; raises AudioError if they are not one-dimensional or not finite."""
    samples = np.asarray(samples)
    if samples.ndim != 1:
        raise AudioError(f"got an array of shape {samples.shape}, expected mono samples [n]; mix channels down first")
    if not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(
            f"got samples of type {samples.dtype}, expected float in [-1, 1]; divide integers by full scale"
        )
    samples = samples.astype(np.float32, copy=False)
    if not np.isfinite(samples).all():
        raise AudioError("got NaN or infinite samples, expected finite float32 in [-1, 1]")
    return samples


@lru_cache(maxsize=16)
def _tables(settings: LogMelSettings, resolution: Resolution) -> tuple[Floats, tuple[_Group, ...]]:
    n = settings.window_samples
    window = (settings.fft_samples * (0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(n) / n))).astype(np.float32)
    filters = mel_filterbank(settings, resolution)
    bands = len(filters)
    borders = np.linspace(0, bands, min(_BAND_GROUPS, bands) + 1).astype(int)
    groups = []
    for first, last in pairwise(borders):
        used = np.flatnonzero(filters[first:last].any(axis=0))
        low, high = int(used[0]), int(used[-1]) + 1
        weights = np.ascontiguousarray(filters[first:last, low:high].T)
        groups.append(_Group(int(first), int(last), low, high, weights))
    return window, tuple(groups)
