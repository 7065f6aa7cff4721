"""Resampling: tones stay tones, streams equal whole passes, stereo becomes mono."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.audio.resample import StreamingResampler, resample, to_mono
from streamsplit.errors import AudioError


def tone(hz: float, rate_hz: int, seconds: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2.0 * np.pi * hz * np.arange(int(rate_hz * seconds)) / rate_hz)).astype(np.float32)


@pytest.mark.parametrize("from_hz", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_a_tone_keeps_its_frequency_phase_and_level(from_hz: int):
    result = resample(tone(1_000.0, from_hz), from_hz, 16_000)
    assert abs(len(result) - 16_000) <= 1
    np.testing.assert_allclose(result[500:15_000], tone(1_000.0, 16_000)[500:15_000], atol=2e-3)


def test_what_lies_above_the_new_band_is_removed():
    assert np.abs(resample(tone(12_000.0, 48_000), 48_000, 16_000)[500:-500]).max() < 1e-3


@settings(max_examples=20, deadline=None)
@given(chunks=st.lists(st.integers(0, 9_000), min_size=1, max_size=10), from_hz=st.sampled_from([8_000, 44_100]))
def test_a_stream_in_any_chunks_equals_one_pass(chunks: list[int], from_hz: int):
    audio = np.random.default_rng(0).standard_normal(sum(chunks)).astype(np.float32)
    stream, parts, at = StreamingResampler(from_hz, 16_000), [], 0
    for chunk in chunks:
        parts.append(stream.push(audio[at : at + chunk]))
        at += chunk
    result = np.concatenate([*parts, stream.flush()])
    expected = resample(audio, from_hz, 16_000)
    assert abs(len(result) - len(expected)) <= 1
    shared = min(len(result), len(expected))
    np.testing.assert_allclose(result[:shared], expected[:shared], atol=1e-5)


def test_a_flushed_resampler_starts_anew():
    stream, audio = StreamingResampler(44_100, 16_000), tone(440.0, 44_100)
    first = np.concatenate((stream.push(audio), stream.flush()))
    second = np.concatenate((stream.push(audio), stream.flush()))
    np.testing.assert_array_equal(first, second)


def test_stereo_becomes_the_mean_of_its_channels():
    stereo = np.stack((tone(440.0, 16_000), -tone(440.0, 16_000)), axis=1)
    assert not to_mono(stereo).any()
    np.testing.assert_allclose(resample(stereo + np.float32(0.25), 16_000, 16_000), 0.25, atol=1e-6)


def test_equal_rates_and_no_samples_pass_through():
    audio = tone(440.0, 16_000)
    np.testing.assert_array_equal(resample(audio, 16_000, 16_000), audio)
    assert len(resample(audio[:0], 8_000, 16_000)) == 0


@pytest.mark.parametrize("rate_hz", [0, -8_000, 10**9])
def test_impossible_rates_are_refused(rate_hz: int):
    with pytest.raises(AudioError, match="sample rate"):
        resample(np.zeros(10, np.float32), rate_hz, 16_000)


def test_nan_and_odd_shapes_are_refused():
    for bad in (np.array([np.nan], np.float32), np.zeros((2, 2, 2), np.float32)):
        with pytest.raises(AudioError):
            resample(bad, 8_000, 16_000)
