"""Revisions: encoder weights as plain arrays, and the content hash that names them."""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

import numpy as np

from streamsplit.errors import RevisionError

if TYPE_CHECKING:
    from torch import nn

Weights = dict[str, np.ndarray]
"""Parameter name to float32 array."""

REVISION_HEX = 64  # characters of a revision


def revision_of(weights: Weights) -> str:
    """Hex SHA-256 over names, shapes and little-endian float32 bytes in name order; raises RevisionError."""
    digest = hashlib.sha256(b"streamsplit-weights-1")
    for name in sorted(weights):
        array = weights[name]
        if array.dtype != np.float32:
            raise RevisionError(f"got {array.dtype} for '{name}', expected float32")
        encoded = name.encode()
        digest.update(struct.pack(f"<I{len(encoded)}sB{array.ndim}Q", len(encoded), encoded, array.ndim, *array.shape))
        digest.update(np.ascontiguousarray(array, "<f4").data)
    return digest.hexdigest()


def check_revision(revision: str) -> str:
    """Returns a well-formed revision (64 lower-case hex digits); raises RevisionError."""
    if len(revision) != REVISION_HEX or not set(revision) <= set("0123456789abcdef"):
        raise RevisionError(f"got revision '{revision[:80]}', expected {REVISION_HEX} lower-case hex digits")
    return revision


def revision_prefix(revision: str) -> int:
    """The first four bytes as u32, big-endian, as media headers carry it; 0 for the empty revision ''."""
    return int(check_revision(revision)[:8], 16) if revision else 0


def encoder_weights(module: nn.Module) -> Weights:
    """Copies of all of a module's parameters and buffers as float32 arrays on the host."""
    return {
        name: np.array(tensor.detach().cpu().float().numpy(), np.float32, order="C")
        for name, tensor in module.state_dict().items()
    }


def load_weights(module: nn.Module, weights: Weights) -> None:
    """Copies weights into a module in place; raises RevisionError, before any change, if names, shapes or values
    do not fit."""
    import torch

    own = module.state_dict()
    check_same_layout(weights, {name: tuple(tensor.shape) for name, tensor in own.items()})
    check_finite(weights)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(torch.from_numpy(np.asarray(weights[name], order="C")))


def check_same_layout(weights: Weights, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises RevisionError naming the first array that is missing, unknown or of another shape."""
    for name in sorted(weights.keys() ^ shapes.keys()):
        state = "unknown" if name in weights else "missing"
        raise RevisionError(f"'{name}' is {state}: these weights belong to another encoder (or its bottlenecks differ)")
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise RevisionError(f"got shape {weights[name].shape} for '{name}', expected {shape}")


def check_finite(weights: Weights) -> None:
    """Raises RevisionError naming the first array with NaN or infinite values."""
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise RevisionError(f"got NaN or infinite values in '{name}', expected finite weights")
