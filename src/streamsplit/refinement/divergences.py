"""What may stand in place of the sliced Wasserstein term: squared error in time, Gaussian KL divergence, kernel MMD."""

from __future__ import annotations

import torch
from torch import Tensor

from streamsplit.errors import EncoderError
from streamsplit.refinement.laplacian import Graph
from streamsplit.refinement.wasserstein import random_directions

_SMALLEST = 1e-12
_VARIANCE_FLOOR = 1e-3  # of the uniform law's variance, added to both: a collapsed batch stays finite


def neighbour_mean_error(rows: Tensor, graph: Graph, count: int) -> Tensor:
    """Squared distance of a row to the mean of its neighbours in `graph`, averaged over rows of [n, d]: a scalar.

    Only the first `count` rows are pulled, those without a neighbour left out; 0 where none has one. Unlike the
    Laplacian the neighbours count alike and are averaged first, so their spread around the row costs nothing.
    """
    if not len(graph.edges):
        return rows.sum() * 0.0
    edges = torch.from_numpy(graph.edges).to(rows.device)
    ends = torch.cat([edges, edges.flip(1)])
    sums = torch.zeros_like(rows).index_add(0, ends[:, 0], rows[ends[:, 1]])
    degree = torch.bincount(ends[:, 0], minlength=len(rows))
    joined = torch.nonzero(degree[:count])[:, 0]
    if not len(joined):
        return rows.sum() * 0.0
    means = sums[joined] / degree[joined, None].to(rows.dtype)
    return (rows[joined] - means).pow(2).sum(dim=1).mean()


def gaussian_kl(mean: Tensor, variance: Tensor, other_mean: Tensor, other_variance: Tensor) -> Tensor:
    """KL(first || other) of two Gaussian laws with diagonal covariance, all [d]: nats per dimension, a scalar."""
    gap = (mean - other_mean).pow(2)
    return 0.5 * ((variance + gap) / other_variance - 1.0 + (other_variance / variance).log()).mean()


def kl_to_uniform(x: Tensor) -> Tensor:
    """`gaussian_kl` from the fit of x [n, d] to that of the uniform law on the unit sphere (mean 0, variance 1/d)."""
    _check_sample(x, least=2)
    mean, variance = _fit(x)
    share = (1.0 + _VARIANCE_FLOOR) / x.shape[1]
    return gaussian_kl(mean, variance, torch.zeros_like(mean), torch.full_like(variance, share))


def kl_between(x: Tensor, y: Tensor) -> Tensor:
    """`gaussian_kl` from the fit of x [n, d] to that of y [m, d]: a scalar."""
    _check_sample(x, least=2)
    _check_sample(y, least=2)
    return gaussian_kl(*_fit(x), *_fit(y))


def mmd_squared(x: Tensor, y: Tensor, bandwidth: float | None = None) -> Tensor:
    """Unbiased MMD^2 of x [n, d] and y [m, d] with kernel exp(-r^2 / 2 s^2), s the `bandwidth`: a scalar.

    For equal laws it is below 0 as often as above. Without a `bandwidth` s is the median distance of all rows of both,
    which has no gradient.
    """
    _check_sample(x, least=2)
    _check_sample(y, least=2)
    if x.shape[1] != y.shape[1]:
        raise EncoderError(f"got samples {tuple(x.shape)} and {tuple(y.shape)}, expected the same width")
    pooled = torch.cat([x, y])
    squares = pooled.pow(2).sum(dim=1)
    distance = (squares[:, None] + squares[None, :] - 2.0 * pooled @ pooled.T).clamp_min(0.0)
    if bandwidth is None:
        upper = torch.triu_indices(len(pooled), len(pooled), offset=1, device=x.device)
        variance = float(distance.detach()[upper[0], upper[1]].median())
    else:
        variance = bandwidth**2
    kernel = torch.exp(-distance / (2.0 * max(variance, _SMALLEST)))
    n, m = len(x), len(y)
    same = kernel[:n, :n], kernel[n:, n:]
    within = [(block.sum() - block.diagonal().sum()) / (len(block) * (len(block) - 1)) for block in same]
    return within[0] + within[1] - 2.0 * kernel[:n, n:].sum() / (n * m)


def mmd_to_uniform(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """`mmd_squared` of x [n, d] to as many points drawn from the uniform law on the unit sphere: a scalar."""
    _check_sample(x, least=2)
    return mmd_squared(x, random_directions(len(x), x.shape[1], generator, like=x))


def _fit(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(dim=0), x.var(dim=0, unbiased=False) + _VARIANCE_FLOOR / x.shape[1]


def _check_sample(x: Tensor, least: int) -> None:
    if x.ndim != 2 or len(x) < least or not x.shape[1]:
        raise EncoderError(f"got a sample {tuple(x.shape)}, expected [n, d] with n >= {least}")
