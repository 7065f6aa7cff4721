"""sigma^2 of v1's convergence theorem, measured while gradients accumulate, with a bounded trace of the run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

TRACE_ROWS = 256  # at most; 6 KB


class GradientTrace(NamedTuple):
    """What was measured per optimiser step since the start, each row the mean over the steps since the row before.

    `mean_norm2 - noise_norm2` estimates ||grad||^2 of the loss without bias (a single row may fall below 0).
    """

    step: np.ndarray  # [n], the last step of each row; steps of one mini-batch alone do not count
    sigma2: np.ndarray  # [n], variance of one mini-batch's gradient
    mean_norm2: np.ndarray  # [n], ||mean g||^2 over the step's mini-batches
    noise_norm2: np.ndarray  # [n], the part of it that is noise: sigma^2 / mini-batches


class GradientVariance:
    """Unbiased variance of the mini-batch gradient: E||g_i - mean g||^2 over one accumulation, smoothed (rate 0.1).

    A bounded trace keeps the whole run: when it is full, neighbouring rows are joined.
    """

    def __init__(self, rate: float = 0.1) -> None:
        self.rate = rate
        self.sigma2: float | None = None
        self.mean_norm2: float | None = None  # ||mean g||^2 of the last optimiser step
        self._handles: list[RemovableHandle] = []
        self._watching = False
        self._norms: list[Tensor] = []  # of the mini-batch's gradient, parameter by parameter
        self._sum_norm2 = 0.0
        self._count = 0
        self._rows = np.zeros((0, 3))  # sigma2, mean_norm2, noise_norm2
        self._stride = 1  # steps in a row
        self._open = np.zeros(3)  # sums of the row that is being filled
        self._opened = 0

    def trace(self) -> GradientTrace:
        """Everything measured so far, the unfinished last row included."""
        rows, last = self._rows, np.arange(1, len(self._rows) + 1) * self._stride
        if self._opened:
            rows = np.vstack([rows, self._open / self._opened])
            last = np.append(last, len(self._rows) * self._stride + self._opened)
        return GradientTrace(last, *rows.T.copy())

    def watch(self, parameters: Iterable[Tensor]) -> None:
        """Takes up the parameters whose gradients count, in place of those before.

        Each tells its mini-batch's own gradient before it is added to `.grad`: nothing as large as the parameters is
        kept.
        """
        for handle in self._handles:
            handle.remove()
        self._handles = [parameter.register_hook(self._see) for parameter in parameters if parameter.requires_grad]

    @contextmanager
    def mini_batch(self, scale: float) -> Iterator[None]:
        """Around one mini-batch's backward pass, whose loss is multiplied by `scale`; other gradients do not count."""
        self._norms, self._watching = [], True
        try:
            yield
        finally:
            self._watching = False
        if self._norms:
            self._sum_norm2 += float(torch.stack(self._norms).square().sum()) / scale**2
        self._count += 1

    def after_step(self, norm: float, scale: float) -> None:
        """Call once per optimiser step, with the norm of the accumulated gradients before they are clipped."""
        if self._count > 1:
            n = self._count
            mean = (norm / (scale * n)) ** 2
            sigma2 = max(0.0, (self._sum_norm2 / n - mean) * n / (n - 1))
            self.sigma2 = sigma2 if self.sigma2 is None else self.sigma2 + self.rate * (sigma2 - self.sigma2)
            self.mean_norm2 = mean
            self._record(sigma2, mean, sigma2 / n)
        self.forget()

    def forget(self) -> None:
        """Drops a half-done accumulation."""
        self._sum_norm2, self._count = 0.0, 0

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `load_state` needs."""
        known = [np.nan if value is None else value for value in (self.sigma2, self.mean_norm2)]
        return {
            "scalars": np.array([*known, self._sum_norm2, self._count]),
            "trace": self._rows,
            "open": np.array([*self._open, self._opened, self._stride]),
        }

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Continues from `state()`; older states have no trace."""
        sigma2, mean_norm2, self._sum_norm2, count = (float(value) for value in state["scalars"])
        self.sigma2 = None if np.isnan(sigma2) else sigma2
        self.mean_norm2 = None if np.isnan(mean_norm2) else mean_norm2
        self._count = int(count)
        rows, opened = state.get("trace", np.zeros((0, 3))), state.get("open", np.array([0.0, 0.0, 0.0, 0.0, 1.0]))
        self._rows, self._open = np.array(rows, np.float64), np.array(opened[:3], np.float64)
        self._opened, self._stride = int(opened[3]), int(opened[4])

    def _record(self, *values: float) -> None:
        self._open = self._open + values
        self._opened += 1
        if self._opened < self._stride:
            return
        self._rows = np.vstack([self._rows, self._open / self._stride])
        self._open, self._opened = np.zeros(3), 0
        if len(self._rows) == TRACE_ROWS:
            self._rows = (self._rows[::2] + self._rows[1::2]) / 2
            self._stride *= 2

    def _see(self, gradient: Tensor) -> None:
        if self._watching:
            self._norms.append(torch.linalg.vector_norm(gradient))
