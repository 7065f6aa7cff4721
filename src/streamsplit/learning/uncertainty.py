"""v1's uncertainty of a window, from prototypes; v2's is `GaussianMixture.entropy`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamsplit.errors import ConfigError
from streamsplit.learning.mixture import posterior_entropy

Array = NDArray[np.float32]


class Components(NamedTuple):
    """The three parts of v1's uncertainty."""

    perturbation: float  # ||f(x) - f(A(x))||_2
    ambiguity: float  # entropy of the soft assignment to prototypes, nats
    distance: float  # min_k ||e - p_k||_2


class PrototypeUncertainty:
    """v1: U = w1 ||f(x) - f(A(x))|| + w2 H(p(y|e)) + w3 min_k ||e - p_k||.

    p(y|e) is a softmax of cosine similarities to the prototypes at `temperature` (there are no labels on a device).
    Prototypes [k, d] come from the server's k-means; until the first have come, others may stand in (the learner gives
    the means of its memory's mixture), and without any the last two parts are 0. The weights start equal and shift
    toward the part that correlates best with the loss: w ~ max(correlation, 0), mixed half and half with equal weights,
    from exponential moving moments (rate 0.01).
    """

    def __init__(self, dim: int, *, temperature: float = 0.1, rate: float = 0.01) -> None:
        self.dim, self.temperature, self.rate = dim, temperature, rate
        self.prototypes: Array = np.zeros((0, dim), np.float32)
        self._moments = np.zeros((4, 4))  # of (1, 2, 3, loss): second moments
        self._mean = np.zeros(4)
        self._seen = 0

    def set_prototypes(self, prototypes: Array) -> None:
        """Takes over the server's prototypes [k, d]."""
        prototypes = np.asarray(prototypes, np.float32)
        if prototypes.ndim != 2 or prototypes.shape[1] != self.dim or not np.isfinite(prototypes).all():
            raise ConfigError(f"got prototypes of shape {prototypes.shape}, expected [k, {self.dim}] finite numbers")
        self.prototypes = prototypes.copy()

    def forget_prototypes(self) -> None:
        """They belong to an embedding space that is no more."""
        self.prototypes = np.zeros((0, self.dim), np.float32)

    def components(self, z: Array, z_augmented: Array | None = None, stand_in: Array | None = None) -> Components:
        """The three parts for an embedding [d] and that of its augmented copy (None: the first part is 0).

        `stand_in` [k, d] serves while there are no prototypes.
        """
        perturbation = 0.0 if z_augmented is None else float(np.linalg.norm(z - z_augmented))
        prototypes = self.prototypes if len(self.prototypes) or stand_in is None else stand_in
        if not len(prototypes):
            return Components(perturbation, 0.0, 0.0)
        norms = np.linalg.norm(prototypes, axis=1) * max(float(np.linalg.norm(z)), 1e-12)
        score = (prototypes @ z) / np.maximum(norms, 1e-12) / self.temperature
        soft = np.exp(score.astype(np.float64) - score.max())
        nearest = float(np.sqrt(((prototypes - z) ** 2).sum(1).min()))
        return Components(perturbation, posterior_entropy(soft / soft.sum()), nearest)

    @property
    def weights(self) -> NDArray[np.float64]:
        """w [3], sums to 1."""
        equal = np.full(3, 1.0 / 3.0)
        if self._seen < 20:
            return equal
        covariance = self._moments - np.outer(self._mean, self._mean)
        spread = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        usable = (spread[:3] > 1e-9) & (spread[3] > 1e-9)
        correlation = np.where(usable, covariance[:3, 3] / np.where(usable, spread[:3] * spread[3], 1.0), 0.0)
        merit = np.maximum(correlation, 0.0)
        return equal if merit.sum() < 1e-9 else 0.5 * equal + 0.5 * merit / merit.sum()

    def value(self, components: Components) -> float:
        """U of the parts."""
        return float(self.weights @ np.array(components))

    def learn(self, components: Components, loss: float) -> None:
        """Shifts the weights after the loss of that window is known."""
        sample = np.array([*components, loss])
        self._seen += 1
        rate = max(self.rate, 1.0 / self._seen)
        self._mean += rate * (sample - self._mean)
        self._moments += rate * (np.outer(sample, sample) - self._moments)

    def state_bytes(self) -> int:
        """Bytes held."""
        return self.prototypes.nbytes + self._moments.nbytes + self._mean.nbytes

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `load_state` needs."""
        return {"prototypes": self.prototypes.copy(), "moments": self._moments.copy(), "mean": self._mean.copy(),
                "seen": np.array([self._seen])}  # fmt: skip

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Continues from `state()`."""
        self.prototypes, self._moments = state["prototypes"].copy(), state["moments"].copy()
        self._mean, self._seen = state["mean"].copy(), int(state["seen"][0])
