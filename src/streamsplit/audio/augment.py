"""Augmentations of a window, as samples or as log-mel features, in three levels by what the device can spare.

v1's augmentations. BASIC: time shift, gain. STANDARD: also a frequency mask and noise. EXTENDED: also a frequency roll.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from streamsplit.audio.logmel import LogMelSettings, mel_filterbank
from streamsplit.config import Settings, setting
from streamsplit.errors import AudioError, ConfigError
from streamsplit.wire.media import Resolution

Floats = NDArray[np.float32]


class AugmentLevel(IntEnum):
    """How much is done to a window; every level includes the ones before it."""

    BASIC = 0
    STANDARD = 1
    EXTENDED = 2


def budget_level(cpu_free: float, mem_free: float) -> AugmentLevel:
    """The level for a budget 0.7 cpu_free + 0.3 mem_free (shares in 0..1), cut at 0.3 and 0.7."""
    budget = 0.7 * cpu_free + 0.3 * mem_free
    return AugmentLevel.BASIC if budget < 0.3 else AugmentLevel.STANDARD if budget < 0.7 else AugmentLevel.EXTENDED


@dataclass(frozen=True, kw_only=True)
class AugmentSettings(Settings):
    """Strengths; widths are shares of the bands, so that they mean the same in both resolutions."""

    shift_samples: int = setting(100, low=0, high=8_000)
    taper_samples: int = setting(40, low=0, high=4_000)
    gain_sigma: float = setting(0.1, low=0.0, high=1.0)  # of the gain's natural logarithm
    gain_profile: float = setting(0.05, low=0.0, high=0.5)
    peak_limit: float = setting(0.95, low=0.1, high=1.0)
    mask_narrowest: float = setting(0.05, low=0.0, high=1.0)
    mask_widest: float = setting(0.15, low=0.0, high=1.0)
    mask_budget: float = setting(0.15, low=0.0, high=1.0)
    noise_std: float = setting(0.01, low=0.0, high=1.0)
    roll_share: float = setting(0.03, low=0.0, high=0.5)

    def check(self) -> None:
        """Refuses a widest mask below the narrowest."""
        if self.mask_widest < self.mask_narrowest:
            raise ConfigError(f"'mask_widest': got {self.mask_widest}, allowed >= {self.mask_narrowest}")


class Augmenter:
    """Draws augmented copies; inputs are never changed."""

    def __init__(
        self,
        settings: AugmentSettings | None = None,
        rng: np.random.Generator | None = None,
        analysis: LogMelSettings | None = None,
    ) -> None:
        self.settings = settings or AugmentSettings()
        self.rng = rng if rng is not None else np.random.default_rng(0)
        self._analysis = analysis or LogMelSettings()
        self._noise_power = {kind: self._white_noise_power(kind) for kind in Resolution}

    def audio(self, audio: Floats, level: AugmentLevel = AugmentLevel.STANDARD) -> Floats:
        """An augmented copy of samples [n]: shift, gain, from STANDARD on noise; frequency steps need features."""
        result = self._shift(np.asarray(audio, np.float32))
        result = result * self._gain(len(result))
        if level >= AugmentLevel.STANDARD:
            noise = self.rng.standard_normal(len(result), np.float32)
            result = result + np.float32(self.settings.noise_std) * noise
        peak = float(np.max(np.abs(result), initial=0.0))
        if peak > self.settings.peak_limit:
            result = result * np.float32(self.settings.peak_limit / peak)
        return np.asarray(result, np.float32)

    def features(self, x: Floats, level: AugmentLevel = AugmentLevel.STANDARD) -> Floats:
        """An augmented copy of log-mel features [f, t], full or reduced.

        Gain adds its doubled logarithm, noise adds its power to every band. The time shift is left out: 100 samples are
        less than a frame.
        """
        x = np.asarray(x, np.float32)
        noise_power = next((power for power in self._noise_power.values() if len(power) == len(x)), None)
        if x.ndim != 2 or noise_power is None:
            allowed = " or ".join(str(len(power)) for power in self._noise_power.values())
            raise AudioError(f"got features of shape {x.shape}, expected [{allowed} bands, t]")
        result: Floats = np.asarray(x + 2.0 * np.log(self._gain(x.shape[1])), np.float32)
        if level >= AugmentLevel.EXTENDED:
            result = self._roll(result)
        if level >= AugmentLevel.STANDARD:
            # A band sums few bins, so its noise power scatters about the mean.
            noise = noise_power * self.rng.gamma(2.0, 0.5, x.shape).astype(np.float32)
            result = np.logaddexp(result, np.log(noise + np.float32(1e-12)))
            self._mask(result, x)
        return result

    def _shift(self, audio: Floats) -> Floats:
        """Moves the samples by up to `shift_samples` either way; the gap is silent, the edges are sin^2 tapers."""
        limit = min(self.settings.shift_samples, max(0, len(audio) - 1))
        by = int(self.rng.integers(-limit, limit + 1))
        shifted = np.zeros_like(audio)
        if by >= 0:
            shifted[by:] = audio[: len(audio) - by]
        else:
            shifted[:by] = audio[-by:]
        taper = min(self.settings.taper_samples, (len(audio) - abs(by)) // 2)
        if taper:
            ramp = np.sin(0.5 * np.pi * (np.arange(taper) + 0.5) / taper).astype(np.float32) ** 2
            start, stop = max(by, 0), len(audio) + min(by, 0)
            shifted[start : start + taper] *= ramp
            shifted[stop - taper : stop] *= ramp[::-1]
        return shifted

    def _gain(self, length: int) -> Floats:
        """A log-normal gain times one slow sine period of random phase."""
        gain = np.exp(self.rng.normal(0.0, self.settings.gain_sigma))
        phase = self.rng.uniform(0.0, 2.0 * np.pi)
        sine = np.sin(np.linspace(0.0, 2.0 * np.pi, length) + phase)
        return (gain * (1.0 + self.settings.gain_profile * sine)).astype(np.float32)

    def _roll(self, x: Floats) -> Floats:
        """Moves the bands up or down; the edge band fills the gap (wrapping hiss into the bass would be no sound)."""
        bands = len(x)
        limit = round(self.settings.roll_share * bands)
        by = int(self.rng.integers(-limit, limit + 1))
        return np.asarray(x[np.clip(np.arange(bands) - by, 0, bands - 1)])

    def _mask(self, result: Floats, energy_of: Floats) -> None:
        """Sets groups of neighbouring bands to the window's mean, in place, until the budget is used up.

        Centres are drawn with the bands' share of the energy, so a mask hides something that was there.
        """
        bands = len(result)
        power = np.exp(energy_of.astype(np.float64)).mean(axis=1)
        fill = float(result.mean())
        budget = self.settings.mask_budget * bands
        narrowest = max(1, round(self.settings.mask_narrowest * bands))
        while budget >= narrowest:
            widest = min(int(budget), max(narrowest, int(self.settings.mask_widest * bands)))
            width = int(self.rng.integers(narrowest, widest + 1))
            centre = int(self.rng.choice(bands, p=power / power.sum()))
            first = min(max(0, centre - width // 2), bands - width)
            result[first : first + width] = fill
            budget -= width

    def _white_noise_power(self, resolution: Resolution) -> Floats:
        """Mean mel power [f, 1] of white noise with `noise_std`."""
        n = self._analysis.window_samples
        window = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(n) / n)
        filters = mel_filterbank(self._analysis, resolution)
        power = self.settings.noise_std**2 * np.sum(window**2) * filters.sum(axis=1, keepdims=True)
        return np.asarray(power, np.float32)
