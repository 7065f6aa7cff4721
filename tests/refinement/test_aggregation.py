import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.neighbors import KernelDensity as SklearnDensity

from streamsplit.errors import EncoderError
from streamsplit.refinement.aggregation import KernelDensity, device_alignment, median_bandwidth
from streamsplit.refinement.wasserstein import random_directions


def draw(n, d=5, seed=0, shift=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(shift, scale, (n, d))


def test_the_bandwidth_is_the_median_pairwise_distance():
    z = draw(40)
    assert median_bandwidth(z) == pytest.approx(np.median(pdist(z)))
    with pytest.raises(EncoderError, match="at least 2"):
        median_bandwidth(z[:1])


def test_the_kernel_density_along_a_line_has_the_quantiles_of_sklearns():
    """Oracle: samples of scikit-learn's density in all dimensions, projected."""
    z = draw(30, scale=0.3)
    mine = KernelDensity.fit(z)
    directions = random_directions(3, 5, torch.Generator().manual_seed(1))
    even = mine.projected(directions).numpy()
    theirs = SklearnDensity(bandwidth=mine.bandwidth).fit(z).sample(40_000, random_state=0) @ directions.numpy().T
    levels = [0.1, 0.25, 0.5, 0.75, 0.9]
    assert np.allclose(np.quantile(even, levels, axis=0), np.quantile(theirs, levels, axis=0), atol=0.05)
    assert np.allclose(even.mean(axis=0), z.mean(axis=0) @ directions.numpy().T, atol=1e-5)


def test_alignment_finds_the_device_that_differs_and_uses_one_set_of_directions():
    windows = {"a": draw(50), "b": draw(80, seed=1), "odd": draw(60, seed=2, shift=2.0), "silent": draw(1)}
    alignment = device_alignment(windows, projections=20, seed=7)
    assert alignment.devices == ("a", "b", "odd")
    assert np.array_equal(alignment.distances, alignment.distances.T) and not alignment.distances.diagonal().any()
    assert alignment.mean_distance.argmax() == 2
    directions = random_directions(20, 5, torch.Generator().manual_seed(7))
    samples = [KernelDensity.fit(windows[name]).projected(directions).numpy() for name in ("a", "odd")]
    levels = (np.arange(4000) + 0.5) / 4000
    gaps = [np.quantile(sample, levels, axis=0, method="inverted_cdf") for sample in samples]
    expected = np.sqrt(((gaps[0] - gaps[1]) ** 2).mean())
    assert alignment.distances[2, 0] == pytest.approx(expected, rel=0.01)
    assert device_alignment({"a": draw(5)}).mean_distance.tolist() == [0.0]
    assert device_alignment({}).devices == ()


def test_a_shift_moves_the_distance_by_its_root_mean_square_along_lines():
    z = draw(40, 6)
    shift = np.array([3.0, 0, 0, 0, 0, 0])
    found = device_alignment({"a": z, "b": z + shift}, projections=2000)
    assert found.mean_distance[0] == pytest.approx(3.0 / np.sqrt(6), rel=0.05)
