"""The server's task loss on pairs of windows close in time: contrast, and predicting what a frozen encoder says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from streamsplit.learning.contrastive import prediction_loss
from streamsplit.refinement.settings import RefinerSettings


class TaskLoss(NamedTuple):
    """Scalars with gradients; total = weighted others."""

    total: Tensor
    contrast: Tensor
    target: Tensor  # mean 1 - cosine to the other window's target


def task_loss(
    z: Tensor, targets: Tensor | None, frames: np.ndarray, devices: Sequence[str], settings: RefinerSettings
) -> TaskLoss:
    """The loss of pairs from their embeddings z [2 b, d] unit norm, first windows then second ones.

    `targets` [2 b, d] are a frozen encoder's embeddings of the same windows; needed unless `settings.needs_targets` is
    false. `frames` [2 b] and `devices` (2 b) name the rows. Each window predicts the target of the other window of its
    pair and its own one: the first improves the geometry, the second keeps what the start knew (docs/design.md).
    """
    half = len(z) // 2
    alike = None
    target = z.new_zeros(())
    if targets is not None:
        alike = targets @ targets.T > settings.mask_similarity
        other = targets.roll(half, 0)
        target = prediction_loss(z, other)
    contrast = pair_info_nce(
        z[:half], z[half:], frames, devices, settings.temperature, settings.mask_windows, alike=alike
    )
    total = settings.contrast_weight * contrast + settings.target_weight * target
    if targets is not None and settings.own_weight:
        total = total + settings.own_weight * prediction_loss(z, targets)
    return TaskLoss(total, contrast, target)


def pair_info_nce(
    first: Tensor, second: Tensor, frames: np.ndarray, devices: Sequence[str], temperature: float, mask_frames: int,
    *, alike: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Symmetric InfoNCE over a batch of temporal pairs (global L_task): first, second [b, d] unit norm; a scalar.

    Row i of `first` and of `second` are two windows of one device; `frames` [2 b] and `devices` (2 b) name the rows of
    both, first then second. Other rows of the same device within `mask_frames` frames are likely the same sound: they
    are no negatives, and neither are those that `alike` [2 b, 2 b] marks. With in-batch negatives only, small batches
    lose nothing against large ones.
    """
    z = torch.cat([first, second])
    count = len(first)
    logits = z @ z.T / temperature
    near = _near(np.asarray(frames), devices, mask_frames)
    if alike is not None:
        near |= alike.cpu().numpy()
    positive = (np.arange(2 * count) + count) % (2 * count)
    near[np.arange(2 * count), positive] = False  # the positive stays in the sum
    np.fill_diagonal(near, True)
    logits = logits.masked_fill(torch.from_numpy(near).to(z.device), float("-inf"))
    return functional.cross_entropy(logits, torch.from_numpy(positive).to(z.device))


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
