"""Windows of a stream: overlapping pieces of log-mel features with the samples under them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamsplit.audio.logmel import BLOCK_FRAMES, LogMelSettings, StreamingLogMel, check_samples
from streamsplit.audio.ring import SampleRing
from streamsplit.config import Settings, setting
from streamsplit.errors import ConfigError
from streamsplit.wire.media import Resolution

Floats = NDArray[np.float32]


class Window(NamedTuple):
    """One window; index w covers the full-rate frames [w stride, w stride + length) of its stream."""

    index: int  # type: ignore[assignment]  # counts on across resets, so it names the window on the device
    features: Floats  # [f, t]: [128, 100], or [64, 50] at reduced resolution
    audio: Floats  # [(length - 1) hop + window] samples under the frames
    resolution: Resolution
    end_ms: float  # stream time at the window's end
    new_frames: int  # full-rate frames that the window before it did not hold: stride, or length after a reset


@dataclass(frozen=True, kw_only=True)
class WindowSettings(Settings):
    """Length and stride of windows in full-rate (10 ms) frames; both even, so that reduced frames fall on full ones."""

    length_frames: int = setting(100, low=2, high=6_000)
    stride_frames: int = setting(50, low=2, high=6_000)

    def check(self) -> None:
        """Refuses strides that skip audio and odd numbers of frames."""
        for name in ("length_frames", "stride_frames"):
            if getattr(self, name) % 2:
                raise ConfigError(f"'{name}': got {getattr(self, name)}, allowed even numbers")
        if self.stride_frames > self.length_frames:
            raise ConfigError(f"'stride_frames': got {self.stride_frames}, allowed <= length {self.length_frames}")


class WindowStream:
    """Cuts a stream of samples into windows; frames under two windows are computed once, memory is bounded."""

    def __init__(
        self, settings: LogMelSettings | None = None, length_frames: int = 100, stride_frames: int = 50
    ) -> None:
        self.settings = settings or LogMelSettings()
        self.windows = WindowSettings(length_frames=length_frames, stride_frames=stride_frames)
        self._extractors = {kind: StreamingLogMel(self.settings, kind) for kind in Resolution}
        self._span = self.settings.span(length_frames)
        self._stride = stride_frames * self.settings.hop_samples
        self._ring = SampleRing(self._span + self._stride)
        self._index = 0
        self._count = 0  # windows since the last reset
        self._start_ms = 0.0
        self._overlap: tuple[Resolution, Floats] | None = None  # frames that the next window shares with the last one

    def push(self, samples: Floats, resolution: Resolution = Resolution.FULL) -> list[Window]:
        """Takes the next samples [n] and gives the windows that they complete, in `resolution`.

        Raises AudioError if the samples are not a finite one-dimensional array; the stream is unchanged then.
        """
        samples = check_samples(samples)
        ready: list[Window] = []
        for at in range(0, len(samples), self._stride):
            self._ring.append(samples[at : at + self._stride])
            while self._ring.end >= self._begin + self._span:
                ready.append(self._emit(self._ring.read(self._begin, self._begin + self._span), resolution))
        return ready

    def flush(self, resolution: Resolution = Resolution.FULL) -> list[Window]:
        """Ends the clip: the last started window, zero-padded, if at least half of its frames are real and some of
        them new, and at least one window for any clip; then resets, with stream time going on."""
        samples = self._ring.read(min(self._begin, self._ring.end), self._ring.end)
        real = self.settings.frames(len(samples))
        overlap = self.windows.length_frames - self.windows.stride_frames
        worthwhile = 2 * real >= self.windows.length_frames and real > overlap
        ready: list[Window] = []
        if worthwhile or (self._count == 0 and len(samples)):
            audio = np.zeros(self._span, np.float32)
            audio[: len(samples)] = samples
            ready.append(self._emit(audio, resolution))
        self.reset()
        return ready

    def reset(self, start_ms: float | None = None) -> None:
        """Forgets the samples held, after a gap; the next sample is at stream time `start_ms` (default: just after
        the last one). Indices go on."""
        end_ms = self._start_ms + self._ring.end * 1000.0 / self.settings.sample_rate_hz
        self._start_ms = end_ms if start_ms is None else start_ms
        self._ring.clear()
        self._count = 0
        self._overlap = None

    @property
    def _begin(self) -> int:
        return self._count * self._stride

    def _emit(self, audio: Floats, resolution: Resolution) -> Window:
        features = self._features(audio, Resolution(resolution))
        new_frames = self.windows.stride_frames if self._count else self.windows.length_frames
        end_ms = self._start_ms + (self._begin + self._span) * 1000.0 / self.settings.sample_rate_hz
        window = Window(self._index, features, audio, Resolution(resolution), end_ms, new_frames)
        self._index += 1
        self._count += 1
        return window

    def _features(self, audio: Floats, resolution: Resolution) -> Floats:
        step = 1 if resolution == Resolution.FULL else 2
        length, stride = self.windows.length_frames // step, self.windows.stride_frames // step
        known = 0
        features = np.empty((self.settings.bands(resolution), length), np.float32)
        if self._overlap is not None and self._overlap[0] == resolution:
            known = length - stride
            features[:, :known] = self._overlap[1]
        extractor = self._extractors[resolution]
        position = (self._count * stride + known) % BLOCK_FRAMES
        missing = audio[known * self.settings.hop(resolution) :]
        features[:, known:] = extractor.frames(missing, length - known, position)
        self._overlap = (resolution, features[:, stride:].copy())
        return features


def cut_windows(
    audio: Floats,
    settings: LogMelSettings | None = None,
    length_frames: int = 100,
    stride_frames: int = 50,
    resolution: Resolution = Resolution.FULL,
) -> list[Window]:
    """All windows of a finite clip [n], the last one zero-padded as `WindowStream.flush` says."""
    stream = WindowStream(settings, length_frames, stride_frames)
    return stream.push(audio, resolution) + stream.flush(resolution)
