"""What synthetic sounds are made of: coloured noise, harmonic tones, strikes, slow curves, room and microphone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Rng = np.random.Generator

RATE_HZ = 16_000


def coloured_noise(
    samples: int,
    rng: Rng,
    tilt_db: float,
    *,
    low_hz: float = 20.0,
    high_hz: float = 8_000.0,
    peaks: Sequence[tuple[float, float, float]] = (),
) -> Floats:
    """Gaussian noise [n] of RMS about 1, `tilt_db` per octave, band-limited, with `peaks` (Hz, octaves, dB)."""
    size = fast_length(samples)
    hz = np.fft.rfftfreq(size, 1.0 / RATE_HZ)
    octaves = np.log2(np.maximum(hz, 10.0) / 1_000.0)
    gain_db = tilt_db * octaves
    for centre_hz, width_octaves, peak_db in peaks:
        gain_db += peak_db * np.exp(-0.5 * ((octaves - np.log2(centre_hz / 1_000.0)) / width_octaves) ** 2)
    gain = np.exp2(gain_db / 6.02) / np.sqrt(1.0 + (low_hz / np.maximum(hz, 1.0)) ** 4)
    gain /= np.sqrt(1.0 + (hz / high_hz) ** 8)
    gain /= np.sqrt(np.mean(gain**2))
    spectrum = rng.standard_normal(2 * len(hz), np.float32).view(np.complex64) * gain.astype(np.float32)
    return (np.fft.irfft(spectrum, size)[:samples] * np.sqrt(size / 2)).astype(np.float32)


def harmonic_tone(f0_hz: Floats, amplitudes: Floats, rng: Rng) -> Floats:
    """A tone [n] with fundamental `f0_hz` [n] and harmonic `amplitudes` [k] or [k, n], as far as 7.5 kHz."""
    keep = max(1, min(len(amplitudes), int(7_500.0 / max(float(np.max(f0_hz)), 1.0))))
    phase = np.mod(np.cumsum(f0_hz, dtype=np.float64) * (2.0 * np.pi / RATE_HZ), 2.0 * np.pi).astype(np.float32)
    offsets = rng.uniform(0.0, 2.0 * np.pi, keep).astype(np.float32)
    numbers = np.arange(1, keep + 1, dtype=np.float32)
    waves = np.sin(numbers[:, None] * phase + offsets[:, None])
    if amplitudes.ndim == 1:
        return np.asarray(amplitudes[:keep] @ waves, np.float32)
    return np.asarray(np.einsum("kn,kn->n", amplitudes[:keep], waves), np.float32)


def struck(samples: int, hz: Floats, decay_s: Floats, amplitudes: Floats) -> Floats:
    """Damped resonances [n] that start at the first sample."""
    time_s = np.arange(samples, dtype=np.float32) / RATE_HZ
    waves = np.sin(2.0 * np.pi * hz[:, None] * time_s) * np.exp(-time_s / decay_s[:, None])
    return np.asarray(amplitudes @ waves, np.float32)


def noise_burst(samples: int, rng: Rng, centre_hz: float, octaves: float, decay_s: float, attack_s: float) -> Floats:
    """A burst [n] of noise around `centre_hz`, `octaves` wide, that rises and decays exponentially."""
    peaks = ((centre_hz, octaves, 30.0),)
    noise = coloured_noise(samples, rng, -1.0, peaks=peaks)
    time_s = np.arange(samples, dtype=np.float32) / RATE_HZ
    return np.asarray(noise * np.exp(-time_s / decay_s) * (1.0 - np.exp(-time_s / attack_s)), np.float32)


def slow_curve(samples: int, rng: Rng, knots_per_s: float, low: float, high: float) -> Floats:
    """A random curve [n] between `low` and `high` that turns about `knots_per_s` times a second."""
    knots = max(2, int(samples / RATE_HZ * knots_per_s) + 2)
    values = rng.uniform(low, high, knots)
    return np.interp(np.linspace(0, knots - 1, samples), np.arange(knots), values).astype(np.float32)


def swell(samples: int, rise_s: float, fall_s: float) -> Floats:
    """An envelope [n] with raised-cosine edges."""
    envelope = np.ones(samples, np.float32)
    rise, fall = (min(samples, max(1, int(s * RATE_HZ))) for s in (rise_s, fall_s))
    envelope[:rise] *= np.sin(0.5 * np.pi * (np.arange(rise) + 0.5) / rise).astype(np.float32) ** 2
    envelope[samples - fall :] *= np.cos(0.5 * np.pi * (np.arange(fall) + 0.5) / fall).astype(np.float32) ** 2
    return envelope


def add_at(signal: Floats, grain: Floats, at: int, gain: float = 1.0) -> None:
    """Adds `grain` to `signal` in place from sample `at` on; what lies outside is cut."""
    start, stop = max(at, 0), min(at + len(grain), len(signal))
    if start < stop:
        signal[start:stop] += np.float32(gain) * grain[start - at : stop - at]


def rms(signal: Floats) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(signal, dtype=np.float64)))) if len(signal) else 0.0


def unit_rms(signal: Floats) -> Floats:
    """The signal scaled to RMS 1 (silence stays silence)."""
    level = rms(signal)
    return signal if level < 1e-9 else np.asarray(signal / level, np.float32)


def decibels(db: float) -> float:
    """Amplitude ratio of a level difference."""
    return float(10.0 ** (db / 20.0))


def room_and_microphone(signal: Floats, rng: Rng) -> Floats:
    """The signal [n] as a random microphone in a random room hears it: coloration of about 2 dB, reverberation."""
    tail = int(0.4 * RATE_HZ)
    size = fast_length(len(signal) + tail)
    hz = np.fft.rfftfreq(size, 1.0 / RATE_HZ)
    knots_hz = np.geomspace(60.0, 8_000.0, 7)
    gain_db = np.interp(np.log(np.maximum(hz, 1.0)), np.log(knots_hz), rng.normal(0.0, 2.0, len(knots_hz)))
    time_s = np.arange(tail, dtype=np.float32) / RATE_HZ
    reverberation_s = rng.uniform(0.08, 0.5)
    response = rng.standard_normal(tail, np.float32) * np.exp(-6.9 * time_s / reverberation_s)
    response *= rng.uniform(0.0, 0.6) / np.sqrt(np.sum(response**2))
    response[0] += 1.0
    transfer = np.fft.rfft(response.astype(np.float32), size) * np.exp2(gain_db / 6.02).astype(np.float32)
    return np.fft.irfft(np.fft.rfft(signal, size) * transfer, size)[: len(signal)].astype(np.float32)


def fast_length(samples: int) -> int:
    """A transform length of at least `samples` with small prime factors."""
    power = 1 << max(3, int(max(samples, 1) - 1).bit_length() - 1)
    step = power // 8
    return max(power, -(-samples // step) * step)
