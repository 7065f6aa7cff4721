"""Temporal and nearest-neighbour graphs over a batch, and the Laplacian smoothness of embeddings on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from streamsplit.errors import EncoderError


class Graph(NamedTuple):
    """Undirected edges, each once: rows [e, 2] int64 with i < j, weights [e] float32 in (0, 1]."""

    edges: np.ndarray
    weights: np.ndarray


def temporal_graph(
    frames: np.ndarray, devices: Sequence[str] | None = None, k: int = 5, horizon: int | None = None
) -> Graph:
    """Joins every row to the k rows of the same device that are nearest in frame index (v2).

    Gaps and any order are fine; ties go to the earlier frame. Rows further apart than `horizon` frames are not joined.
    Weights are exp(-gap^2 / 2 s^2), s the median gap of the edges (the papers leave v2's weights open; this is v1's
    rule applied to time).
    """
    frames = np.asarray(frames, dtype=np.int64)
    names = np.asarray(["" for _ in frames] if devices is None else list(devices))
    if frames.ndim != 1 or len(names) != len(frames):
        raise EncoderError(f"got {frames.shape} frames and {len(names)} devices, expected one each per row")
    pairs: list[np.ndarray] = []
    for name in dict.fromkeys(names.tolist()):
        rows = np.flatnonzero(names == name)
        if len(rows) < 2:
            continue
        gap = np.abs(frames[rows][:, None] - frames[rows][None, :]).astype(np.float64)
        np.fill_diagonal(gap, np.inf)
        if horizon is not None:
            gap[gap > horizon] = np.inf
        order = np.lexsort((np.broadcast_to(frames[rows], gap.shape), gap), axis=1)[:, :k]
        chosen = np.isfinite(np.take_along_axis(gap, order, axis=1))
        from_rows = np.repeat(rows, order.shape[1]).reshape(order.shape)
        pairs.append(np.stack([from_rows[chosen], rows[order[chosen]]], axis=1))
    edges = _undirected(pairs)
    gaps = np.abs(frames[edges[:, 0]] - frames[edges[:, 1]]).astype(np.float64)
    return Graph(edges, _gaussian(gaps))


def gap_graph(edges: Sequence[tuple[int, int]], gaps: Sequence[int]) -> Graph:
    """A graph of given edges (i, j), in any order and direction, weighted by their gap in frames as above."""
    gap_of = {(min(edge), max(edge)): gap for edge, gap in zip(edges, gaps, strict=True)}
    ordered = sorted(gap_of)
    rows = np.array(ordered, dtype=np.int64).reshape(-1, 2)
    return Graph(rows, _gaussian(np.array([gap_of[edge] for edge in ordered], dtype=np.float64)))


def neighbour_graph(z: Tensor, k: int = 10) -> Graph:
    """Joins every row of z [n, d] to its k nearest rows, Gaussian weights with sigma = median distance (v1)."""
    if z.ndim != 2:
        raise EncoderError(f"got embeddings {tuple(z.shape)}, expected [n, d]")
    if len(z) < 2:
        return Graph(np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.float32))
    distance = torch.cdist(z.detach(), z.detach()).cpu().numpy().astype(np.float64)
    np.fill_diagonal(distance, np.inf)
    order = np.argsort(distance, axis=1, kind="stable")[:, : min(k, len(z) - 1)]
    from_rows = np.repeat(np.arange(len(z)), order.shape[1])
    edges = _undirected([np.stack([from_rows, order.reshape(-1)], axis=1)])
    return Graph(edges, _gaussian(distance[edges[:, 0], edges[:, 1]]))


def laplacian_loss(z: Tensor, graph: Graph) -> Tensor:
    """Mean over edges of w_ij ||z_i - z_j||^2, a scalar (0 without edges); equals trace(z' L z) / number of edges."""
    if not len(graph.edges):
        return z.sum() * 0.0
    edges = torch.from_numpy(graph.edges).to(z.device)
    weights = torch.from_numpy(graph.weights).to(device=z.device, dtype=z.dtype)
    return (weights * (z[edges[:, 0]] - z[edges[:, 1]]).pow(2).sum(dim=1)).mean()


def _undirected(pairs: list[np.ndarray]) -> np.ndarray:
    if not pairs or not sum(len(p) for p in pairs):
        return np.empty((0, 2), dtype=np.int64)
    return np.unique(np.sort(np.concatenate(pairs).astype(np.int64), axis=1), axis=0)


def _gaussian(distance: np.ndarray) -> np.ndarray:
    if not len(distance):
        return np.empty(0, dtype=np.float32)
    sigma = max(float(np.median(distance)), 1e-12)
    return np.exp(-(distance**2) / (2 * sigma**2)).astype(np.float32)
