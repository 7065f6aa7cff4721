"""Log-mel features against librosa, and streaming against batch."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.audio.logmel import (
    LogMelSettings,
    StreamingLogMel,
    log_mel,
    mel_filterbank,
    reduce_resolution,
)
from streamsplit.audio.mel import hz_to_mel, mel_to_hz
from streamsplit.errors import AudioError, ConfigError
from streamsplit.wire.media import Resolution


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(samples).astype(np.float32) * np.float32(0.1)


def test_the_mel_scale_is_librosas():
    hz = np.linspace(0.0, 8_000.0, 200)
    np.testing.assert_allclose(hz_to_mel(hz), librosa.hz_to_mel(hz), atol=1e-9)
    np.testing.assert_allclose(mel_to_hz(hz_to_mel(hz)), hz, atol=1e-9)


def test_no_filter_is_empty_where_the_usual_construction_leaves_empty_ones():
    with pytest.warns(UserWarning, match="Empty filters"):
        usual = librosa.filters.mel(sr=16_000, n_fft=256, n_mels=128, fmin=80.0, fmax=8_000.0)
    assert (usual.sum(axis=1) == 0.0).sum() > 0
    coarse = mel_filterbank(LogMelSettings(window_samples=256, hop_samples=128, fft_samples=256))
    np.testing.assert_allclose(coarse.sum(axis=1) * 16_000 / 256, 1.0, atol=1e-5)
    for resolution, bands in ((Resolution.FULL, 128), (Resolution.REDUCED, 64)):
        filters = mel_filterbank(LogMelSettings(), resolution)
        assert filters.shape == (bands, 257)
        assert (filters >= 0.0).all()
        np.testing.assert_allclose(filters.sum(axis=1) * 16_000 / 512, 1.0, atol=1e-5)  # unit area, in Hz


@pytest.mark.parametrize(("fft_samples", "bound"), [(4_096, 0.045), (16_384, 0.0115)])
def test_filters_are_librosas_where_the_bins_are_fine(fft_samples: int, bound: float):
    ours = mel_filterbank(LogMelSettings(fft_samples=fft_samples))
    theirs = librosa.filters.mel(sr=16_000, n_fft=fft_samples, n_mels=128, fmin=80.0, fmax=8_000.0)
    assert np.abs(ours - theirs).max() < bound * theirs.max()


def test_filters_respond_to_their_own_frequency():
    edges = mel_to_hz(np.linspace(*hz_to_mel(np.array([80.0, 8_000.0])), 130))
    for band in (20, 60, 100, 127):
        tone = 0.5 * np.sin(2.0 * np.pi * edges[band + 1] * np.arange(8_000) / 16_000).astype(np.float32)
        strongest = log_mel(tone)[:, 10].argmax()
        assert abs(int(strongest) - band) <= 1


def test_the_spectrum_is_librosas():
    audio = noise(16_000)
    # librosa centres the 400-sample window in 512 points: 56 samples earlier. The power does not see the delay.
    spectrum = librosa.stft(np.pad(audio, 56), n_fft=512, hop_length=160, win_length=400, center=False)
    expected = np.log(mel_filterbank() @ np.abs(spectrum) ** 2 + 1e-6)
    features = log_mel(audio)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected[:, : features.shape[1]], atol=2e-5)


def test_silence_is_the_floor_and_full_scale_is_finite():
    np.testing.assert_allclose(log_mel(np.zeros(4_000, np.float32)), np.log(1e-6), atol=1e-6)
    square = np.sign(np.sin(np.arange(16_000) * 0.3)).astype(np.float32)
    assert np.isfinite(log_mel(square)).all()


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2), (16_240, 100)])
def test_frames_cover_160_samples_each_after_the_first_400(samples: int, frames: int):
    assert log_mel(noise(samples)).shape == (128, frames)
    assert LogMelSettings().frames(samples) == frames


@pytest.mark.parametrize("resolution", list(Resolution))
@settings(max_examples=60, deadline=None)
@given(chunks=st.lists(st.integers(0, 2_500), min_size=1, max_size=25), seed=st.integers(0, 1_000))
def test_any_chunking_gives_the_same_bits_as_one_call(resolution: Resolution, chunks: list[int], seed: int):
    audio = noise(sum(chunks), seed)
    extractor = StreamingLogMel(resolution=resolution)
    state, parts, at = extractor.initial(), [], 0
    for chunk in chunks:
        frames, state = extractor.step(audio[at : at + chunk], state)
        parts.append(frames)
        at += chunk
    assert len(state.tail) < 400 + 320
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), log_mel(audio, resolution=resolution))


def test_one_sample_at_a_time_gives_the_same_bits():
    audio = noise(2_000)
    extractor = StreamingLogMel()
    state, parts = extractor.initial(), []
    for sample in audio:
        frames, state = extractor.step(np.array([sample]), state)
        parts.append(frames)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), log_mel(audio))


def test_frames_do_not_see_later_samples():
    audio = noise(8_000)
    changed = audio.copy()
    changed[4_000:] = 0.0
    before = 1 + (4_000 - 400) // 160
    np.testing.assert_array_equal(log_mel(audio)[:, :before], log_mel(changed)[:, :before])


def test_a_kept_state_replays_although_the_input_array_was_reused():
    extractor = StreamingLogMel()
    buffer = noise(1_000)
    _, state = extractor.step(buffer, extractor.initial())
    following = noise(1_000, 1)
    first, _ = extractor.step(following, state)
    buffer[:] = 9.0
    second, _ = extractor.step(following, state)
    np.testing.assert_array_equal(first, second)


def test_reduced_features_are_pair_means_of_every_second_frame():
    audio = noise(16_240)
    reduced = log_mel(audio, resolution=Resolution.REDUCED)
    assert reduced.shape == (64, 50)
    np.testing.assert_allclose(reduce_resolution(log_mel(audio)), reduced, atol=1e-5)


@pytest.mark.parametrize(
    "samples",
    [np.zeros((2, 100), np.float32), np.array([0.0, np.nan]), np.array([np.inf]), np.zeros(100, np.int16)],
    ids=["stereo", "nan", "infinite", "integers"],
)
def test_what_is_not_finite_mono_float_is_refused(samples: np.ndarray):
    with pytest.raises(AudioError):
        log_mel(samples)


@pytest.mark.parametrize(
    "changes",
    [{"fft_samples": 256}, {"hop_samples": 300}, {"high_hz": 9_000.0}, {"low_hz": 8_000.0}, {"mel_bands": 63}],
)
def test_settings_that_do_not_fit_together_are_refused(changes: dict[str, float]):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        LogMelSettings(**changes)
