"""Augmentations: each stays within what the paper states (v1)."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplit.audio.augment import Augmenter, AugmentLevel, AugmentSettings, budget_level
from streamsplit.audio.logmel import log_mel
from streamsplit.errors import AudioError, ConfigError
from streamsplit.wire.media import Resolution

OFF = {
    "shift_samples": 0, "taper_samples": 0, "gain_sigma": 0.0, "gain_profile": 0.0, "mask_budget": 0.0,
    "noise_std": 0.0, "roll_share": 0.0,
}  # fmt: skip


def augmenter(seed: int = 0, **changes: float) -> Augmenter:
    return Augmenter(AugmentSettings(**{**OFF, **changes}), np.random.default_rng(seed))


def test_levels_follow_the_budget():
    assert budget_level(0.0, 0.9) is AugmentLevel.BASIC
    assert budget_level(0.3, 0.3) is AugmentLevel.STANDARD
    assert budget_level(0.5, 0.5) is AugmentLevel.STANDARD
    assert budget_level(0.9, 0.9) is AugmentLevel.EXTENDED


def test_the_time_shift_moves_at_most_100_samples_and_tapers_its_edges():
    audio = np.ones(2_000, np.float32)
    shifts = set()
    for seed in range(200):
        moved = augmenter(seed, shift_samples=100, taper_samples=40, peak_limit=1.0).audio(audio, AugmentLevel.BASIC)
        heard = np.flatnonzero(moved)
        assert len(moved) == 2_000 and 2_000 - len(heard) <= 100
        assert heard[0] == 0 or heard[-1] == 1_999
        shifts.add(heard[0] - (1_999 - heard[-1]))
        ramp = np.sin(0.5 * np.pi * (np.arange(40) + 0.5) / 40) ** 2
        np.testing.assert_allclose(moved[heard[0] : heard[0] + 40], ramp, atol=1e-6)
        np.testing.assert_allclose(moved[heard[-1] - 39 : heard[-1] + 1], ramp[::-1], atol=1e-6)
    assert min(shifts) < -90 and max(shifts) > 90 and len(shifts) > 80


def test_the_gain_is_log_normal_with_a_slow_profile_and_limited_peaks():
    audio = np.full(16_000, 0.1, np.float32)
    means, spans = [], []
    for seed in range(300):
        gain = augmenter(seed, gain_sigma=0.1, gain_profile=0.05).audio(audio, AugmentLevel.BASIC) / 0.1
        means.append(np.log(gain.mean()))
        spans.append((gain.max() - gain.min()) / gain.mean())
    assert np.std(means) == pytest.approx(0.1, rel=0.15)
    np.testing.assert_allclose(spans, 0.1, atol=1e-3)  # +-5 %
    loud = augmenter(1, gain_sigma=0.1, peak_limit=0.95).audio(np.full(100, 2.0, np.float32))
    assert np.abs(loud).max() <= 0.95 + 1e-6


def test_noise_comes_with_the_standard_level_at_its_strength():
    silence = np.zeros(50_000, np.float32)
    assert not augmenter(noise_std=0.01).audio(silence, AugmentLevel.BASIC).any()
    assert augmenter(noise_std=0.01).audio(silence, AugmentLevel.STANDARD).std() == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize("resolution", list(Resolution))
def test_noise_on_features_is_as_loud_as_noise_on_samples(resolution: Resolution):
    silence = np.zeros(16_240, np.float32)
    by_samples = log_mel(augmenter(noise_std=0.01).audio(silence), resolution=resolution)
    by_features = augmenter(noise_std=0.01).features(log_mel(silence, resolution=resolution))
    np.testing.assert_allclose(np.exp(by_features).mean(), np.exp(by_samples).mean(), rtol=0.05)


@pytest.mark.parametrize(("bands", "frames"), [(128, 100), (64, 50)])
def test_frequency_masks_are_5_to_15_percent_wide_keep_to_the_budget_and_follow_the_energy(bands: int, frames: int):
    x = np.full((bands, frames), -10.0, np.float32)
    x[: bands // 4] = 0.0
    hidden = np.zeros(bands)
    for seed in range(300):
        masked = np.flatnonzero(np.abs(augmenter(seed, mask_budget=0.15).features(x) - x).max(axis=1) > 1e-3)
        assert round(0.05 * bands) <= len(masked) <= 0.15 * bands
        hidden[masked] += 1
    assert hidden[: bands // 4].sum() > 5 * hidden[bands // 2 :].sum()


def test_the_roll_comes_with_the_extended_level_and_keeps_the_bands_in_order():
    x = np.repeat(np.arange(128, dtype=np.float32)[:, None], 10, axis=1)
    for seed in range(20):
        np.testing.assert_allclose(augmenter(seed, roll_share=0.03).features(x, AugmentLevel.STANDARD), x, atol=1e-6)
    moved = {
        int(augmenter(seed, roll_share=0.03).features(x, AugmentLevel.EXTENDED)[64, 0]) - 64 for seed in range(100)
    }
    assert moved == set(range(-4, 5))
    rolled = augmenter(3, roll_share=0.03).features(x, AugmentLevel.EXTENDED)
    assert (np.diff(rolled[:, 0]) >= 0).all()


def test_gain_on_features_is_gain_on_samples():
    audio = np.random.default_rng(0).standard_normal(16_240).astype(np.float32) * np.float32(0.1)
    by_samples = log_mel(augmenter(5, gain_sigma=0.3).audio(audio, AugmentLevel.BASIC)) - log_mel(audio)
    by_features = augmenter(5, gain_sigma=0.3).features(log_mel(audio), AugmentLevel.BASIC) - log_mel(audio)
    # the two draw in a different order, so compare what a gain is: one constant over all bands and frames
    assert by_samples.std() < 1e-3 and by_features.std() < 1e-3


@pytest.mark.parametrize("level", list(AugmentLevel))
def test_inputs_are_not_changed_and_the_same_generator_gives_the_same_result(level: AugmentLevel):
    audio = np.random.default_rng(0).standard_normal(16_240).astype(np.float32) * np.float32(0.1)
    features = log_mel(audio)
    kept = audio.copy(), features.copy()
    results = []
    for _ in range(2):
        chosen = Augmenter(rng=np.random.default_rng(7))
        results.append((chosen.audio(audio, level), chosen.features(features, level)))
    np.testing.assert_array_equal(audio, kept[0])
    np.testing.assert_array_equal(features, kept[1])
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)
        assert first.dtype == np.float32 and np.isfinite(first).all()
    assert results[0][1].shape == features.shape


def test_bad_shapes_and_settings_are_refused():
    with pytest.raises(AudioError, match="128 or 64"):
        Augmenter().features(np.zeros((100, 100), np.float32))
    with pytest.raises(ConfigError, match="mask_widest"):
        AugmentSettings(mask_narrowest=0.2, mask_widest=0.1)
