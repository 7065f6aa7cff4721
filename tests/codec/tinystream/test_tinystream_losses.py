"""Losses with known answers, and discriminators that can tell two sounds apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamsplit.codec.tinystream.discriminators import (
    Discriminators,
    Verdict,
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
)
from streamsplit.codec.tinystream.losses import SCALES, MelDistance, Scale, waveform_distance


def noise(samples: int = 8_000, seed: int = 0, batch: int = 1) -> torch.Tensor:
    return 0.1 * torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(seed))


def test_equal_sounds_are_nothing_apart_and_half_the_level_is_six_decibels() -> None:
    distance, audio = MelDistance(), noise()
    assert distance(audio, audio) == 0
    assert distance(0.5 * audio, audio).item() == pytest.approx(20 * np.log10(2), abs=0.05)


def test_a_full_scale_sine_is_at_zero_decibels_and_silence_at_the_floor() -> None:
    distance = MelDistance(scales=(Scale(1024, 80),))
    time = torch.arange(16_000) / 16_000
    (levels,) = distance.spectra(torch.sin(2 * torch.pi * 1_000 * time)[None, None])
    middle = levels[0, :, 5:-5]
    assert -6.0 < middle.max() <= 0.0  # a band is the mean over its bins
    (silence,) = distance.spectra(torch.zeros(1, 1, 16_000))
    assert torch.allclose(silence, torch.tensor(-80.0), atol=1e-3)


def test_every_scale_counts_the_same() -> None:
    one, other = noise(seed=1), noise(seed=2)
    alone = [MelDistance(scales=(scale,))(one, other).item() for scale in SCALES]
    assert MelDistance()(one, other).item() == pytest.approx(np.mean(alone), rel=1e-5)


def test_waveform_distance_is_relative_to_the_level() -> None:
    audio = noise(batch=2) * torch.tensor([1.0, 0.3])[:, None, None]
    assert waveform_distance(torch.zeros_like(audio), audio).item() == pytest.approx(1.0)
    assert waveform_distance(1.1 * audio, audio).item() == pytest.approx(0.1, rel=1e-4)


def test_hinge_losses_and_feature_matching_have_their_known_values() -> None:
    def verdict(score: float, feature: float) -> Verdict:
        return Verdict(torch.full((1, 1, 2, 2), score), [torch.full((1, 3), feature)])

    assert discriminator_loss([verdict(2.0, 0)], [verdict(-2.0, 0)]) == 0
    assert discriminator_loss([verdict(0.5, 0)], [verdict(0.25, 0)]).item() == pytest.approx(0.5 + 1.25)
    assert adversarial_loss([verdict(-1.0, 0), verdict(3.0, 0)]).item() == pytest.approx(1.0)
    assert feature_matching_loss([verdict(0, 2.0)], [verdict(0, 3.0)]).item() == pytest.approx(0.5)


def test_discriminators_learn_to_tell_noise_from_a_tone() -> None:
    torch.manual_seed(0)
    judges = Discriminators(4, (128, 256))
    optimiser = torch.optim.Adam(judges.parameters(), 3e-3)
    time = torch.arange(4_000) / 16_000
    tone = 0.1 * torch.sin(2 * torch.pi * 440 * time).expand(4, 1, -1)
    losses = []
    for seed in range(60):
        loss = discriminator_loss(judges(noise(4_000, seed, 4)), judges(tone))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 1.5
    assert losses[-1] < 0.3
