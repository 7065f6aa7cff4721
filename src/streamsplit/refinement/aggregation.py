"""How far apart devices hear: a kernel density of each one's recent embeddings, and sliced Wasserstein between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from streamsplit.errors import EncoderError
from streamsplit.learning.seeding import squared_distances
from streamsplit.refinement.wasserstein import random_directions, wasserstein_1d

KERNEL_POINTS = 16  # quantiles of one kernel


def median_bandwidth(z: np.ndarray) -> float:
    """Median pairwise Euclidean distance of the rows z [n, d], n >= 2: the kernel bandwidth (v2)."""
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

    def projected(self, directions: Tensor) -> Tensor:
        """The density along directions [p, d] (unit norm), as an even sample [n x KERNEL_POINTS, p] of it.

        A round kernel's shadow on any line is the 1-D normal law of the same width: each point becomes that law's
        quantiles, so no noise is drawn.
        """
        centres = torch.from_numpy(self.points).to(directions.dtype) @ directions.T
        levels = (torch.arange(KERNEL_POINTS, dtype=torch.float64) + 0.5) / KERNEL_POINTS
        spread = (self.bandwidth * torch.special.ndtri(levels)).to(directions.dtype)
        return (centres[:, None, :] + spread[None, :, None]).reshape(-1, len(directions))


class Alignment(NamedTuple):
    """Sliced Wasserstein distances between devices: names, symmetric distances [n, n], each one's mean [n]."""

    devices: tuple[str, ...]
    distances: np.ndarray
    mean_distance: np.ndarray


def device_alignment(windows: Mapping[str, np.ndarray], projections: int = 50, seed: int = 0) -> Alignment:
    """How far the devices' kernel densities are apart, W2 over `projections` lines; windows map a device to its
    embeddings [n_i, d].

    All pairs use the same directions, so distances compare; sizes may differ. Devices with fewer than two embeddings
    are left out. Costs a sort for every pair of devices.
    """
    names = tuple(name for name, z in windows.items() if len(z) >= 2)
    distances = np.zeros((len(names), len(names)))
    if len(names) > 1:
        directions = random_directions(projections, windows[names[0]].shape[1], torch.Generator().manual_seed(seed))
        shadows = [KernelDensity.fit(windows[name]).projected(directions) for name in names]
        for i in range(len(names)):
            for j in range(i):
                distances[i, j] = distances[j, i] = float(wasserstein_1d(shadows[i], shadows[j]).mean().sqrt())
    return Alignment(names, distances, distances.sum(axis=1) / max(1, len(names) - 1))
