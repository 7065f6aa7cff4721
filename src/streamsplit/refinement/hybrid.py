"""The server's hybrid loss: task + lambda1 sliced Wasserstein + lambda2 Laplacian, in both papers' forms.

For comparison another term may stand in place of the sliced Wasserstein distance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from streamsplit.config import Settings, setting
from streamsplit.refinement.buffer import NearbyFrames
from streamsplit.refinement.divergences import (
    kl_between,
    kl_to_uniform,
    mmd_squared,
    mmd_to_uniform,
    neighbour_mean_error,
)
from streamsplit.refinement.laplacian import Graph, laplacian_loss, neighbour_graph, temporal_graph
from streamsplit.refinement.wasserstein import sliced_wasserstein, sliced_wasserstein_to_uniform

HORIZON_FRAMES = 100  # frames further apart are not joined in a batch's time graph


@dataclass(frozen=True, kw_only=True)
class HybridSettings(Settings):
    """Weights of the hybrid loss (v1, v2); None takes the version's own value."""

    version: str = setting("v2", choices=("v1", "v2"))
    distribution: str = setting("sw", choices=("none", "mse", "kl", "mmd", "sw"))  # sw: the papers' own
    wasserstein_weight: float | None = setting(None, low=0.0)  # of that term, whichever it is; v2: 0.1; v1: 1
    laplacian_weight: float | None = setting(None, low=0.0)  # v2: 0.01; v1: 0.1
    projections: int | None = setting(None, low=1, high=10_000)  # v2: 50; v1: 100
    neighbours: int | None = setting(None, low=1, high=1000)  # v2: 5 nearest in time; v1: 10 nearest in the space

    @property
    def weights(self) -> tuple[float, float]:
        """(distribution term, Laplacian) as they are used."""
        own = (0.1, 0.01) if self.version == "v2" else (1.0, 0.1)
        return (
            own[0] if self.wasserstein_weight is None else self.wasserstein_weight,
            own[1] if self.laplacian_weight is None else self.laplacian_weight,
        )

    @property
    def projection_count(self) -> int:
        """Directions per evaluation."""
        return self.projections or (50 if self.version == "v2" else 100)

    @property
    def neighbour_count(self) -> int:
        """k of the graph."""
        return self.neighbours or (5 if self.version == "v2" else 10)


class HybridLoss(NamedTuple):
    """Scalars with gradients; total = task + weighted others."""

    total: Tensor
    task: Tensor
    wasserstein: Tensor  # the distribution term: sliced Wasserstein, unless the settings chose another
    laplacian: Tensor


def hybrid_loss(
    task: Tensor,
    z: Tensor,
    frames: np.ndarray,
    devices: Sequence[str],
    settings: HybridSettings,
    generator: torch.Generator | None = None,
    nearby: NearbyFrames | None = None,
) -> HybridLoss:
    """Adds both regularisers to a task loss; z [n, d] unit norm, one frame index and device name per row.

    v2 pulls the batch to the uniform law on the sphere and smooths along each device's time graph. v1 pulls the
    devices' distributions together (each against all others; nothing to pull with one device) and smooths along the
    nearest-neighbour graph of the space. `nearby` adds the frames around the batch's to v2's graph: rows are pulled to
    the embeddings that were held of them, which have no gradient.

    `settings.distribution` puts KL of Gaussian fits or MMD in place of the sliced Wasserstein distance, between the
    same laws, or `mse`: each row to the mean of its neighbours in time. The papers leave these forms open.
    """
    if settings.distribution == "mse":
        distribution = neighbour_mean_error(*_in_time(z, frames, devices, settings, nearby), len(z))
    else:
        distribution = _distribution_term(z, devices, settings, generator)
    if settings.version == "v2":
        laplacian = laplacian_loss(*_in_time(z, frames, devices, settings, nearby))
    else:
        laplacian = laplacian_loss(z, neighbour_graph(z, settings.neighbour_count))
    first, second = settings.weights
    return HybridLoss(task + first * distribution + second * laplacian, task, distribution, laplacian)


def between_devices(
    z: Tensor, devices: Sequence[str], projections: int, generator: torch.Generator | None = None
) -> Tensor:
    """Mean sliced Wasserstein distance of each device's rows to all other devices' rows; 0 with a single device."""
    return _between(z, devices, lambda x, y: sliced_wasserstein(x, y, projections, generator))


def _between(z: Tensor, devices: Sequence[str], distance: Callable[[Tensor, Tensor], Tensor], least: int = 1) -> Tensor:
    """Mean `distance` of each device's rows to all others', where both sides have `least` rows; 0 without any."""
    names = np.asarray(list(devices))
    distances = []
    for name in dict.fromkeys(names.tolist()):
        own = names == name
        if min(own.sum(), (~own).sum()) >= least:
            rows = torch.from_numpy(own).to(z.device)
            distances.append(distance(z[rows], z[~rows]))
    return torch.stack(distances).mean() if distances else z.sum() * 0.0


def _distribution_term(
    z: Tensor, devices: Sequence[str], settings: HybridSettings, generator: torch.Generator | None
) -> Tensor:
    whole = settings.version == "v2"
    if settings.distribution == "none":
        return z.sum() * 0.0
    if settings.distribution == "kl":
        return kl_to_uniform(z) if whole else _between(z, devices, kl_between, least=2)
    if settings.distribution == "mmd":
        return mmd_to_uniform(z, generator) if whole else _between(z, devices, mmd_squared, least=2)
    if whole:
        return sliced_wasserstein_to_uniform(z, settings.projection_count, generator)
    return between_devices(z, devices, settings.projection_count, generator)


def _in_time(
    z: Tensor, frames: np.ndarray, devices: Sequence[str], settings: HybridSettings, nearby: NearbyFrames | None
) -> tuple[Tensor, Graph]:
    """The batch's rows, then what was held of the frames around them, and the graph that joins them in time."""
    if nearby is None:
        return z, temporal_graph(frames, devices, settings.neighbour_count, horizon=HORIZON_FRAMES)
    if not len(nearby.embeddings):
        return z, nearby.graph
    return torch.cat([z, torch.from_numpy(nearby.embeddings).to(device=z.device, dtype=z.dtype)]), nearby.graph
