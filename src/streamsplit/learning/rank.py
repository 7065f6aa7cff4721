"""Effective rank of embeddings, of a batch and of a stream in constant memory: the first sign of collapse."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def effective_rank(z: np.ndarray) -> float:
    """exp(entropy of the normalised singular values) of the rows z [n, d], not centred (Roy and Vetterli 2007).

    For unit-norm embeddings: 1 when all are one point (or its opposite), at most min(n, d). Without centring, a
    collapse to a point counts even when what is left around it is noise in every direction. 0 for no rows.
    """
    z = np.asarray(z, dtype=np.float64)
    if z.ndim != 2 or not len(z):
        return 0.0
    return _rank(np.linalg.svd(z, compute_uv=False))


class RunningRank:
    """exp(entropy of the normalised singular values) of the centred stream (Roy and Vetterli 2007), in 1..d.

    Mean and covariance are moving averages over about `window` embeddings. `about_origin` is the same without
    centring, as `effective_rank` has it.
    """

    def __init__(self, dim: int, window: int = 256, refresh: int = 16) -> None:
        self.window, self.refresh = window, refresh
        self._mean = np.zeros(dim)
        self._second = np.zeros((dim, dim))
        self._seen = 0
        self._value = 0.0
        self._about_origin = 0.0

    def observe(self, z: NDArray[np.float32]) -> None:
        """Counts one embedding [d]."""
        self._seen += 1
        rate = 1.0 / min(self._seen, self.window)
        wide = z.astype(np.float64)
        self._mean += rate * (wide - self._mean)
        self._second *= 1.0 - rate
        self._second += np.multiply.outer(rate * wide, wide)
        if self._seen % self.refresh == 0:
            self._value = _moment_rank(self._second - np.outer(self._mean, self._mean))
            self._about_origin = _moment_rank(self._second)

    @property
    def value(self) -> float:
        """The rank at the last refresh; 0 before the first, or when all embeddings are equal."""
        return self._value

    @property
    def about_origin(self) -> float:
        """The rank without centring, at the last refresh: it falls to 1 when all embeddings come close to one point,
        even where what is left around the point is noise in every direction; 0 before the first refresh."""
        return self._about_origin

    @property
    def known(self) -> bool:
        """True from the first refresh on."""
        return self._seen >= self.refresh

    def clear(self) -> None:
        """Starts anew: the space has changed."""
        self._mean[:] = 0.0
        self._second[:] = 0.0
        self._seen, self._value, self._about_origin = 0, 0.0, 0.0

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `load_state` needs."""
        return {
            "mean": self._mean.copy(),
            "second": self._second.copy(),
            "scalars": np.array([self._seen, self._value, self._about_origin], np.float64),
        }

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Continues from `state()`."""
        self._mean, self._second = state["mean"].copy(), state["second"].copy()
        seen, value, *rest = state["scalars"].tolist()
        self._seen, self._value = int(seen), value
        self._about_origin = rest[0] if rest else _moment_rank(self._second)  # older states do not hold it

    def state_bytes(self) -> int:
        """Bytes held."""
        return self._mean.nbytes + self._second.nbytes


def _moment_rank(second: NDArray[np.float64]) -> float:
    """The rank of rows whose second moment is [d, d]."""
    return _rank(np.sqrt(np.maximum(np.linalg.eigvalsh(second), 0.0)))


def _rank(singular: NDArray[np.float64]) -> float:
    total = float(singular.sum())
    if not np.isfinite(total) or total <= 1e-9:
        return 0.0
    share = singular[singular > 1e-9 * total] / total
    return float(np.exp(-(share * np.log(share)).sum()))
