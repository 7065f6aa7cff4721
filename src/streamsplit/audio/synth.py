"""Synthetic soundscapes: endless labelled audio that drifts from one kind of sound to the next, fixed by its seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from streamsplit.audio.sounds import SOUNDS, room_tone
from streamsplit.audio.waves import RATE_HZ, Floats, Rng, decibels, room_and_microphone, unit_rms
from streamsplit.config import nearest
from streamsplit.errors import AudioError

LABELS: tuple[str, ...] = tuple(SOUNDS)

_SHORTEST_S = 2.0  # of a segment
_FADE_S = (0.3, 1.5)  # length of the crossfade between two segments
_PEAK = 0.95


class Segment(NamedTuple):
    """A stretch of a soundscape where `label` is the louder of what is heard; it ends in the middle of a crossfade."""

    start_s: float
    end_s: float
    label: str


def render(label: str, seconds: float, rng: Rng) -> Floats:
    """A clean sound [n] of a kind, with random parameters, RMS 0.05 unless that would clip; raises AudioError."""
    if label not in SOUNDS:
        raise AudioError(f"got label '{label}'; {nearest(label, SOUNDS)}")
    return _levelled(SOUNDS[label](_samples(seconds), rng), 0.05)


def render_scene(
    label: str,
    seconds: float,
    rng: Rng,
    snr_db: tuple[float, float] = (0.0, 20.0),
    level_dbfs: tuple[float, float] = (-45.0, -25.0),
) -> Floats:
    """A sound [n] as a device records it: over a background at a random ratio, in a random room, through a random
    microphone at a random level (the same levels for every kind, so loudness tells nothing)."""
    sound = unit_rms(render(label, seconds, rng))
    background = unit_rms(room_tone(len(sound), rng))
    mixed = sound + np.float32(decibels(-rng.uniform(*snr_db))) * background
    return _levelled(room_and_microphone(mixed, rng), decibels(rng.uniform(*level_dbfs)))


class Soundscape:
    """An endless recording: segments of random kind and length that fade into each other, in a mix of kinds that drifts
    over minutes. Samples depend on the seed alone, not on the sizes in which they are read."""

    def __init__(
        self,
        seed: int = 0,
        *,
        sample_rate_hz: int = RATE_HZ,
        classes: Sequence[str] = LABELS,
        mean_segment_s: float = 6.0,
        snr_db: tuple[float, float] = (0.0, 20.0),
        level_dbfs: tuple[float, float] = (-45.0, -25.0),
    ) -> None:
        if sample_rate_hz != RATE_HZ:
            raise AudioError(f"got {sample_rate_hz} Hz, soundscapes are made at {RATE_HZ} Hz; resample them")
        if not classes:
            raise AudioError("got no classes, expected at least one of " + ", ".join(LABELS))
        for label in classes:
            if label not in SOUNDS:
                raise AudioError(f"got class '{label}'; {nearest(label, SOUNDS)}")
        if not mean_segment_s >= _SHORTEST_S:
            raise AudioError(f"got mean_segment_s {mean_segment_s}, expected at least {_SHORTEST_S:g}")
        self.classes = tuple(classes)
        self.mean_segment_s = mean_segment_s
        self.snr_db = snr_db
        self.level_dbfs = level_dbfs
        self._seed = seed
        drift = np.random.default_rng([seed, 0])
        self._period_s = drift.uniform(120.0, 600.0, len(self.classes))
        self._phase = drift.uniform(0.0, 2.0 * np.pi, len(self.classes))
        self._segments: list[tuple[int, int, str]] = []  # start, stop in samples, label
        self._ready = np.zeros(0, np.float32)  # made but not read
        self._open = np.zeros(0, np.float32)  # the last segment's part that the next one fades into
        self._position = 0

    @property
    def truth(self) -> list[Segment]:
        """What is heard when, as far as the soundscape has been made (a little beyond what was read)."""
        return [Segment(start / RATE_HZ, stop / RATE_HZ, label) for start, stop, label in self._segments]

    def label_at(self, start_s: float, end_s: float) -> str | None:
        """The label that covers more than half of the stretch, None if none does or it has not been made yet."""
        return self._majority(round(start_s * RATE_HZ), round(end_s * RATE_HZ))

    def read(self, samples: int) -> Floats:
        """The next samples [n]."""
        while len(self._ready) < samples:
            self._ready = np.concatenate((self._ready, self._next_segment()))
        taken, self._ready = self._ready[:samples], self._ready[samples:]
        self._position += samples
        return taken

    def blocks(self, block_samples: int) -> Iterator[tuple[Floats, str | None]]:
        """Endless blocks [block_samples] with the label of more than half of each."""
        while True:
            start = self._position
            audio = self.read(block_samples)
            yield audio, self._majority(start, start + block_samples)

    def _majority(self, start: int, stop: int) -> str | None:
        covered: dict[str, int] = {}
        for first, last, label in reversed(self._segments):
            if last <= start:
                break
            overlap = min(stop, last) - max(start, first)
            if overlap > 0:
                covered[label] = covered.get(label, 0) + overlap
        best = max(covered, key=lambda name: covered[name], default=None)
        return best if best is not None and 2 * covered[best] > stop - start else None

    def _next_segment(self) -> Floats:
        """Makes one more segment; returns the samples that are final with it."""
        number = len(self._segments)
        rng = np.random.default_rng([self._seed, 1, number])
        start = self._segments[-1][1] if self._segments else 0
        label = self._draw_label(start / RATE_HZ, rng)
        length = _samples(_SHORTEST_S + rng.exponential(self.mean_segment_s - _SHORTEST_S))
        fade_in = len(self._open)
        fade_out = 2 * (_samples(rng.uniform(*_FADE_S)) // 2)
        # The segment sounds from half a fade before its start to half a fade after its end.
        total = fade_in // 2 + length + fade_out // 2
        audio = render_scene(label, total / RATE_HZ, rng, self.snr_db, self.level_dbfs)[:total]
        if fade_in:
            angle = np.linspace(0.0, 0.5 * np.pi, fade_in, dtype=np.float32)
            audio[:fade_in] = np.sin(angle) * audio[:fade_in] + np.cos(angle) * self._open
        self._open = audio[total - fade_out :].copy()
        self._segments.append((start, start + length, label))
        return audio[: total - fade_out]

    def _draw_label(self, time_s: float, rng: Rng) -> str:
        weights = np.exp(1.2 * np.sin(2.0 * np.pi * time_s / self._period_s + self._phase))
        if self._segments and len(set(self.classes)) > 1:
            weights[[label == self._segments[-1][2] for label in self.classes]] = 0.0
        return self.classes[int(rng.choice(len(self.classes), p=weights / weights.sum()))]


def _samples(seconds: float) -> int:
    if not 0.0 < seconds < 1e6:
        raise AudioError(f"got {seconds} s of sound, expected more than 0")
    return max(1, round(seconds * RATE_HZ))


def _levelled(audio: Floats, level: float) -> Floats:
    """The audio at RMS `level`, or lower where its peak would pass 0.95."""
    audio = unit_rms(audio)
    peak = float(np.max(np.abs(audio)))
    return np.asarray(audio * np.float32(min(level, _PEAK / max(peak, 1e-9))), np.float32)
