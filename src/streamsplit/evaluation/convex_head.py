"""A strongly convex problem with everything known: an L2-regularised multinomial logistic head on fixed embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from streamsplit.errors import ConfigError, StreamSplitError

MAX_ITERATIONS = 200_000


class Optimum(NamedTuple):
    """The minimum: weights [d + 1, c], loss, and the gradient's norm there."""

    weights: np.ndarray
    loss: float
    gradient_norm: float


class ConvexHead:
    """f(W) = mean cross-entropy of softmax(x W) + regularisation/2 ||W||^2, x = embeddings with a column of ones.

    The ones are regularised too, so f is strongly convex with constant `regularisation` (mu). Its smoothness is bounded
    by L = lambda_max(X^T X / n) / 2 + regularisation, because diag(p) - p p^T has no eigenvalue above 1/2. Weights are
    [s, d + 1, c]: s independent runs at once.
    """

    def __init__(self, embeddings: Any, labels: Sequence[Any], regularisation: float) -> None:
        """Embeddings [n, d] with a label each; raises ConfigError on NaN, lengths, and fewer than two classes."""
        x, names = np.asarray(embeddings, dtype=np.float64), np.array([str(label) for label in labels])
        if x.ndim != 2 or not len(x) or len(x) != len(names):
            raise ConfigError(f"got embeddings {x.shape} and {len(names)} labels, expected [n, d] and one label a row")
        if not np.isfinite(x).all():
            raise ConfigError("got NaN or infinity in the embeddings, expected finite numbers")
        self.classes, index = np.unique(names, return_inverse=True)
        if len(self.classes) < 2:
            raise ConfigError(f"got 1 class ('{self.classes[0]}'), expected at least 2")
        if regularisation <= 0:
            raise ConfigError(f"got regularisation {regularisation}, expected a positive one: else nothing is convex")
        self.x = with_ones(x)  # [n, d + 1]
        self.y = np.eye(len(self.classes))[index]  # [n, c]
        self.strong_convexity = float(regularisation)
        largest = float(np.linalg.eigvalsh(self.x.T @ self.x / len(x))[-1])
        self.smoothness = 0.5 * largest + self.strong_convexity

    def probabilities(self, weights: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Softmax [s, n, c] of x [n, d + 1], or of x [s, n, d + 1] with rows of each run's own."""
        logits: np.ndarray = x @ weights
        logits -= logits.max(axis=-1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=-1, keepdims=True)
        return logits

    def loss(self, weights: np.ndarray) -> np.ndarray:
        """f [s]."""
        logits = self.x @ weights
        peak = logits.max(axis=-1)
        log_sum = peak + np.log(np.exp(logits - peak[..., None]).sum(axis=-1))
        fit = (log_sum - (logits * self.y).sum(axis=-1)).mean(axis=-1)
        penalty: np.ndarray = fit + 0.5 * self.strong_convexity * (weights**2).sum(axis=(-2, -1))
        return penalty

    def gradient(self, weights: np.ndarray) -> np.ndarray:
        """The full gradient of f, [s, d + 1, c]."""
        residual = self.probabilities(weights, self.x) - self.y
        full: np.ndarray = self.x.T @ residual / len(self.x) + self.strong_convexity * weights
        return full

    def optimum(self, tolerance: float = 1e-8) -> Optimum:
        """The minimum to a gradient norm of `tolerance`, by Nesterov's method with the known constants.

        Raises StreamSplitError where it is not reached in MAX_ITERATIONS (more regularisation helps).
        """
        weights = np.zeros((1, self.x.shape[1], len(self.classes)))
        ahead, root = weights, math.sqrt(self.smoothness / self.strong_convexity)
        momentum, norm = (root - 1) / (root + 1), math.inf
        for _ in range(MAX_ITERATIONS):
            gradient = self.gradient(ahead)
            norm = float(np.linalg.norm(gradient))
            if norm <= tolerance:
                return Optimum(ahead[0], float(self.loss(ahead)[0]), norm)
            following = ahead - gradient / self.smoothness
            ahead, weights = following + momentum * (following - weights), following
        raise StreamSplitError(
            f"got a gradient norm of {norm:.1e} after {MAX_ITERATIONS} iterations, expected {tolerance:.1e}; "
            "give more regularisation"
        )


def with_ones(x: np.ndarray) -> np.ndarray:
    """Rows [n, d] with a last column of ones, [n, d + 1]."""
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)
