"""Sliced Wasserstein distance: between two samples of any sizes, and from a sample to the uniform law on the sphere."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from streamsplit.errors import EncoderError

_GRID_POINTS = 20_001
_SMALLEST = 1e-12  # keeps the root's gradient finite when two samples coincide


def random_directions(
    count: int, dim: int, generator: torch.Generator | None = None, like: Tensor | None = None
) -> Tensor:
    """`count` directions drawn uniformly on the unit sphere, [count, d]; drawn on the CPU: seeds are portable."""
    directions = torch.randn(count, dim, generator=generator)
    directions = directions / directions.norm(dim=1, keepdim=True).clamp_min(_SMALLEST)
    return directions if like is None else directions.to(device=like.device, dtype=like.dtype)


def wasserstein_1d(x: Tensor, y: Tensor, order: int = 2) -> Tensor:
    """W_order^order of the samples in each column, exact for unequal sizes: x [n, p], y [m, p] -> [p].

    Integrates |Qx(u) - Qy(u)|^order over the merged steps of both quantile functions; the steps are found with whole
    numbers (multiples of 1 / (n m)), so no step is lost to rounding.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise EncoderError(f"got samples {tuple(x.shape)} and {tuple(y.shape)}, expected [n, p] and [m, p], n, m >= 1")
    xs, ys = torch.sort(x, dim=0).values, torch.sort(y, dim=0).values
    if len(x) == len(y):
        gap = (xs - ys).abs()
        return (gap if order == 1 else gap**order).mean(dim=0)
    rows_x, rows_y, widths = _merged_steps(len(x), len(y))
    gap = (xs[rows_x.to(x.device)] - ys[rows_y.to(y.device)]).abs()
    weights = widths.to(device=x.device, dtype=x.dtype)
    return weights @ (gap if order == 1 else gap**order)


def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    projections: int = 50,
    generator: torch.Generator | None = None,
    *,
    order: int = 2,
    directions: Tensor | None = None,
) -> Tensor:
    """Sliced Wasserstein distance of order 1 or 2 between x [n, d] and y [m, d]: a scalar with gradients to both.

    The mean over directions of W^order, to the power 1 / order. Give `directions` [p, d] to fix the projections.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise EncoderError(f"got samples {tuple(x.shape)} and {tuple(y.shape)}, expected [n, d] and [m, d]")
    if directions is None:
        directions = random_directions(projections, x.shape[1], generator, like=x)
    mean = wasserstein_1d(x @ directions.T, y @ directions.T, order).mean()
    return mean if order == 1 else mean.clamp_min(_SMALLEST) ** (1.0 / order)


def sliced_wasserstein_to_uniform(
    x: Tensor, projections: int = 50, generator: torch.Generator | None = None, *, directions: Tensor | None = None
) -> Tensor:
    """Sliced 2-Wasserstein distance of x [n, d] to the uniform law on the unit sphere of R^d (v2's L_SW): a scalar.

    The law itself is the target, not a sample of it: every projection has the density ~ (1 - s^2)^((d - 3) / 2), whose
    quantile means are known, so the value has no sampling noise beyond the directions.
    """
    if x.ndim != 2 or x.shape[1] < 2 or not len(x):
        raise EncoderError(f"got a sample {tuple(x.shape)}, expected [n, d] with n >= 1 and d >= 2")
    if directions is None:
        directions = random_directions(projections, x.shape[1], generator, like=x)
    means, spread = sphere_quantile_means(len(x), x.shape[1])
    target = torch.tensor(means, device=x.device, dtype=x.dtype)
    ordered = torch.sort(x @ directions.T, dim=0).values
    squared = ((ordered - target[:, None]) ** 2).mean() + spread
    return squared.clamp_min(_SMALLEST).sqrt()


@lru_cache(maxsize=64)
def sphere_quantile_means(n: int, dim: int) -> tuple[np.ndarray, float]:
    """Mean of the sphere's 1-D projection over each n-th of its mass ([n], ascending), and the variance left inside.

    With these, W_2^2 of n sorted values v to the law is mean((v - means)^2) + variance, exactly.
    """
    edges = sphere_quantiles(np.arange(1, n) / n, dim)
    edges = np.concatenate([[-1.0], edges, [1.0]])
    # The density is c (1 - s^2)^((d-3)/2); the primitive of s times it is -c (1 - s^2)^((d-1)/2) / (d - 1).
    primitive = -_sphere_density_constant(dim) * (1.0 - edges**2) ** ((dim - 1) / 2) / (dim - 1)
    means = n * np.diff(primitive)
    means.flags.writeable = False
    return means, max(0.0, 1.0 / dim - float(np.mean(means**2)))


def sphere_quantiles(mass: np.ndarray, dim: int) -> np.ndarray:
    """Quantiles of one coordinate of a uniform point on the unit sphere of R^dim, for `mass` in (0, 1)."""
    # With s = sin(a) the density in a is ~ cos(a)^(d - 2): smooth for every d >= 2, and narrow around 0 for large d.
    reach = min(np.pi / 2, 14.0 / np.sqrt(dim))
    angle = np.linspace(-reach, reach, _GRID_POINTS)
    density = np.cos(angle) ** (dim - 2)
    middle = np.cos((angle[1:] + angle[:-1]) / 2) ** (dim - 2)
    mass_of_cells = (density[1:] + density[:-1] + 4 * middle) / 6  # Simpson's rule
    below = np.concatenate([[0.0], np.cumsum(mass_of_cells)])
    # Far in the tails the cumulated mass no longer grows in float64; interpolation needs it strictly increasing.
    keep = np.concatenate([[True], np.diff(below) > 0])
    return np.sin(np.interp(mass, below[keep] / below[-1], angle[keep]))


def _sphere_density_constant(dim: int) -> float:
    return math.exp(math.lgamma(dim / 2) - math.lgamma((dim - 1) / 2)) / math.sqrt(math.pi)


@lru_cache(maxsize=256)
def _merged_steps(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which sorted row of each sample holds on each step of the merged quantile grid, and the step's width."""
    edges = np.union1d(np.arange(n + 1, dtype=np.int64) * m, np.arange(m + 1, dtype=np.int64) * n)
    left = edges[:-1]
    widths = np.diff(edges) / (n * m)
    return torch.from_numpy(left // m), torch.from_numpy(left // n), torch.from_numpy(widths)
