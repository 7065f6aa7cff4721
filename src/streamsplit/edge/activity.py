"""Voice activity: whether somebody speaks in a frame, and from that, where speech begins and ends."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streamsplit.edge.talk_settings import ActivitySettings
from streamsplit.errors import ConfigError, MissingExtraError

Floats = NDArray[np.float32]
_FLOOR_RISE_DB_S = 3.0  # how fast the level of the noise is taken to grow


class Detector(Protocol):
    """Judges one frame."""

    def speaks(self, frame: Floats, extra_db: float) -> bool:
        """Whether there is speech in a frame [n]; `extra_db` more is asked for while an answer plays."""


class EnergyDetector:
    """The frame's level against that of the noise, which is the lowest lately."""

    def __init__(self, settings: ActivitySettings, frame_ms: float) -> None:
        self._settings = settings
        self._rise_db = _FLOOR_RISE_DB_S * frame_ms / 1000.0
        self._floor_db = math.nan

    def speaks(self, frame: Floats, extra_db: float) -> bool:
        """Above the noise and above silence."""
        s = self._settings
        level_db = 10.0 * math.log10(float(np.mean(np.square(frame, dtype=np.float64))) + 1e-12)
        known = self._floor_db if not math.isnan(self._floor_db) else max(level_db, s.least_db)
        self._floor_db = max(min(level_db, known + self._rise_db), s.least_db - s.above_noise_db)
        return level_db > max(self._floor_db + s.above_noise_db, s.least_db) + extra_db


class WebRtcDetector:
    """WebRTC's detector, by the package webrtcvad; frames of 10 or 20 ms."""

    def __init__(self, settings: ActivitySettings, frame_ms: float) -> None:
        """Raises MissingExtraError without the package, ConfigError for another length of frame."""
        if frame_ms not in (10.0, 20.0):
            raise ConfigError(f"'activity.kind': got webrtc with frames of {frame_ms} ms, expected 10 or 20")
        try:
            import webrtcvad
        except ImportError as error:
            raise MissingExtraError("WebRTC's voice activity", "voice", str(error)) from error
        self._judge: Any = webrtcvad.Vad(settings.aggressiveness)

    def speaks(self, frame: Floats, extra_db: float) -> bool:
        """As WebRTC says; the sound of an answer is taken for quieter than it is."""
        scaled = np.clip(frame * np.float32(10.0 ** (-extra_db / 20.0)), -1.0, 1.0)
        return bool(self._judge.is_speech(np.rint(scaled * 32_767).astype("<i2").tobytes(), 16_000))


class Always:
    """There is always speech."""

    def speaks(self, frame: Floats, extra_db: float) -> bool:
        """True."""
        return True


def make_detector(settings: ActivitySettings, frame_ms: float) -> Detector | None:
    """The settings' detector; None where a button says it."""
    if settings.kind == "push":
        return None
    if settings.kind == "always":
        return Always()
    return (WebRtcDetector if settings.kind == "webrtc" else EnergyDetector)(settings, frame_ms)


class SpeechGate:
    """Begins after `start_ms` of speech in a row, ends after `end_ms` of silence in a row."""

    def __init__(self, settings: ActivitySettings, frame_ms: float) -> None:
        self._start = max(1, math.ceil(settings.start_ms / frame_ms))
        self._end = max(1, math.ceil(settings.end_ms / frame_ms))
        self.open = False
        self._run = 0  # frames in a row that speak for a change

    def take(self, speaks: bool) -> bool:
        """Whether the gate has just changed."""
        self._run = self._run + 1 if speaks != self.open else 0
        if self._run < (self._end if self.open else self._start):
            return False
        self.open = not self.open
        self._run = 0
        return True

    def close(self) -> None:
        """Silence from now on."""
        self.open = False
        self._run = 0
