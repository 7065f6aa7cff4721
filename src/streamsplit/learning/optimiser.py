"""The learner's optimiser: Adam with two rates, and its state as arrays for snapshots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from streamsplit.encoders.base import SplitEncoder
from streamsplit.learning import snapshot
from streamsplit.learning.contrastive import load_adaptive_rate
from streamsplit.learning.settings import LearnerSettings

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


@dataclass
class ParameterGroup:
    """Parameters that move at one rate."""

    parameters: list[Tensor]
    full_rate: float
    rate: float  # of the next step: the full one, lowered under load


class Adam:
    """Adam (Kingma and Ba 2015) in place, tensor by tensor: two moments a parameter and no other lasting memory.

    Not torch.optim's: making one imports torch's compiler, some 80 MB of modules that a device never uses.
    """

    def __init__(self, groups: Sequence[ParameterGroup]) -> None:
        self.groups = list(groups)
        self.parameters = [parameter for group in groups for parameter in group.parameters]
        # of the gradient and of its square, now and not at the first step, when they would hold apart a fragmented heap
        self._moments = [(_zeros_like(parameter), _zeros_like(parameter)) for parameter in self.parameters]
        self._steps = [0] * len(self.parameters)

    def slow_down(self, cpu_load: float) -> None:
        """Sets the next step's rates for a processor's load in 0..1, see `load_adaptive_rate`."""
        for group in self.groups:
            group.rate = load_adaptive_rate(group.full_rate, cpu_load)

    @torch.no_grad()
    def step(self) -> None:
        """Moves every parameter that has a gradient."""
        position = 0
        for group in self.groups:
            for parameter in group.parameters:
                if parameter.grad is not None:
                    self._move(position, parameter, parameter.grad, group.rate)
                position += 1

    def drop_gradients(self) -> None:
        """Frees all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def state(self) -> dict[str, np.ndarray]:
        """Gradients of a half-done accumulation and the moments, by the parameter's position."""
        arrays = {}
        for position, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                arrays[f"gradient/{position}"] = parameter.grad.numpy()
            if self._steps[position]:
                first, second = self._moments[position]
                arrays[f"optimiser/{position}/exp_avg"] = first.numpy()
                arrays[f"optimiser/{position}/exp_avg_sq"] = second.numpy()
                arrays[f"optimiser/{position}/step"] = np.array(self._steps[position], np.float32)
        return arrays

    def load_state(self, arrays: dict[str, np.ndarray], rates: Sequence[float]) -> None:
        """Continues from `state()`, with the full rate of each group."""
        for group, rate in zip(self.groups, rates, strict=True):
            group.full_rate = rate
        self.drop_gradients()
        for position, parameter in enumerate(self.parameters):
            gradient = arrays.get(f"gradient/{position}")
            if gradient is not None:
                parameter.grad = _like(gradient, parameter)
            held = snapshot.under(f"optimiser/{position}", arrays)
            for moment, name in zip(self._moments[position], ("exp_avg", "exp_avg_sq"), strict=True):
                if held:
                    moment.copy_(torch.from_numpy(held[name]))
                else:
                    moment.zero_()
            self._steps[position] = int(held["step"].item()) if held else 0

    def _move(self, position: int, parameter: Tensor, gradient: Tensor, rate: float) -> None:
        first, second = self._moments[position]
        self._steps[position] = steps = self._steps[position] + 1
        first.lerp_(gradient, 1.0 - BETA1)
        second.mul_(BETA2).addcmul_(gradient, gradient, value=1.0 - BETA2)
        root = second.sqrt().div_((1.0 - BETA2**steps) ** 0.5).add_(EPS)
        parameter.addcdiv_(first, root, value=-rate / (1.0 - BETA1**steps))


def make_optimiser(encoder: SplitEncoder, predictor: Iterable[Tensor], settings: LearnerSettings) -> Adam:
    """Adam over the parameters that are trained; the others are frozen.

    A warm-started projection has weights some twenty times those of a random one, so its rate is relative to their
    size. The projections' biases keep the low rate: they all move the mean, and together they would carry it away from
    the origin and flatten the space.
    """
    projections = encoder.readout_projections()
    readouts: list[Tensor] = [project.weight for project in projections]
    others: list[Tensor] = [*(project.bias for project in projections), *predictor]
    encoder.blocks.requires_grad_(False)
    if settings.trained == "all":
        others += encoder.blocks.requires_grad_(True).parameters()
    squares = sum(float(p.detach().square().sum()) for p in readouts)
    size = (squares / sum(p.numel() for p in readouts)) ** 0.5
    rates = ((readouts, settings.readout_rate * size), (others, settings.learning_rate))
    return Adam([ParameterGroup(group, rate, rate) for group, rate in rates])


def _zeros_like(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, requires_grad=False)


def _like(values: np.ndarray, parameter: Tensor) -> Tensor:
    """A tensor of `values` in the parameter's memory layout (convolution weights are channels_last)."""
    tensor = torch.from_numpy(values.copy())
    if tensor.dim() == 4 and tensor.shape == parameter.shape:
        return torch.empty_like(parameter, requires_grad=False).copy_(tensor)
    return tensor
