"""What is computed once from each window of a shuffle buffer, and kept with its slot."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from streamsplit.encoders.base import SplitEncoder

Array = NDArray[np.float32]


class SlotCache:
    """Vectors [dim] of a buffer's windows, each computed when it is first asked for, until its slot takes another.

    One window at a time: what comes out does not depend on which windows are asked for together, so a learner that
    goes on from a snapshot, with nothing in its cache, goes on bit for bit.
    """

    def __init__(
        self, capacity: int, dim: int, compute: Callable[[Array], Array], dtype: type[np.floating] = np.float32
    ) -> None:
        """`compute` makes a vector [dim] of one window [f, t]."""
        self._compute = compute
        self._vectors = np.zeros((capacity, dim), dtype)
        self._known = np.zeros(capacity, bool)

    def __call__(self, slots: NDArray[np.intp], windows: Array) -> Array:
        """Vectors [n, dim] of the windows [n, f, t] that are in these slots now."""
        for slot, window in zip(slots, windows, strict=True):
            if not self._known[slot]:
                self._vectors[slot] = self._compute(window)
                self._known[slot] = True
        vectors: Array = self._vectors[slots].astype(np.float32)
        return vectors

    def forget(self, slot: int) -> None:
        """The slot took another window."""
        self._known[slot] = False

    def clear(self) -> None:
        """What vectors are computed with has changed."""
        self._known[:] = False

    def state_bytes(self) -> int:
        """Bytes held; constant."""
        return self._vectors.nbytes + self._known.nbytes


def readout_cache(encoder: SplitEncoder, capacity: int) -> SlotCache:
    """Readout statistics behind an encoder's blocks, in half precision: for as long as the blocks do not learn."""

    @torch.no_grad()
    def statistics(window: Array) -> Array:
        found: Array = encoder.readout_features(torch.from_numpy(window)[None])[0].numpy()
        return found

    return SlotCache(capacity, sum(site.features for site in encoder.sites), statistics, np.float16)
