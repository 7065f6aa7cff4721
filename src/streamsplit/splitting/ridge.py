"""Ridge regression that learns one sample at a time and forgets: the linear model of the bandit and the correction."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamsplit.errors import ConfigError

Floats = NDArray[np.float64]


class DiscountedRidge:
    """y ~ theta x with all weights of the past multiplied by `discount` at every update (D-LinUCB's estimate)."""

    def __init__(self, dim: int, *, regularisation: float = 1.0, discount: float = 1.0) -> None:
        if dim < 1 or regularisation <= 0 or not 0 < discount <= 1:
            raise ConfigError(
                f"got {dim} features, regularisation {regularisation}, discount {discount}; "
                "expected at least 1, more than 0, and 0 < discount <= 1"
            )
        self.regularisation, self.discount = regularisation, discount
        self.samples = 0
        self._a: Floats = np.eye(dim) * regularisation
        self._b: Floats = np.zeros(dim)
        self._inverse: Floats = np.eye(dim) / regularisation
        self._theta: Floats = np.zeros(dim)

    @property
    def theta(self) -> Floats:
        """The coefficients [dim]."""
        return self._theta

    def update(self, x: Floats, y: float) -> None:
        """Learns that features `x` [dim] led to `y`."""
        self._fade()
        self._a += np.outer(x, x)
        self._b += y * x
        self._solve()
        self.samples += 1

    def forget(self) -> None:
        """A round passes that taught nothing: what was learned before counts less."""
        self._fade()
        self._solve()

    def _fade(self) -> None:
        self._a *= self.discount
        self._b *= self.discount
        # The prior does not fade: otherwise directions that are never seen would become singular.
        self._a += (1.0 - self.discount) * self.regularisation * np.eye(len(self._b))

    def _solve(self) -> None:
        self._inverse = np.asarray(np.linalg.inv(self._a), np.float64)
        self._theta = self._inverse @ self._b

    def predict(self, x: Floats) -> Floats:
        """Expected y of each row of `x` [n, dim]."""
        return np.asarray(x @ self._theta)

    def width(self, x: Floats) -> Floats:
        """Uncertainty sqrt(x A^-1 x) of each row of `x` [n, dim], to be multiplied by the exploration's strength."""
        return np.sqrt(np.maximum(np.einsum("nd,de,ne->n", x, self._inverse, x), 0.0))
