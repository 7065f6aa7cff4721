"""Discriminators over complex spectra at several resolutions, with feature matching (Defossez et al. 2022, 3.4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

FFTS = (256, 512, 1024)


class Verdict(NamedTuple):
    """What one discriminator says."""

    scores: Tensor  # [b, 1, t, f], above 0: real
    features: list[Tensor]  # of its layers


class SpectralDiscriminator(nn.Module):
    """Convolutions over real and imaginary part of one spectrum, narrowing in frequency."""

    window: Tensor

    def __init__(self, fft: int, channels: int = 16) -> None:
        super().__init__()
        self.fft = fft
        self.register_buffer("window", torch.hann_window(fft), persistent=False)
        widths = [2, channels, channels, channels, channels]
        self.layers = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(nn.Conv2d(inputs, outputs, (3, 9), (1, stride), padding=(1, 4)))
            for inputs, outputs, stride in zip(widths, widths[1:], (1, 2, 2, 2), strict=False)
        )
        self.last = nn.utils.parametrizations.weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, audio: Tensor) -> Verdict:
        """Scores of sounds [b, 1, n]; the spectrum is held by the root of its magnitude, so that quiet parts count."""
        spectrum = torch.stft(
            audio[:, 0], self.fft, self.fft // 4, window=self.window, return_complex=True, normalized=True
        )
        h = torch.stack([spectrum.real, spectrum.imag], 1).transpose(2, 3)  # [b, 2, t, f]
        h = h * (h.square().sum(1, keepdim=True) + 1e-8) ** -0.25
        features = []
        for layer in self.layers:
            h = functional.leaky_relu(layer(h), 0.2)
            features.append(h)
        return Verdict(self.last(h), features)


class Discriminators(nn.Module):
    """One per resolution."""

    def __init__(self, channels: int = 16, ffts: tuple[int, ...] = FFTS) -> None:
        super().__init__()
        self.each = nn.ModuleList(SpectralDiscriminator(fft, channels) for fft in ffts)

    def forward(self, audio: Tensor) -> list[Verdict]:
        """All verdicts on sounds [b, 1, n]."""
        return [discriminator(audio) for discriminator in self.each]


def discriminator_loss(real: list[Verdict], decoded: list[Verdict]) -> Tensor:
    """Hinge loss: real above 1, decoded below -1; the mean over discriminators."""
    return torch.stack(
        [
            functional.relu(1 - one.scores).mean() + functional.relu(1 + other.scores).mean()
            for one, other in zip(real, decoded, strict=True)
        ]
    ).mean()


def adversarial_loss(decoded: list[Verdict]) -> Tensor:
    """Hinge loss of what is to be taken for real."""
    return torch.stack([functional.relu(1 - verdict.scores).mean() for verdict in decoded]).mean()


def feature_matching_loss(real: list[Verdict], decoded: list[Verdict]) -> Tensor:
    """Mean |difference| of features over the mean |feature| of the real sound, layer by layer."""
    terms = [
        (one.detach() - other).abs().mean() / one.detach().abs().mean().clamp(min=1e-6)
        for verdict, answer in zip(real, decoded, strict=True)
        for one, other in zip(verdict.features, answer.features, strict=True)
    ]
    return torch.stack(terms).mean()
