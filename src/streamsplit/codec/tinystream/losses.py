"""What a decoded sound is compared by: mel spectra at several resolutions, and a little of the waveform itself."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from streamsplit.audio.mel import triangle_filters

FLOOR = 1e-4  # of a mel magnitude, where a sine at full scale has 1
_DECIBELS = 20.0 / 2.302585092994046  # per unit of natural logarithm


class Scale(NamedTuple):
    """One resolution; the hop is a quarter of `fft`."""

    fft: int  # samples
    bands: int


SCALES = (Scale(256, 20), Scale(512, 40), Scale(1024, 80), Scale(2048, 80))


class MelDistance(nn.Module):
    """Mean |difference| in dB of 20 log10 of mel magnitudes, over bands, frames and scales alike."""

    def __init__(self, sample_rate: int = 16_000, scales: tuple[Scale, ...] = SCALES) -> None:
        super().__init__()
        self.scales = scales
        for scale in scales:
            filters = triangle_filters(sample_rate, scale.fft, scale.bands, 0.0, sample_rate / 2)
            shares = torch.from_numpy(filters / filters.sum(1, keepdims=True))  # a band's magnitude is a mean
            self.register_buffer(f"filters{scale.fft}", shares, persistent=False)
            self.register_buffer(f"window{scale.fft}", torch.hann_window(scale.fft), persistent=False)

    def forward(self, audio: Tensor, reference: Tensor) -> Tensor:
        """Distance in dB of sounds [b, 1, n] from their references, n at least the longest window."""
        pairs = zip(self.spectra(audio), self.spectra(reference), strict=True)
        return torch.stack([(one - other).abs().mean() for one, other in pairs]).mean()

    def spectra(self, audio: Tensor) -> list[Tensor]:
        """Mel magnitudes in dB [b, bands, frames], scale by scale; floor -80 dB."""
        levels = []
        for scale in self.scales:
            window: Tensor = getattr(self, f"window{scale.fft}")
            filters: Tensor = getattr(self, f"filters{scale.fft}")
            spectrum = torch.stft(audio[:, 0], scale.fft, scale.fft // 4, window=window, return_complex=True)
            power = spectrum.real.square() + spectrum.imag.square()
            magnitude = torch.sqrt(power + 1e-14) * (2.0 / float(window.sum()))
            levels.append(_DECIBELS * torch.log((filters @ magnitude).clamp(min=FLOOR)))
        return levels


def waveform_distance(audio: Tensor, reference: Tensor) -> Tensor:
    """Mean |difference| of samples over the mean |sample| of the reference, item by item; silence weighs by a floor."""
    level = reference.abs().mean((1, 2), keepdim=True).clamp(min=1e-3)
    return ((audio - reference).abs() / level).mean()
