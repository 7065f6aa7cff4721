"""Aggregation over devices: a kernel density each, how far apart they are, and one global Gaussian mixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from streamsplit.errors import EncoderError
from streamsplit.refinement.kmeans import squared_distances, weighted_k_means
from streamsplit.refinement.wasserstein import random_directions, sliced_wasserstein


def median_bandwidth(z: np.ndarray) -> float:
    """Median pairwise Euclidean distance of the rows z [n, d], n >= 2: the kernel bandwidth of section 8."""
    z = np.asarray(z, dtype=np.float64)
    rows, columns = np.triu_indices(len(z), k=1)
    if not len(rows):
        raise EncoderError(f"got {len(z)} embeddings, expected at least 2 for a bandwidth")
    return max(float(np.median(np.sqrt(squared_distances(z, z)[rows, columns]))), 1e-6)


class KernelDensity(NamedTuple):
    """A Gaussian kernel density: points [n, d] and one bandwidth."""

    points: np.ndarray
    bandwidth: float

    @classmethod
    def fit(cls, z: np.ndarray) -> KernelDensity:
        """The density of the embeddings z [n, d], n >= 2, with the median pairwise distance as bandwidth."""
        return cls(np.asarray(z, dtype=np.float64), median_bandwidth(z))

    def log_density(self, z: np.ndarray) -> np.ndarray:
        """log p(z) in nats for z [m, d] -> [m]."""
        n, dim = self.points.shape
        exponent = -squared_distances(np.asarray(z, dtype=np.float64), self.points) / (2 * self.bandwidth**2)
        norm = np.log(n) + dim * (np.log(self.bandwidth) + 0.5 * np.log(2 * np.pi))
        return _log_sum_exp(exponent) - norm


class Alignment(NamedTuple):
    """Sliced Wasserstein distances between devices: names, symmetric distances [n, n], each one's mean [n]."""

    devices: tuple[str, ...]
    distances: np.ndarray
    mean_distance: np.ndarray


def device_alignment(
    windows: Mapping[str, np.ndarray], projections: int = 50, seed: int = 0, order: int = 2
) -> Alignment:
    """How far the devices' embedding distributions are apart; windows map a device to its embeddings [n_i, d].

    All pairs use the same directions, so distances compare; sizes may differ. Devices without embeddings are left out.
    """
    names = tuple(name for name, z in windows.items() if len(z))
    distances = np.zeros((len(names), len(names)))
    if len(names) > 1:
        samples = [torch.from_numpy(np.asarray(windows[name], dtype=np.float32)) for name in names]
        generator = torch.Generator().manual_seed(seed)
        directions = random_directions(projections, samples[0].shape[1], generator)
        for i in range(len(names)):
            for j in range(i):
                value = sliced_wasserstein(samples[i], samples[j], order=order, directions=directions)
                distances[i, j] = distances[j, i] = float(value)
    return Alignment(names, distances, distances.sum(axis=1) / max(1, len(names) - 1))


class MixtureStatistics(NamedTuple):
    """A diagonal Gaussian mixture: weights [c] summing to 1, means [c, d], variances [c, d]."""

    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """The mixture's mean [d]."""
        return self.weights @ self.means

    @property
    def variance(self) -> np.ndarray:
        """The mixture's total variance per dimension [d]."""
        return self.weights @ (self.variances + self.means**2) - self.mean**2

    def log_density(self, z: np.ndarray) -> np.ndarray:
        """log p(z) in nats for z [m, d] -> [m]."""
        z = np.asarray(z, dtype=np.float64)
        inverse = 1.0 / self.variances
        squared = (z**2) @ inverse.T - 2 * z @ (self.means * inverse).T + ((self.means**2) * inverse).sum(axis=1)
        norm = 0.5 * (np.log(self.variances).sum(axis=1) + self.means.shape[1] * np.log(2 * np.pi))
        with np.errstate(divide="ignore"):
            return _log_sum_exp(np.log(self.weights) - norm - squared / 2)


def pool_mixtures(parts: Sequence[tuple[float, MixtureStatistics]]) -> MixtureStatistics:
    """All devices' components in one mixture, each device's share ~ its weight (its number of windows)."""
    total = sum(weight for weight, _ in parts)
    if not parts or total <= 0:
        raise EncoderError(f"got {len(parts)} mixtures of total weight {total}, expected a positive weight")
    return MixtureStatistics(
        np.concatenate([weight / total * part.weights for weight, part in parts]),
        np.concatenate([np.asarray(part.means, dtype=np.float64) for _, part in parts]),
        np.concatenate([np.asarray(part.variances, dtype=np.float64) for _, part in parts]),
    )


def reduce_mixture(mixture: MixtureStatistics, components: int, seed: int = 0, rounds: int = 20) -> MixtureStatistics:
    """The same mixture with at most `components` components: near ones are merged by matching their moments.

    The overall mean and variance are kept exactly. Components are grouped by weighted k-means on their means.
    """
    if len(mixture.weights) <= components:
        return mixture
    means, weights = np.asarray(mixture.means, dtype=np.float64), np.asarray(mixture.weights, dtype=np.float64)
    _, group = weighted_k_means(means, weights, components, np.random.default_rng(seed), rounds)
    member = np.zeros((components, len(weights)))
    member[group, np.arange(len(weights))] = weights
    mass = member.sum(axis=1)
    member, mass = member[mass > 0], mass[mass > 0]
    merged = member @ means / mass[:, None]
    second = member @ (mixture.variances + means**2) / mass[:, None]
    return MixtureStatistics(mass, merged, np.maximum(second - merged**2, 1e-12))


def global_mixture(windows: Mapping[str, np.ndarray], components: int = 64, seed: int = 0) -> MixtureStatistics:
    """One mixture for the whole fleet from every device's last embeddings [n_i, d].

    Groups all embeddings (each device's share ~ how many it has) and matches the groups' moments; a group of a single
    point gets the spread within groups, so that no component is a spike.
    """
    parts = [
        (
            float(len(z)),
            MixtureStatistics(np.full(len(z), 1.0 / len(z)), np.asarray(z, np.float64), np.zeros(np.shape(z))),
        )
        for z in windows.values()
        if len(z)
    ]
    pooled = pool_mixtures(parts)
    reduced = reduce_mixture(pooled, components, seed)
    within = reduced.weights @ reduced.variances
    floor = np.maximum(within, 1e-3 * np.maximum(pooled.variance, 1e-6))
    lonely = reduced.variances.sum(axis=1) < 1e-3 * floor.sum()
    return reduced._replace(variances=np.where(lonely[:, None], floor, np.maximum(reduced.variances, 1e-2 * floor)))


def _log_sum_exp(x: np.ndarray) -> np.ndarray:
    top = x.max(axis=1, keepdims=True)
    return (top + np.log(np.exp(x - top).sum(axis=1, keepdims=True)))[:, 0]
