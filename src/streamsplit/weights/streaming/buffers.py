"""Memory that weights are received into."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ALIGNMENT = 64  # kernels may round otherwise where data lies askew: equal alignment, equal bits


def aligned_copy(data: bytes) -> np.ndarray:
    """Bytes as an aligned array [size] uint8 of their own."""
    buffer = aligned_buffer(len(data))
    buffer[:] = np.frombuffer(data, np.uint8)
    return buffer


def aligned_buffer(size: int) -> np.ndarray:
    """Uninitialised bytes [size] uint8 that begin at a multiple of 64."""
    raw = np.empty(size + ALIGNMENT, np.uint8)
    shift = -raw.ctypes.data % ALIGNMENT
    return raw[shift : shift + size]


class Base(NamedTuple):
    """A chunk of an older revision, which a delta may turn into one of the present."""

    digest: str
    data: np.ndarray  # its stored bytes [size] uint8, aligned; whoever applies the delta writes into them
