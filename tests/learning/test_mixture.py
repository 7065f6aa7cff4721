"""Distributional memory: clusters found, posterior against scikit-learn, negatives from elsewhere, bytes, merging."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from streamsplit.errors import ConfigError, ProtocolError
from streamsplit.learning.mixture import GaussianMixture

DIM = 128


class Clusters:
    """Known clusters on the unit sphere; a stream of short runs from one cluster, as audio gives."""

    def __init__(self, count: int, spread: float, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        centres = self.rng.standard_normal((count, DIM))
        self.centres = centres / np.linalg.norm(centres, axis=1, keepdims=True)
        self.spread = spread

    def stream(self, n: int, run: int = 5) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(self.rng.integers(0, len(self.centres), n // run + 1), run)[:n]
        z = self.centres[labels] + self.spread * self.rng.standard_normal((n, DIM))
        return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32), labels


def purity(mixture: GaussianMixture, z: np.ndarray, labels: np.ndarray) -> float:
    owner = np.array([mixture.posterior(row).argmax() for row in z])
    return sum(np.bincount(labels[owner == c]).max() for c in np.unique(owner)) / len(z)


def trained(clusters: Clusters, components: int = 64, n: int = 3000) -> GaussianMixture:
    mixture = GaussianMixture(components, DIM, seed=1)
    mixture.observe_batch(clusters.stream(n)[0])
    return mixture


@pytest.mark.parametrize("spread", [0.02, 0.05])
@pytest.mark.parametrize("components", [16, 64])
def test_known_clusters_are_found_with_their_shares(components: int, spread: float) -> None:
    clusters = Clusters(8, spread)
    mixture = trained(clusters, components)
    z, labels = clusters.stream(600)
    assert purity(mixture, z, labels) > 0.99
    nearest = (mixture.means @ clusters.centres.T).argmax(1)
    shares = np.array([mixture.weights[nearest == k].sum() for k in range(8)])
    assert np.abs(shares - 1 / 8).max() < 0.06


def test_a_component_tracks_mean_and_variance_of_its_cluster() -> None:
    rng = np.random.default_rng(3)
    deviation = np.linspace(0.02, 0.06, DIM)
    centre = rng.standard_normal(DIM) / math.sqrt(DIM)
    mixture = GaussianMixture(2, DIM, rate=0.002, seed=0, cold_start=10)
    for _ in range(2000):
        mixture.observe((centre + deviation * rng.standard_normal(DIM)).astype(np.float32))
        mixture.observe((-centre + deviation * rng.standard_normal(DIM)).astype(np.float32))
    c = int((mixture.means @ centre).argmax())
    assert np.abs(mixture.means[c] - centre).max() < 0.015
    ratio = mixture.variances[c] / deviation**2
    assert 0.9 < ratio.mean() < 1.1 and ratio.min() > 0.6 and ratio.max() < 1.6


def test_the_update_is_the_moving_average_of_sufficient_statistics() -> None:
    """Against direct sums in double precision, with the component's own share of forgetting."""
    rng = np.random.default_rng(0)
    mixture = GaussianMixture(3, 4, rate=0.05, seed=0, cold_start=12, variance_floor=1e-6)
    mixture.observe_batch((rng.standard_normal((12, 4)) * 0.1 + np.repeat(np.eye(3, 4), 4, axis=0)).astype(np.float32))
    n = mixture._counts.copy()
    s = n[:, None] * mixture._means.astype(np.float64)
    q = mixture._squares + n[:, None] * mixture._means.astype(np.float64) ** 2
    for _ in range(2):  # below C observations: no periodic re-seeding
        z = (np.eye(3, 4)[rng.integers(3)] + 0.1 * rng.standard_normal(4)).astype(np.float32)
        r = mixture.posterior(z)
        keep = 1 - 0.05 * r
        n, s = keep * n + r, keep[:, None] * s + r[:, None] * z
        q = keep[:, None] * q + r[:, None] * z.astype(np.float64) ** 2
        mixture.observe(z)
    live = n > 0
    assert np.allclose(mixture._counts, n)
    assert np.allclose(mixture._means[live], (s[live] / n[live, None]), atol=1e-5)
    assert np.allclose(mixture._squares[live], q[live] - s[live] ** 2 / n[live, None], atol=1e-5)


