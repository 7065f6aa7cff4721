"""Streaming InfoNCE (v1 and v2): one positive against in-batch negatives and remembered or virtual ones."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from streamsplit.errors import EncoderError


def streaming_info_nce(
    query: Tensor,
    positive: Tensor,
    *,
    temperature: float = 0.1,
    negatives: Tensor | None = None,
    weights: Tensor | None = None,
    in_batch: bool = True,
    excluded: Tensor | None = None,
    reduce: bool = True,
) -> Tensor:
    """Mean over the batch of -log( exp(s+/T) / (exp(s+/T) + sum_j w_j exp(s_j/T)) ), a scalar >= 0.

    query, positive: [b, d], unit norm. negatives: [b, m, d] per anchor or [m, d] for all; weights: [b, m] or [m] >= 0
    (0 leaves one out). in_batch adds the other windows' positives, except where excluded [b, b] is True
    (temporally close windows). Without any negative the loss is 0. reduce=False gives each anchor's loss [b].
    """
    if query.shape != positive.shape or query.ndim != 2:
        raise EncoderError(
            f"got query {tuple(query.shape)} and positive {tuple(positive.shape)}, expected equal [b, d]"
        )
    b = query.shape[0]
    own = (query * positive).sum(1, keepdim=True) / temperature
    terms = [own]
    if in_batch and b > 1:
        hidden = torch.eye(b, dtype=torch.bool, device=query.device)
        if excluded is not None:
            hidden = hidden | excluded
        terms.append((query @ positive.T / temperature).masked_fill(hidden, float("-inf")))
    if negatives is not None and negatives.shape[-2] > 0:
        pattern = "bd,bmd->bm" if negatives.ndim == 3 else "bd,md->bm"
        score = torch.einsum(pattern, query, negatives) / temperature
        if weights is not None:
            score = score + weights.clamp_min(0.0).log()
        terms.append(score)
    each = torch.logsumexp(torch.cat(terms, dim=1), dim=1) - own[:, 0]
    return each.mean() if reduce else each


def consistency(query: Tensor, key: Tensor) -> Tensor:
    """Mean of ||z_query - z_key||^2 over the batch, both [b, d].

    v1 names no second window here. The learner gives the key of the *positive*, a window close in time: the same window
    through two encoders that follow each other as closely as ours (momentum 0.9) would make the term nearly nothing.
    """
    return (query - key).square().sum(1).mean()


def prediction_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean of 1 - cosine between predictions [b, g] and frozen targets [b, g], of its own or another window."""
    return 1.0 - functional.cosine_similarity(predicted, target, dim=1).mean()


def positive_law(distances: NDArray[np.int64], decay: float) -> NDArray[np.float64]:
    """Probability of each candidate as the positive, ~ exp(-decay |d|), d in windows (v1)."""
    distance = np.abs(distances).astype(np.float64)
    law = np.exp(-decay * (distance - distance.min()))
    return law / law.sum()


def load_adaptive_rate(rate: float, cpu_load: float) -> float:
    """Learning rate under load: unchanged up to 80 % CPU, then halved for every further 5 % (100 %: a sixteenth)."""
    return float(rate * 0.5 ** (max(0.0, min(cpu_load, 1.0) - 0.8) / 0.05))
