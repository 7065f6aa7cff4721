"""sigma^2 of v1's convergence theorem, measured while gradients accumulate."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


class GradientVariance:
    """Unbiased variance of the mini-batch gradient: E||g_i - mean g||^2 over one accumulation, smoothed (rate 0.1)."""

    def __init__(self, rate: float = 0.1) -> None:
        self.rate = rate
        self.sigma2: float | None = None
        self.mean_norm2: float | None = None  # ||mean g||^2 of the last optimiser step
        self._before: Tensor | None = None
        self._sum_norm2 = 0.0
        self._count = 0

    @torch.no_grad()
    def after_backward(self, parameters: Iterable[Tensor], scale: float) -> None:
        """Call after each backward; gradients accumulate in `.grad`, each mini-batch's loss multiplied by `scale`."""
        total = _flat_gradient(parameters)
        own = total if self._before is None else total - self._before
        self._sum_norm2 += float(own.square().sum()) / scale**2
        self._before = total
        self._count += 1

    @torch.no_grad()
    def after_step(self, scale: float) -> None:
        """Call once per optimiser step, before gradients are cleared."""
        if self._before is not None and self._count > 1:
            n = self._count
            mean = float((self._before / (scale * n)).square().sum())
            sigma2 = max(0.0, (self._sum_norm2 / n - mean) * n / (n - 1))
            self.sigma2 = sigma2 if self.sigma2 is None else self.sigma2 + self.rate * (sigma2 - self.sigma2)
            self.mean_norm2 = mean
        self.forget()

    def forget(self) -> None:
        """Drops a half-done accumulation."""
        self._before, self._sum_norm2, self._count = None, 0.0, 0

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `load_state` needs, but for the gradients themselves."""
        known = [np.nan if value is None else value for value in (self.sigma2, self.mean_norm2)]
        return {"scalars": np.array([*known, self._sum_norm2, self._count])}

    def load_state(self, state: dict[str, np.ndarray], parameters: Iterable[Tensor]) -> None:
        """Continues from `state()`, with the gradients accumulated so far in `.grad`."""
        sigma2, mean_norm2, self._sum_norm2, count = (float(value) for value in state["scalars"])
        self.sigma2 = None if np.isnan(sigma2) else sigma2
        self.mean_norm2 = None if np.isnan(mean_norm2) else mean_norm2
        self._count = int(count)
        self._before = _flat_gradient(parameters) if self._count else None


def _flat_gradient(parameters: Iterable[Tensor]) -> Tensor:
    return torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in parameters])