def test_the_posterior_is_scikit_learns_for_the_same_parameters() -> None:
    sklearn_mixture = pytest.importorskip("sklearn.mixture")
    clusters = Clusters(6, 0.085)
    mixture = trained(clusters, 12, 1500)
    live = mixture.weights > 0
    oracle = sklearn_mixture.GaussianMixture(int(live.sum()), covariance_type="diag")
    oracle.weights_, oracle.means_ = mixture.weights[live], mixture.means[live].astype(float)
    oracle.precisions_cholesky_ = 1 / np.sqrt(mixture.variances[live].astype(float))
    z, _ = clusters.stream(200)
    blend = 0.5 * (z + np.roll(z, 50, axis=0))  # between clusters, so that posteriors are not one-hot
    for rows in (z, blend):
        ours = np.stack([mixture.posterior(row)[live] for row in rows])
        assert np.abs(ours - oracle.predict_proba(rows)).max() < 2e-3
        density = np.array([mixture.log_density(row) for row in rows])
        assert np.abs(density - oracle.score_samples(rows)).max() < 2e-2


def test_entropy_is_log_c_when_cold_low_inside_a_cluster_and_log_two_between_equals() -> None:
    mixture = GaussianMixture(64, DIM)
    assert mixture.entropy(np.zeros(DIM, np.float32)) == pytest.approx(math.log(64))
    means = np.zeros((2, DIM))
    means[0, 0], means[1, 0] = 1.0, -1.0
    data = np.concatenate([np.full(2, 0.5), means.ravel(), np.full(2 * DIM, 0.01)]).astype("<f2").tobytes()
    two = GaussianMixture.from_bytes(data, 2, DIM)
    middle = np.zeros(DIM, np.float32)
    assert two.entropy(middle) == pytest.approx(math.log(2), abs=1e-6)
    assert two.entropy(means[0].astype(np.float32)) < 1e-6  # cosines 1 and -1: odds of e^20
    aside = np.zeros(DIM, np.float32)
    aside[:2] = 0.1, math.sqrt(1 - 0.1**2)
    p = 1 / (1 + math.exp(-2 * 0.1 / 0.1))
    assert two.entropy(aside) == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p), abs=1e-3)
    tilted = middle.copy()
    tilted[0] = 0.01
    p = 1 / (1 + math.exp(-4 * 0.5 * 0.01 / np.float16(0.01)))
    assert two.posterior(tilted)[0] == pytest.approx(p, abs=1e-4)


def test_a_new_sound_gets_components_and_the_old_ones_stay() -> None:
    clusters = Clusters(8, 0.03)
    mixture = GaussianMixture(16, DIM, seed=0)
    z, labels = clusters.stream(4000)
    mixture.observe_batch(z[labels < 4])
    late, late_labels = clusters.stream(500)
    mixture.observe_batch(late[late_labels >= 4])
    assert purity(mixture, *clusters.stream(500)) > 0.99


def test_dead_components_are_seeded_again_when_all_are_in_use() -> None:
    clusters = Clusters(12, 0.03)
    mixture = GaussianMixture(8, DIM, rate=0.05, seed=0)
    z, labels = clusters.stream(12000)
    mixture.observe_batch(z[labels < 6][:2000])
    mixture.observe_batch(z[labels >= 6][:2500])
    late, late_labels = clusters.stream(600)
    assert purity(mixture, late[late_labels >= 6], late_labels[late_labels >= 6]) > 0.99


def test_virtual_negatives_are_unit_norm_and_come_from_other_clusters() -> None:
    clusters = Clusters(8, 0.05)
    mixture = trained(clusters)
    z, labels = clusters.stream(60)
    rng = np.random.default_rng(0)
    own, breadth = [], []
    for row, label in zip(z, labels, strict=True):
        draws = mixture.virtual_negatives(row, 256, rng)
        assert draws.shape == (256, DIM) and draws.dtype == np.float32
        assert np.allclose(np.linalg.norm(draws, axis=1), 1, atol=1e-5)
        own.append(((draws @ clusters.centres.T).argmax(1) == label).mean())
        law = mixture.negative_law(row)
        breadth.append(math.exp(-(law[law > 0] * np.log(law[law > 0])).sum()))
    assert np.mean(own) < 0.02
    assert np.mean(breadth) > 4  # not the single nearest component


