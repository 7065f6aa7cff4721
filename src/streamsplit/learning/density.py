"""What a diagonal Gaussian mixture says of an embedding: density, posterior, entropy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from streamsplit.errors import ConfigError

Array = NDArray[np.float32]
SIMILARITY_TEMPERATURE = 0.1  # that of the contrastive loss
_LOG_2PI = math.log(2.0 * math.pi)
SHRINK = 4.0  # observations that the pooled variance counts for in every component's variance


class DiagonalMixture:
    """C diagonal Gaussians as responsibility-weighted statistics; a component without claims is free (weight 0).

    Variances are shrunk toward the pooled within-component variance. Whoever changes statistics calls `_refresh`.
    """

    def __init__(self, components: int, dim: int, variance_floor: float | None = None) -> None:
        self.components, self.dim = components, dim
        self.variance_floor = 0.01 / dim if variance_floor is None else variance_floor
        self._clear_statistics()

    @property
    def ready(self) -> bool:
        """True once the cold start is over."""
        return bool(self._claims.any())

    @property
    def observations(self) -> int:
        """Embeddings seen so far."""
        return self._seen

    @property
    def weights(self) -> NDArray[np.float64]:
        """pi [C], sums to 1 once ready; free components have 0."""
        total = self._claims.sum()
        return self._claims / total if total > 0 else self._claims.copy()

    @property
    def means(self) -> Array:
        """mu [C, d]."""
        return self._means.copy()

    @property
    def live_means(self) -> Array:
        """mu [n, d] of the components that are not free."""
        return self._means[self._claims > 0]

    @property
    def variances(self) -> Array:
        """sigma^2 [C, d], floored."""
        return self._variances(np.arange(self.components))

    def log_density(self, z: Array) -> float:
        """log p(z) in nats; -inf before the cold start is over."""
        return float(self.log_densities(self._check(z)[None])[0])

    def log_densities(self, z: Array) -> NDArray[np.float64]:
        """log p of each row of z [n, d]."""
        if not self.ready:
            return np.full(len(z), -np.inf)
        live = self._claims > 0
        joint = z @ self._tilt[live].T - 0.5 * ((z * z) @ self._precision[live].T) + self._offset[live]
        joint = joint + np.log(self.weights[live])
        peak = joint.max(1, keepdims=True)
        density: NDArray[np.float64] = peak[:, 0] + np.log(np.exp(joint - peak).sum(1))
        return density

    def posterior(self, z: Array) -> NDArray[np.float64]:
        """p(c | z) [C]; uniform before the cold start is over."""
        z = self._check(z)
        if not self.ready:
            return np.full(self.components, 1.0 / self.components)
        return softmax(self._joint(z))

    def entropy(self, z: Array, temperature: float = SIMILARITY_TEMPERATURE) -> float:
        """Uncertainty of an embedding, in nats, in [0, log C]: to which component does it belong (v2)?

        Entropy of p(c | z) ~ exp(cos(z, mu_c) / temperature), log C before the cold start is over. Not of the
        Gaussians' posterior as in the paper: in 128 dimensions that is one-hot for nearly every window, and one broad
        component near the origin claims most of them, so its entropy tells nothing (docs/design.md).
        """
        z = self._check(z)
        if not self.ready:
            return math.log(self.components)
        means = self._means[self._claims > 0]
        length = np.maximum(np.linalg.norm(means, axis=1) * np.linalg.norm(z), 1e-12)
        return posterior_entropy(softmax((means @ z / length).astype(np.float64) / temperature))

    # ---- inside ----

    def _check(self, z: Array) -> Array:
        z = np.asarray(z, np.float32)
        if z.shape != (self.dim,) or not np.isfinite(z).all():
            raise ConfigError(f"got an embedding of shape {z.shape} (finite: {bool(np.isfinite(z).all())}), "
                              f"expected [{self.dim}] finite numbers")  # fmt: skip
        return z

    def _clear_statistics(self) -> None:
        c, d = self.components, self.dim
        self._counts = np.zeros(c)  # evidence behind mean and variance
        self._claims = np.zeros(c)  # evidence behind the weights
        self._means = np.zeros((c, d), np.float32)
        self._squares = np.zeros((c, d), np.float32)  # centred squared sums
        self._pooled = 0.0  # typical within-component variance per dimension
        self._seen = 0
        self._forget_cache()

    def _variances(self, rows: NDArray[np.intp]) -> Array:
        total = (self._counts[rows] + SHRINK)[:, None].astype(np.float32)
        shrunk = (self._squares[rows] + np.float32(SHRINK * self._pooled)) / total
        return np.maximum(shrunk, np.float32(self.variance_floor))

    def _forget_cache(self) -> None:
        self._precision = np.ones((self.components, self.dim), np.float32)
        self._tilt = np.zeros((self.components, self.dim), np.float32)
        self._offset = np.full(self.components, -np.inf)
        self._refresh(np.arange(self.components))

    def _refresh(self, rows: NDArray[np.intp]) -> None:
        """Recomputes the cached natural parameters of some components."""
        rows = rows[self._claims[rows] > 0]
        if not len(rows):
            return
        variances, means = self._variances(rows), self._means[rows]
        self._precision[rows] = 1.0 / variances
        self._tilt[rows] = means / variances
        quadratic = (means * means / variances).sum(1, dtype=np.float64)
        self._offset[rows] = -0.5 * (quadratic + np.log(variances).sum(1, dtype=np.float64) + self.dim * _LOG_2PI)

    def _joint(self, z: Array) -> NDArray[np.float64]:
        """log pi_c + log N(z; mu_c, sigma_c^2) [C]; -inf for free components."""
        live = self._claims > 0
        joint = np.full(self.components, -np.inf)
        density = self._tilt @ z - 0.5 * (self._precision @ (z * z)) + self._offset
        joint[live] = density[live] + np.log(self._claims[live] / self._claims.sum())
        return joint


def posterior_entropy(posterior: NDArray[np.float64]) -> float:
    """-sum p log p in nats."""
    p = posterior[posterior > 0]
    return max(0.0, float(-(p * np.log(p)).sum()))


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities ~ exp(scores)."""
    raised = np.exp(scores - scores.max())
    return raised / raised.sum()
