"""Training windows as the encoder takes them: stored in half precision, embedded in groups of one block and shape."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from streamsplit.encoders.base import BANDS, SplitEncoder
from streamsplit.encoders.crossing import Crossing
from streamsplit.errors import EncoderError
from streamsplit.refinement.reservoir import StoredWindow


def stored_features(
    device: str, window: int, features: np.ndarray, starts: bool = False, at_ms: float = 0.0
) -> StoredWindow:
    """A window of log-mel features [f, t] for the reservoir; raises EncoderError on NaN or a wrong shape."""
    return StoredWindow(device, window, 0, _half(features, 2, "features"), starts=starts, at_ms=at_ms)


def stored_crossing(
    encoder: SplitEncoder,
    device: str,
    window: int,
    crossing: Crossing,
    block: int,
    revision: str,
    starts: bool = False,
    at_ms: float = 0.0,
) -> StoredWindow:
    """What crossed after `block` of `encoder`'s blocks, for the reservoir; raises EncoderError if it does not fit."""
    if not 1 <= block < encoder.num_blocks:
        raise EncoderError(f"got a crossing after block {block}, expected 1..{encoder.num_blocks - 1}")
    if len(crossing.h) != 1 or crossing.partial.shape != (1, encoder.embedding_dim):
        raise EncoderError(
            f"got a crossing {tuple(crossing.h.shape)} with sum {tuple(crossing.partial.shape)}, expected one window"
        )
    partial = crossing.partial[0].detach().cpu().numpy().astype(np.float32)
    if not np.isfinite(partial).all():
        raise EncoderError("got NaN or infinity in a crossing's sum, expected finite numbers")
    h = _half(crossing.h[0].detach().cpu().numpy(), 3, "a crossing")
    return StoredWindow(device, window, block, h, partial, revision, starts=starts, at_ms=at_ms)


def embed_windows(encoder: SplitEncoder, batch: list[StoredWindow]) -> Tensor:
    """Embeddings [n, d] in the order of `batch`, one forward per block and shape; with gradients where enabled."""
    device = next(encoder.parameters()).device
    groups: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for row, item in enumerate(batch):
        groups.setdefault((item.block, item.h.shape), []).append(row)
    parts: list[Tensor] = []
    order: list[int] = []
    for (block, _), rows in groups.items():
        h = torch.from_numpy(np.stack([batch[row].h for row in rows]).astype(np.float32)).to(device)
        if block == 0:
            parts.append(encoder(h))
        else:
            sums = torch.from_numpy(np.stack([_partial(batch[row]) for row in rows])).to(device)
            parts.append(encoder.forward_from(Crossing(h, sums), block))
        order += rows
    return torch.cat(parts)[torch.from_numpy(np.argsort(order)).to(device)]


def frozen_targets(teacher: SplitEncoder, batch: list[StoredWindow]) -> Tensor:
    """The teacher's embeddings [n, d]; each is computed once and kept with its window in half precision."""
    missing = [item for item in batch if item.target is None]
    if missing:
        with torch.no_grad():
            z = embed_windows(teacher, missing).cpu().numpy().astype(np.float16)
        for item, row in zip(missing, z, strict=True):
            item.target = row
    stacked = np.stack([item.target for item in batch if item.target is not None]).astype(np.float32)
    return torch.from_numpy(stacked).to(next(teacher.parameters()).device)


def embed_features(encoder: SplitEncoder, features: np.ndarray, batch: int = 64) -> np.ndarray:
    """Embeddings [n, d] of features [n, f, t], without gradients."""
    device = next(encoder.parameters()).device
    with torch.no_grad():
        parts = [
            encoder(torch.from_numpy(part).to(device))
            for part in np.split(features, range(batch, len(features), batch))
        ]
    return torch.cat(parts).cpu().numpy()


def full_resolution(items: Iterable[StoredWindow], most: int) -> np.ndarray:
    """Up to `most` full-resolution windows [n, 128, t] of the most frequent length, evenly spread over `items`."""
    held = [item.h for item in items if item.block == 0 and item.h.shape[0] == BANDS]
    if not held:
        return np.empty((0, BANDS, 0), dtype=np.float32)
    lengths = [h.shape for h in held]
    usual = max(set(lengths), key=lengths.count)
    held = [h for h in held if h.shape == usual]
    chosen = np.unique(np.linspace(0, len(held) - 1, min(most, len(held))).round().astype(int))
    return np.stack([held[row] for row in chosen]).astype(np.float32)


def label_numbers(batch: list[StoredWindow]) -> np.ndarray:
    """Labels as numbers [n], -1 where a window has none."""
    names = sorted({item.label for item in batch if item.label})
    return np.array([names.index(item.label) if item.label else -1 for item in batch])


def frozen_copy(encoder: SplitEncoder) -> SplitEncoder:
    """A copy in evaluation mode whose weights do not learn."""
    frozen = copy.deepcopy(encoder).eval()
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return frozen


def _half(values: np.ndarray, dims: int, what: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != dims or not np.isfinite(values).all():
        raise EncoderError(f"got {what} of shape {values.shape} or with NaN, expected {dims} dimensions, finite")
    with np.errstate(over="ignore"):  # what does not fit in half precision is not trained on
        return values.astype(np.float16)


def _partial(item: StoredWindow) -> np.ndarray:
    if item.partial is None:
        raise EncoderError(f"got a crossing after block {item.block} without its sum")
    return item.partial
