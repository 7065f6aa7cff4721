"""Views of log-mel windows for learning without labels: another throat, room, distance, pace, and neighbours cut off.

All work on a batch [b, f, t] (natural log) and draw from a torch Generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from streamsplit.audio.logmel import LogMelSettings
from streamsplit.audio.mel import hz_to_mel, mel_to_hz
from streamsplit.config import Settings, setting

_RIPPLES = 4  # cosines of a random equaliser
_NEAR_FLOOR = 0.5  # nepers: what is this close to the floor is silence, and stays so
_NOISE_RIPPLE = 0.3  # nepers, of the noise's level from frame to frame


@dataclass(frozen=True, kw_only=True)
class ViewSettings(Settings):
    """How far a view may be from what was heard; 0 leaves that side as it is."""

    warp: float = setting(0.12, low=0.0, high=0.5)  # +- log of the factor on the frequency axis: another vocal tract
    stretch: float = setting(0.15, low=0.0, high=0.5)  # +- log of the factor on the time axis
    shift: float = setting(0.05, low=0.0, high=1.0)  # +- of the window's length
    equaliser: float = setting(1.0, low=0.0)  # deviation of the first cosine over the bands, nepers of power
    gain: float = setting(1.0, low=0.0)  # deviation, nepers of power
    noise: float = setting(6.0, low=0.0)  # the added noise's level is up to this far above the floor
    mask_bands: int = setting(16, low=0, high=64)  # a run of up to so many bands is replaced by the window's mean


def another_view(x: Tensor, settings: ViewSettings, generator: torch.Generator) -> Tensor:
    """Each window of x [b, f, t] as another microphone might have heard its like."""
    b, f, t = x.shape
    floor = math.log(LogMelSettings().floor)
    y = _warped(x, settings, generator)
    silent = y <= floor + _NEAR_FLOOR
    if settings.equaliser:
        ripple = torch.arange(1, _RIPPLES + 1)[None, :, None]
        height = torch.randn(b, _RIPPLES, 1, generator=generator) * settings.equaliser / ripple.sqrt()
        phase = torch.rand(b, _RIPPLES, 1, generator=generator) * 2 * math.pi
        bands = torch.arange(f)[None, None]
        y = y + (height * torch.cos(math.pi * ripple * bands / f + phase)).sum(1)[:, :, None]
    y = y + settings.gain * torch.randn(b, 1, 1, generator=generator)
    y = torch.where(silent, torch.full_like(y, floor), y)
    if settings.noise:
        level = floor + settings.noise * torch.rand(b, 1, 1, generator=generator)
        y = torch.logaddexp(y, level + _NOISE_RIPPLE * torch.randn(b, 1, t, generator=generator))
    if settings.mask_bands:
        width = (torch.rand(b, generator=generator) * settings.mask_bands).long()
        start = (torch.rand(b, generator=generator) * (f - width)).long()
        band = torch.arange(f)[None]
        masked = (band >= start[:, None]) & (band < (start + width)[:, None])
        y = torch.where(masked[:, :, None], y.mean((1, 2), keepdim=True), y)
    return y.clamp_min(floor)


def isolated(x: Tensor, generator: torch.Generator, least: int = 25, most: int = 70) -> Tensor:
    """Each window of x [b, f, t] with silence around a stretch of `least` to `most` frames: a word on its own."""
    b, _, t = x.shape
    length = (torch.rand(b, 1, generator=generator) * (most - least) + least).clamp_max(t)
    start = torch.rand(b, 1, generator=generator) * (t - length)
    frame = torch.arange(t)[None]
    outside = (frame < start) | (frame > start + length)
    return x.masked_fill(outside[:, None], math.log(LogMelSettings().floor))


def _warped(x: Tensor, settings: ViewSettings, generator: torch.Generator) -> Tensor:
    """Frequency and time axes stretched, sampled bilinearly; what lies beyond the edge is as the edge."""
    b, f, t = x.shape
    analysis = LogMelSettings()
    low, high = hz_to_mel(np.array([analysis.low_hz, analysis.high_hz]))
    centres = np.linspace(float(low), float(high), f + 2)[1:-1]
    factor = torch.exp(settings.warp * _symmetric(generator, b, 1)).numpy()
    source = (hz_to_mel(mel_to_hz(centres)[None] * factor) - centres[0]) / (centres[-1] - centres[0]) * 2 - 1
    bands = torch.from_numpy(source.astype(np.float32))  # [b, f], the band to take for each, in -1..1
    pace = torch.exp(settings.stretch * _symmetric(generator, b, 1))
    frames = torch.linspace(-1, 1, t)[None] * pace + 2 * settings.shift * _symmetric(generator, b, 1)
    grid = torch.stack([frames[:, None, :].expand(b, f, t), bands[:, :, None].expand(b, f, t)], -1)
    warped = functional.grid_sample(x[:, None], grid, padding_mode="border", align_corners=True)
    return warped[:, 0]


def _symmetric(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator) * 2 - 1
