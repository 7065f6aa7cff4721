"""The fixed statistics against the plain formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamsplit.encoders.fixed import course, five_statistics, fixed_vector, mean_and_deviation
from streamsplit.errors import EncoderError


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 128, 20)).astype(np.float32)


def test_mean_and_deviation_are_256_numbers_a_window(x):
    got = mean_and_deviation(x)
    assert got.shape == (3, 256) and got.dtype == np.float32
    np.testing.assert_allclose(got[1, 5], np.mean(x[1, 5]), rtol=1e-5)
    np.testing.assert_allclose(got[1, 128 + 5], np.sqrt(np.mean((x[1, 5] - np.mean(x[1, 5])) ** 2)), rtol=1e-5)
    np.testing.assert_array_equal(mean_and_deviation(x[1]), got[1])


def test_five_statistics_are_320_numbers_of_joined_bands(x):
    got = five_statistics(x)
    band = (x[2, 14].astype(float) + x[2, 15]) / 2  # joined band 7
    steps = [band[i + 1] - band[i] for i in range(19)]
    expected = [band.mean(), band.std(), band.max(), band.min(), np.sqrt(np.mean(np.square(steps)))]
    assert got.shape == (3, 320)
    np.testing.assert_allclose(got[2, 7::64], expected, rtol=1e-4)


def test_the_course_is_the_mean_spectrum_of_segments_of_equal_sound(x):
    window = x[0].astype(float)
    levels = [0.5 * math.log(sum(math.exp(value) for value in frame)) for frame in window.T]
    levels = [level - min(levels) + 1e-3 for level in levels]
    total, before = sum(levels), 0.0
    segments = np.zeros((6, 32))
    weights = np.zeros(6)
    for frame, level in zip(window.T, levels, strict=True):
        place = (before + level / 2) / total
        before += level
        for number in range(6):
            weight = level * max(0.0, 1 - 6 * abs(place - (number + 0.5) / 6))
            weights[number] += weight
            segments[number] += weight * frame.reshape(32, 4).mean(1)
    expected = segments / (weights[:, None] + 1e-5)
    np.testing.assert_allclose(course(x)[0], expected.ravel(), rtol=1e-4, atol=1e-5)


def test_the_course_does_not_see_where_in_the_window_a_sound_lies():
    rng = np.random.default_rng(1)
    event = rng.standard_normal((128, 40)) - 3
    early, late = (np.full((1, 128, 100), -13.8, np.float32) for _ in range(2))
    early[0, :, 5:45], late[0, :, 50:90] = event, event
    assert np.abs(course(early) - course(late)).max() < 0.05
    backwards = early[:, :, ::-1]
    assert np.abs(course(early) - course(backwards)).max() > 0.3
    np.testing.assert_allclose(five_statistics(early)[:, :256], five_statistics(backwards)[:, :256], rtol=1e-4)


def test_silence_has_a_course_and_no_nan():
    silent = np.full((1, 128, 100), -13.8125, np.float32)
    assert np.allclose(course(silent), -13.8125, rtol=2e-3)
    assert np.isfinite(fixed_vector(silent)).all()


def test_the_fixed_vector_does_not_hear_loudness(x):
    got = fixed_vector(x)
    assert got.shape == (3, 512)
    np.testing.assert_allclose(np.linalg.norm(got[:, :320], axis=1), 2.0, rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(got[:, 320:], axis=1), 1.5, rtol=1e-3)
    np.testing.assert_allclose(fixed_vector(x + 2.0)[:, 320:], got[:, 320:], rtol=1e-3, atol=1e-4)


def test_reduced_windows_are_taken_as_they_are(x):
    np.testing.assert_allclose(
        five_statistics(x[:, :64]), five_statistics(np.repeat(x[:, :64], 2, axis=1)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("shape", [(128,), (128, 1), (1, 1, 128, 10)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(EncoderError, match="expected"):
        mean_and_deviation(np.zeros(shape))


def test_other_band_counts_are_refused():
    with pytest.raises(EncoderError, match="64 or 128"):
        five_statistics(np.zeros((96, 10)))
