"""Mini-batches' gradients accumulated into optimiser steps, with what the run's theory and reports need of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor, nn

from streamsplit.encoders.base import SplitEncoder
from streamsplit.errors import EncoderError
from streamsplit.learning.optimiser import make_optimiser
from streamsplit.learning.returned import ReturnedGradients
from streamsplit.learning.settings import LearnerSettings
from streamsplit.learning.target import CrossWindowTarget
from streamsplit.learning.theorem import GradientVariance


class Updates:
    """One optimiser step per `accumulate` mini-batches, clipped; counts steps and the windows that took part."""

    def __init__(self, query: SplitEncoder, target: CrossWindowTarget, settings: LearnerSettings) -> None:
        self.settings = settings
        self.variance = GradientVariance()
        self.returned = ReturnedGradients()  # of a server, for the step under way; not part of the state
        self.steps = 0
        self.windows = 0  # anchors of all mini-batches so far
        self.last_loss: float | None = None  # mean over the last step's mini-batches
        self._query, self._target = query, target
        self._accumulated = 0
        self._losses: list[float] = []
        self._make_optimiser()

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return self.optimiser.parameters

    def add(self, loss: Tensor, windows: int, cpu_load: float = 0.0) -> bool:
        """Adds one mini-batch's loss of so many anchors; True when it completed an optimiser step.

        Raises EncoderError, with the accumulation dropped, for a loss that is not finite.
        """
        value = float(loss.detach())
        if not np.isfinite(value):
            self.drop()
            raise EncoderError(f"got a loss of {value}, expected a finite one; restore the last snapshot")
        scale = 1.0 / self.settings.accumulate
        with self.variance.mini_batch(scale):
            (loss * scale).backward()
        self._losses.append(value)
        self._accumulated += 1
        self.windows += windows
        if self._accumulated < self.settings.accumulate:
            return False
        self._step(cpu_load)
        return True

    def drop(self) -> None:
        """Forgets a half-done accumulation."""
        self.optimiser.drop_gradients()
        self.returned.forget()
        self.variance.forget()
        self._losses = []
        self._accumulated = 0

    def restart(self) -> None:
        """Forgets the moments too: the space has changed."""
        self.drop()
        self._make_optimiser()

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything that `load` needs, with `record()`."""
        variance = {f"variance/{name}": array for name, array in self.variance.state().items()}
        return {**variance, **self.optimiser.state()}

    def record(self) -> dict[str, Any]:
        """The JSON-able part of the state."""
        return {
            "rates": [group.full_rate for group in self.optimiser.groups], "steps": self.steps,
            "windows_learned": self.windows, "accumulated": self._accumulated, "losses": self._losses,
            "last_loss": self.last_loss,
        }  # fmt: skip

    def load(self, arrays: dict[str, np.ndarray], record: dict[str, Any]) -> None:
        """Continues from `arrays()` and `record()`."""
        prefix = "variance/"
        self._make_optimiser()
        self.optimiser.load_state(arrays, record["rates"])
        self.variance.load_state({k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)})
        self.steps, self.windows = record["steps"], record["windows_learned"]
        self._accumulated, self._losses = record["accumulated"], list(record["losses"])
        self.last_loss = record["last_loss"]

    def state_bytes(self) -> int:
        """Bytes of gradients and both moments, once all are there."""
        return 3 * sum(4 * parameter.numel() for parameter in self.parameters)

    def _step(self, cpu_load: float) -> None:
        self.optimiser.slow_down(cpu_load)
        limit = self.settings.gradient_clip
        norm = nn.utils.clip_grad_norm_(self.parameters, math.inf if len(self.returned) else limit)
        self.variance.after_step(float(norm), 1.0 / self.settings.accumulate)
        if len(self.returned):  # they are no mini-batch of ours, but share the limit
            self.returned.move_into(self.parameters)
            nn.utils.clip_grad_norm_(self.parameters, limit)
        self.optimiser.step()
        self.last_loss = float(np.mean(self._losses))
        self.drop()
        self.steps += 1

    def _make_optimiser(self) -> None:
        self.optimiser = make_optimiser(self._query, self._target.predictor.parameters(), self.settings)
        self.variance.watch(self.optimiser.parameters)
