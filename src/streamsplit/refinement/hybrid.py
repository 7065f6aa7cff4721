"""The server's hybrid loss: task + lambda1 sliced Wasserstein + lambda2 Laplacian, in both papers' forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from streamsplit.config import Settings, setting
from streamsplit.refinement.buffer import NearbyFrames
from streamsplit.refinement.laplacian import laplacian_loss, neighbour_graph, temporal_graph
from streamsplit.refinement.wasserstein import sliced_wasserstein, sliced_wasserstein_to_uniform


@dataclass(frozen=True, kw_only=True)
class HybridSettings(Settings):
    """Weights of the hybrid loss (v1, v2); None takes the version's own value."""

    version: str = setting("v2", choices=("v1", "v2"))
    wasserstein_weight: float | None = setting(None, low=0.0)  # v2: 0.1; v1: 1
    laplacian_weight: float | None = setting(None, low=0.0)  # v2: 0.01; v1: 0.1
    projections: int | None = setting(None, low=1, high=10_000)  # v2: 50; v1: 100
    neighbours: int | None = setting(None, low=1, high=1000)  # v2: 5 nearest in time; v1: 10 nearest in the space

    @property
    def weights(self) -> tuple[float, float]:
        """(sliced Wasserstein, Laplacian) as they are used."""
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
    wasserstein: Tensor
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
    """
    rows = z
    if settings.version == "v2":
        wasserstein = sliced_wasserstein_to_uniform(z, settings.projection_count, generator)
        if nearby is None:
            graph = temporal_graph(frames, devices, settings.neighbour_count, horizon=100)
        else:
            graph = nearby.graph
            if len(nearby.embeddings):
                rows = torch.cat([z, torch.from_numpy(nearby.embeddings).to(device=z.device, dtype=z.dtype)])
    else:
        wasserstein = between_devices(z, devices, settings.projection_count, generator)
        graph = neighbour_graph(z, settings.neighbour_count)
    laplacian = laplacian_loss(rows, graph)
    first, second = settings.weights
    return HybridLoss(task + first * wasserstein + second * laplacian, task, wasserstein, laplacian)


def between_devices(
    z: Tensor, devices: Sequence[str], projections: int, generator: torch.Generator | None = None
) -> Tensor:
    """Mean sliced Wasserstein distance of each device's rows to all other devices' rows; 0 with a single device."""
    names = np.asarray(list(devices))
    known = list(dict.fromkeys(names.tolist()))
    if len(known) < 2:
        return z.sum() * 0.0
    distances = []
    for name in known:
        own = torch.from_numpy(names == name).to(z.device)
        distances.append(sliced_wasserstein(z[own], z[~own], projections, generator))
    return torch.stack(distances).mean()


def pair_info_nce(
    first: Tensor, second: Tensor, frames: np.ndarray, devices: Sequence[str], temperature: float, mask_frames: int
) -> Tensor:
    """Symmetric InfoNCE over a batch of temporal pairs (global L_task): first, second [b, d] unit norm; a scalar.

    Row i of `first` and of `second` are two windows of one device; `frames` [2 b] and `devices` (2 b) name the rows of
    both, first then second. Other rows of the same device within `mask_frames` frames are likely the same sound: they
    are no negatives. With in-batch negatives only, small batches lose nothing against large ones.
    """
    z = torch.cat([first, second])
    count = len(first)
    logits = z @ z.T / temperature
    near = _near(np.asarray(frames), devices, mask_frames)
    positive = (np.arange(2 * count) + count) % (2 * count)
    near[np.arange(2 * count), positive] = False  # the positive stays in the sum
    np.fill_diagonal(near, True)
    logits = logits.masked_fill(torch.from_numpy(near).to(z.device), float("-inf"))
    return functional.cross_entropy(logits, torch.from_numpy(positive).to(z.device))


def target_loss(first: Tensor, second: Tensor, first_target: Tensor, second_target: Tensor) -> Tensor:
    """Each window predicts the frozen embedding of the *other* window of its pair: mean of 1 - cosine, a scalar.

    This is what keeps a warm start's geometry while improving it (docs/design.md).
    """
    forward = functional.cosine_similarity(first, second_target, dim=1)
    backward = functional.cosine_similarity(second, first_target, dim=1)
    return 1.0 - (forward.mean() + backward.mean()) / 2


def label_loss(z: Tensor, labels: np.ndarray, temperature: float) -> Tensor:
    """Cross-entropy over the batch's own class means, for rows with a label (>= 0): a scalar, 0 without two classes.

    A row's own embedding is left out of its class mean; a class seen once in the batch is only ever a wrong answer.
    """
    labels = np.asarray(labels)
    classes, counts = np.unique(labels[labels >= 0], return_counts=True)
    rows = np.flatnonzero(np.isin(labels, classes[counts >= 2]))
    if len(classes) < 2 or not len(rows):
        return z.sum() * 0.0
    member = torch.from_numpy(labels[None, :] == classes[:, None]).to(device=z.device, dtype=z.dtype)  # [classes, n]
    sums = member @ z
    mine = torch.from_numpy(np.searchsorted(classes, labels[rows])).to(z.device)
    means = sums[None].expand(len(rows), -1, -1).clone()  # [rows, classes, d]
    means[torch.arange(len(rows), device=z.device), mine] -= z[rows]
    logits = torch.einsum("rd,rcd->rc", z[rows], functional.normalize(means, dim=2)) / temperature
    return functional.cross_entropy(logits, mine)


def _near(frames: np.ndarray, devices: Sequence[str], mask_frames: int) -> np.ndarray:
    names = np.asarray(list(devices))
    close = np.abs(frames[:, None] - frames[None, :]) <= mask_frames
    return close & (names[:, None] == names[None, :])