def test_virtual_negatives_are_none_when_everything_is_near() -> None:
    rng = np.random.default_rng(0)
    assert GaussianMixture(8, 4).virtual_negatives(np.ones(4, np.float32), 5, rng).shape == (0, 4)
    data = np.concatenate([[1.0, 0.0], np.zeros(8), np.full(8, 0.01)]).astype("<f2").tobytes()
    one = GaussianMixture.from_bytes(data, 2, 4)
    assert one.virtual_negatives(np.full(4, 0.01, np.float32), 5, rng).shape == (0, 4)


def test_the_serialised_form_has_the_stated_size_and_keeps_the_posterior() -> None:
    clusters = Clusters(8, 0.06)
    mixture = trained(clusters)
    data = mixture.to_bytes()
    assert len(data) == 32_896 < 35_000
    copy = GaussianMixture.from_bytes(data)
    assert copy.to_bytes() == data
    z, _ = clusters.stream(100)
    same = [mixture.posterior(row).argmax() == copy.posterior(row).argmax() for row in z]
    assert np.mean(same) > 0.97
    assert np.allclose(copy.variances[mixture.weights > 0], mixture.variances[mixture.weights > 0], rtol=0.02)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0" * 32_895, b"\0" * 32_896, np.full(16_448, np.nan, "<f2").tobytes(),
        np.full(16_448, -1, "<f2").tobytes(), np.full(16_448, 1, "<f2").tobytes(),
    ],
)  # fmt: skip
def test_bad_statistics_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="bad_gmm"):
        GaussianMixture.from_bytes(data)


@pytest.mark.parametrize("z", [np.full(DIM, np.nan), np.ones(64), np.ones((1, DIM))])
def test_bad_embeddings_are_refused(z: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="expected"):
        GaussianMixture(8, DIM).observe(z)


def test_merging_keeps_mean_and_variance_and_covers_both_streams() -> None:
    clusters = Clusters(10, 0.05)
    z, labels = clusters.stream(6000)
    left, right = GaussianMixture(64, DIM, seed=0), GaussianMixture(64, DIM, seed=1)
    left.observe_batch(z[labels < 5])
    right.observe_batch(z[labels >= 5])

    def moments(pi: np.ndarray, mu: np.ndarray, var: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = pi @ mu
        return mean, pi @ (var + mu**2) - mean**2

    pi = np.concatenate([0.7 * left.weights, 0.3 * right.weights])
    mean, total = moments(
        pi, np.concatenate([left.means, right.means]), np.concatenate([left.variances, right.variances])
    )
    left.merge(right, 0.3)
    merged_mean, merged_total = moments(left.weights, left.means, left.variances)
    assert np.allclose(merged_mean, mean, atol=1e-5)
    assert np.allclose(merged_total, total, rtol=1e-3)
    assert purity(left, *clusters.stream(500)) > 0.98
    nearest = (left.means @ clusters.centres.T).argmax(1)
    assert left.weights[nearest >= 5].sum() == pytest.approx(0.3, abs=0.01)


def test_a_cold_mixture_takes_over_what_it_is_given() -> None:
    warm = trained(Clusters(4, 0.05))
    cold = GaussianMixture(64, DIM)
    cold.merge(warm, 0.5)
    assert np.allclose(np.sort(cold.weights), np.sort(warm.weights))


def test_a_snapshot_continues_exactly() -> None:
    clusters = Clusters(6, 0.05)
    z, _ = clusters.stream(900)
    for cut in (20, 400):
        mixture = GaussianMixture(16, DIM, seed=5)
        mixture.observe_batch(z[:cut])
        other = GaussianMixture(16, DIM, seed=5)
        other.load_state(mixture.state())
        mixture.observe_batch(z[cut:])
        other.observe_batch(z[cut:])
        assert mixture.to_bytes() == other.to_bytes()
        for name, value in mixture.state().items():
            assert np.array_equal(value, other.state()[name]), name


def test_memory_stays_constant_and_an_embedding_costs_little() -> None:
    clusters = Clusters(8, 0.05)
    mixture = trained(clusters, n=200)
    before = mixture.state_bytes()
    z, _ = clusters.stream(2000)
    start = time.process_time()
    mixture.observe_batch(z)
    each_us = (time.process_time() - start) / len(z) * 1e6
    assert mixture.state_bytes() <= before + DIM * 4 < 180_000
    assert each_us < 500  # about 60 on one x86 core; the benchmark holds the figure
