"""The fixed statistics against the plain formulas."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplit.encoders.fixed import five_statistics, mean_and_deviation
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
