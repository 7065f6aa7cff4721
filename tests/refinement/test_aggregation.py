import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import multivariate_normal
from sklearn.neighbors import KernelDensity as SklearnDensity

from streamsplit.errors import EncoderError
from streamsplit.refinement.aggregation import (
    KernelDensity,
    MixtureStatistics,
    device_alignment,
    global_mixture,
    median_bandwidth,
    pool_mixtures,
    reduce_mixture,
)
from streamsplit.refinement.wasserstein import random_directions, sliced_wasserstein


def draw(n, d=5, seed=0, shift=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(shift, scale, (n, d))


def test_the_bandwidth_is_the_median_pairwise_distance():
    z = draw(40)
    assert median_bandwidth(z) == pytest.approx(np.median(pdist(z)))
    with pytest.raises(EncoderError, match="at least 2"):
        median_bandwidth(z[:1])


def test_the_kernel_density_equals_sklearns():
    z, points = draw(30), draw(8, seed=1)
    mine = KernelDensity.fit(z)
    theirs = SklearnDensity(bandwidth=mine.bandwidth).fit(z)
    assert np.allclose(mine.log_density(points), theirs.score_samples(points))


def test_alignment_finds_the_device_that_differs_and_uses_one_set_of_directions():
    windows = {"a": draw(50), "b": draw(80, seed=1), "odd": draw(60, seed=2, shift=2.0), "silent": np.empty((0, 5))}
    alignment = device_alignment(windows, projections=20, seed=7)
    assert alignment.devices == ("a", "b", "odd")
    assert np.array_equal(alignment.distances, alignment.distances.T)
    assert alignment.mean_distance.argmax() == 2
    directions = random_directions(20, 5, torch.Generator().manual_seed(7))
    samples = [torch.from_numpy(windows[name]).float() for name in ("a", "odd")]
    assert alignment.distances[2, 0] == pytest.approx(
        float(sliced_wasserstein(*samples, directions=directions)), rel=1e-5
    )
    assert device_alignment({"a": draw(5)}).mean_distance.tolist() == [0.0]


def mixture(seed, count=6, d=5):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.1, 1, count)
    return MixtureStatistics(weights / weights.sum(), rng.normal(size=(count, d)), rng.uniform(0.1, 1, (count, d)))


def test_mixture_density_equals_scipys():
    one = mixture(0)
    points = draw(7, seed=3)
    parts = zip(one.weights, one.means, one.variances, strict=True)
    expected = sum(w * multivariate_normal(m, np.diag(v)).pdf(points) for w, m, v in parts)
    assert np.allclose(one.log_density(points), np.log(expected))


def test_pooling_weights_devices_by_their_windows():
    pooled = pool_mixtures([(300, mixture(0)), (100, mixture(1))])
    assert pooled.weights.sum() == pytest.approx(1.0)
    points = draw(9, seed=5)
    expected = np.log(0.75 * np.exp(mixture(0).log_density(points)) + 0.25 * np.exp(mixture(1).log_density(points)))
    assert np.allclose(pooled.log_density(points), expected)
    with pytest.raises(EncoderError, match="positive weight"):
        pool_mixtures([])


def test_reducing_keeps_mean_and_variance_exactly():
    pooled = pool_mixtures([(3, mixture(i, 20)) for i in range(4)])
    reduced = reduce_mixture(pooled, 7)
    assert len(reduced.weights) == 7
    assert np.allclose(reduced.mean, pooled.mean) and np.allclose(reduced.variance, pooled.variance)
    assert reduce_mixture(pooled, 80) is pooled


def test_the_global_mixture_finds_clusters_that_no_single_device_has():
    centres = np.eye(4) * 5
    windows = {f"d{i}": draw(60, 4, seed=i, scale=0.2) + centres[i] for i in range(4)}
    found = global_mixture(windows, components=4)
    distances = np.linalg.norm(found.means[:, None] - centres[None], axis=2)
    assert sorted(distances.argmin(axis=1)) == [0, 1, 2, 3] and distances.min(axis=1).max() < 0.2
    assert np.allclose(np.sqrt(found.variances).mean(), 0.2, atol=0.05)


def test_components_of_a_single_point_are_no_spikes():
    windows = {"a": np.concatenate([draw(50, 4, scale=0.1), np.full((1, 4), 9.0)])}
    found = global_mixture(windows, components=6)
    assert found.variances.min() > 1e-5
    assert np.isfinite(found.log_density(draw(5, 4, seed=1))).all()
