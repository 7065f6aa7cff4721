"""Cross-window target: what a window's embedding must predict about *another* window close in time, and about its own.

The target is a frozen projection of fixed statistics and of the window's course in time. It holds no learned part, so
it cannot collapse, and it keeps the embedding at least as informative as what it was started from (measured: contrast
alone loses against the start).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streamsplit.encoders.fixed import fixed_vector
from streamsplit.encoders.pca import fit_pca
from streamsplit.encoders.readout import STATISTIC_EPS

Array = NDArray[np.float32]


class CrossWindowTarget:
    """Unit-norm half-whitened projection [g] of `fixed_vector`, and a linear predictor from z [d] to it."""

    def __init__(self, embedding_dim: int, dim: int = 128, ridge: float = 0.1) -> None:
        self.dim = dim
        self.ridge = ridge
        with torch.random.fork_rng(devices=[]):  # skip_init would load torch's symbolic shapes, some 40 MB
            self.predictor = nn.Linear(embedding_dim, dim)
        self._matrix = np.zeros((dim, 0), np.float32)
        self._mean = np.zeros(0, np.float32)
        with torch.no_grad():
            self.predictor.weight.zero_()
            self.predictor.bias.zero_()

    @property
    def ready(self) -> bool:
        """True after `fit`."""
        return bool(self._mean.size)

    def fit(self, windows: Array, seed: int) -> None:
        """Freezes the projection from windows [n, f, t]."""
        pca = fit_pca(fixed_vector(windows), self.dim, seed)
        self._matrix, self._mean = pca.matrix, pca.mean

    def fit_predictor(self, embeddings: Array, other_windows: Array) -> None:
        """Starts the predictor at the ridge regression from z [n, d] to the target of the other windows [n, f, t].

        A random start would spend the first steps bending the encoder toward a predictor that knows nothing.
        """
        z, y = embeddings.astype(np.float64), self(other_windows).astype(np.float64)
        z_mean, y_mean = z.mean(0), y.mean(0)
        gram = (z - z_mean).T @ (z - z_mean)
        penalty = self.ridge * np.trace(gram) / len(gram) + np.finfo(np.float64).tiny
        weight = np.linalg.solve(gram + penalty * np.eye(len(gram)), (z - z_mean).T @ (y - y_mean)).T
        with torch.no_grad():
            self.predictor.weight.copy_(torch.from_numpy(weight))
            self.predictor.bias.copy_(torch.from_numpy(y_mean - weight @ z_mean))

    def predict(self, z: Tensor) -> Tensor:
        """The target expected of a window near each z [b, d], as [b, g]."""
        predicted: Tensor = self.predictor(z)
        return predicted

    def __call__(self, windows: Array) -> Array:
        """Targets [n, g] of windows [n, f, t]; reduced windows are brought to the same statistics."""
        projected = (fixed_vector(windows) - self._mean) @ self._matrix.T
        norms = np.linalg.norm(projected, axis=1, keepdims=True)
        return (projected / np.maximum(norms, STATISTIC_EPS)).astype(np.float32)

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `load_state` needs."""
        weight, bias = (parameter.detach().numpy().copy() for parameter in self.predictor.parameters())
        return {"matrix": self._matrix.copy(), "mean": self._mean.copy(), "weight": weight, "bias": bias}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Continues from `state()`."""
        self._matrix, self._mean = state["matrix"].copy(), state["mean"].copy()
        with torch.no_grad():
            self.predictor.weight.copy_(torch.from_numpy(state["weight"].copy()))
            self.predictor.bias.copy_(torch.from_numpy(state["bias"].copy()))

    def state_bytes(self) -> int:
        """Bytes held once fitted."""
        return self._matrix.nbytes + self._mean.nbytes + 4 * sum(p.numel() for p in self.predictor.parameters())
