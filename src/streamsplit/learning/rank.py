"""Effective rank of a stream of embeddings, in constant memory: the first sign of collapse."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class RunningRank:
    """exp(entropy of the normalised singular values) of the centred stream (Roy and Vetterli 2007), in 1..d.

    Mean and covariance are moving averages over about `window` embeddings.
    """

    def __init__(self, dim: int, window: int = 256, refresh: int = 16) -> None:
        self.window, self.refresh = window, refresh
        self._mean = np.zeros(dim)
        self._second = np.zeros((dim, dim))
        self._seen = 0
        self._value = 0.0

    def observe(self, z: NDArray[np.float32]) -> None:
        """Counts one embedding [d]."""
        self._seen += 1
        rate = 1.0 / min(self._seen, self.window)
        wide = z.astype(np.float64)
        self._mean += rate * (wide - self._mean)
        self._second *= 1.0 - rate
        self._second += np.multiply.outer(rate * wide, wide)
        if self._seen % self.refresh == 0:
            covariance = self._second - np.outer(self._mean, self._mean)
            singular = np.sqrt(np.maximum(np.linalg.eigvalsh(covariance), 0.0))
            total = singular.sum()
            share = singular[singular > 1e-9 * total] / total if total > 1e-9 else np.zeros(0)
            self._value = float(np.exp(-(share * np.log(share)).sum())) if len(share) else 0.0

    @property
    def value(self) -> float:
        """The rank at the last refresh; 0 before the first, or when all embeddings are equal."""
        return self._value

    def clear(self) -> None:
        """Starts anew: the space has changed."""
        self._mean[:] = 0.0
        self._second[:] = 0.0
        self._seen, self._value = 0, 0.0

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `load_state` needs."""
        return {
            "mean": self._mean.copy(),
            "second": self._second.copy(),
            "scalars": np.array([self._seen, self._value], np.float64),
        }

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Continues from `state()`."""
        self._mean, self._second = state["mean"].copy(), state["second"].copy()
        self._seen, self._value = int(state["scalars"][0]), float(state["scalars"][1])

    def state_bytes(self) -> int:
        """Bytes held."""
        return self._mean.nbytes + self._second.nbytes
