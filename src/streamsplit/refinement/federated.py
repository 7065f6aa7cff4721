"""Federated merge: local learning of devices, weighted by samples, with stale and oversized contributions held back."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from streamsplit.errors import RevisionError

Weights = dict[str, np.ndarray]


class Merged(NamedTuple):
    """What `LocalMerge.apply` gives: the merged weights, and how many devices and samples went in."""

    weights: Weights
    devices: int
    samples: int


class LocalMerge:
    """Collects weight differences until the next revision: memory of one set of weights, however many devices.

    With w_d = samples of device d and a(s) = (1 + s)^-0.5 for a difference made s revisions ago (FedAsync, Xie et al.
    2019), the merged step is (w_0 D_0 + sum_d w_d a(s_d) D_d) / (w_0 + sum_d w_d), D_0 the server's own learning.
    A stale device therefore counts in full in the denominator and less in the numerator: its step shrinks.
    """

    def __init__(self, max_relative_norm: float = 0.5) -> None:
        self.max_relative_norm = max_relative_norm
        self.clear()

    def clear(self) -> None:
        """Forgets what was collected."""
        self.sums: Weights = {}
        self.samples = 0
        self.devices: set[str] = set()

    def add(self, device: str, base: Weights, difference: Weights, samples: int, staleness: int) -> None:
        """Takes one difference to `base`; raises RevisionError where names, shapes or values do not fit.

        A difference longer than `max_relative_norm` of the base's norm is scaled down to it.
        """
        if samples < 1 or staleness < 0:
            raise RevisionError(f"got {samples} samples and staleness {staleness}, expected at least 1 and 0")
        unknown = [name for name in difference if name not in base]
        if unknown or not difference:
            raise RevisionError(f"got a difference with unknown arrays {unknown[:3]}, expected arrays of the encoder")
        for name, array in difference.items():
            if array.shape != base[name].shape:
                raise RevisionError(f"got {name} of shape {array.shape}, expected {base[name].shape}")
            if not np.isfinite(array).all():
                raise RevisionError(f"got NaN or infinity in the difference of {name}; the device must learn anew")
        limit = self.max_relative_norm * _norm(base)
        length = _norm(difference)
        scale = samples * (1.0 + staleness) ** -0.5 * min(1.0, limit / max(length, 1e-12))
        for name, array in difference.items():
            held = self.sums.get(name)
            self.sums[name] = scale * array.astype(np.float64) + (0.0 if held is None else held)
        self.samples += samples
        self.devices.add(device)

    def apply(self, published: Weights, own: Weights, own_samples: int) -> Merged:
        """The server's weights with everything collected merged in; starts collecting anew.

        `published` is what the server's own learning `own` (over `own_samples` windows) started from.
        """
        devices, samples = len(self.devices), self.samples
        if not samples:
            return Merged(own, 0, 0)
        total = float(own_samples + samples)
        merged: Weights = {}
        for name, start in published.items():
            step = own_samples * (own[name].astype(np.float64) - start)
            if name in self.sums:
                step = step + self.sums[name]
            merged[name] = (start + step / total).astype(start.dtype)
        self.clear()
        return Merged(merged, devices, samples)


def _norm(weights: Weights) -> float:
    return float(np.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in weights.values())))
