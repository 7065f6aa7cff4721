"""Views of windows: each side alone does what it says, and nothing where it is switched off."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from streamsplit.audio.logmel import LogMelSettings
from streamsplit.audio.mel import hz_to_mel, mel_to_hz
from streamsplit.refinement.views import ViewSettings, another_view, isolated

FLOOR = math.log(LogMelSettings().floor)
NOTHING = {"warp": 0.0, "stretch": 0.0, "shift": 0.0, "equaliser": 0.0, "gain": 0.0, "noise": 0.0, "mask_bands": 0}


def view(x: torch.Tensor, seed: int = 0, **one: float) -> torch.Tensor:
    return another_view(x, ViewSettings(**{**NOTHING, **one}), torch.Generator().manual_seed(seed))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(-6, -2, (4, 128, 60)).astype(np.float32))


def test_with_everything_off_a_view_is_what_was_heard(x):
    torch.testing.assert_close(view(x), x, atol=2e-3, rtol=0)


def test_the_same_generator_gives_the_same_view_and_windows_differ_in_theirs(x):
    first, again = (another_view(x, ViewSettings(), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    alike = another_view(x[:1].repeat(2, 1, 1), ViewSettings(), torch.Generator().manual_seed(3))
    assert (alike[0] - alike[1]).abs().max() > 0.5


def test_a_warp_multiplies_frequencies():
    bands = torch.full((1, 128, 20), FLOOR)
    bands[0, 60] = 0.0  # a tone
    analysis = LogMelSettings()
    edges = hz_to_mel(np.array([analysis.low_hz, analysis.high_hz]))
    mels = np.linspace(edges[0], edges[1], 130)[1:-1]
    moved = {int(view(bands, seed, warp=0.12)[0, :, 5].argmax()) for seed in range(40)}
    assert min(moved) < 58 and max(moved) > 62
    hz = float(mel_to_hz(mels[60:61])[0])
    for band in moved:
        assert abs(math.log(float(mel_to_hz(mels[band : band + 1])[0]) / hz)) < 0.12 + 0.04, (
            "by at most the factor, and half a band"
        )


def test_gain_moves_a_window_as_a_whole(x):
    change = view(x, gain=1.0) - x
    assert torch.allclose(change.std((1, 2)), torch.zeros(4), atol=2e-3)
    assert change.mean((1, 2)).abs().min() > 1e-3


def test_an_equaliser_is_smooth_over_bands_and_the_same_at_all_times(x):
    change = view(x, equaliser=1.0) - x
    assert torch.allclose(change, change[:, :, :1].expand_as(change), atol=5e-3)
    assert change[:, :, 0].diff(dim=1).abs().max() < 0.3 < change[:, :, 0].std(1).min() * 2


def test_silence_stays_silent_but_for_noise(x):
    silent = torch.full((2, 128, 30), FLOOR)
    assert torch.equal(view(silent, gain=2.0, equaliser=2.0), silent)
    noisy = view(silent, noise=6.0)
    assert noisy.min() >= FLOOR and noisy.max() < FLOOR + 8
    assert (noisy > FLOOR + 0.1).any()


def test_a_mask_replaces_one_run_of_bands_by_the_mean(x):
    masked = view(x, mask_bands=16)
    for before, after in zip(x, masked, strict=True):
        changed = np.flatnonzero(((after - before).abs() > 2e-2).any(1).numpy())
        assert len(changed) < 16
        if len(changed):
            assert np.array_equal(changed, np.arange(changed[0], changed[-1] + 1))
            assert after[changed[0]].std() < 1e-4


def test_an_isolated_stretch_is_kept_and_the_rest_is_silence(x):
    y = isolated(x, torch.Generator().manual_seed(0), 10, 20)
    for before, after in zip(x, y, strict=True):
        kept = np.flatnonzero((after != FLOOR).all(0).numpy())
        assert 9 <= len(kept) <= 21
        assert np.array_equal(kept, np.arange(kept[0], kept[-1] + 1))
        assert torch.equal(after[:, kept], before[:, kept])
