"""The learner's optimiser: two rates, and its state as arrays for snapshots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from streamsplit.encoders.base import SplitEncoder
from streamsplit.learning import snapshot
from streamsplit.learning.settings import LearnerSettings


def make_optimiser(
    encoder: SplitEncoder, predictor: Iterable[Tensor], settings: LearnerSettings
) -> tuple[torch.optim.Adam, list[Tensor]]:
    """Adam, and the parameters that it moves; what is not trained is frozen.

    A warm-started projection has weights some twenty times those of a random one, so its rate is relative to their
    size. The projections' biases keep the low rate: they all move the mean, and together they would carry it away from
    the origin and flatten the space.
    """
    projections = encoder.readout_projections()
    readouts: list[Tensor] = [project.weight for project in projections]
    others: list[Tensor] = [*(project.bias for project in projections), *predictor]
    encoder.blocks.requires_grad_(settings.trained == "all")
    if settings.trained == "all":
        others += encoder.blocks.parameters()
    squares = sum(float(p.detach().square().sum()) for p in readouts)
    size = (squares / sum(p.numel() for p in readouts)) ** 0.5
    rates = ((readouts, settings.readout_rate * size), (others, settings.learning_rate))
    groups = [{"params": group, "lr": rate, "full_rate": rate} for group, rate in rates]
    return torch.optim.Adam(groups), [*readouts, *others]


def optimiser_state(optimiser: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """Gradients of a half-done accumulation and the optimiser's moments, by the parameter's position."""
    arrays = {}
    for position, parameter in enumerate(parameters):
        if parameter.grad is not None:
            arrays[f"gradient/{position}"] = parameter.grad.numpy()
        for name, value in optimiser.state.get(parameter, {}).items():
            arrays[f"optimiser/{position}/{name}"] = value.numpy()
    return arrays


def load_optimiser_state(
    optimiser: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    arrays: dict[str, np.ndarray],
    rates: Sequence[float],
) -> None:
    """Continues from `optimiser_state()`, with the full rate of each group."""
    for group, rate in zip(optimiser.param_groups, rates, strict=True):
        group["full_rate"] = rate
    optimiser.zero_grad(set_to_none=True)
    for position, parameter in enumerate(parameters):
        gradient = arrays.get(f"gradient/{position}")
        if gradient is not None:
            parameter.grad = _like(gradient, parameter)
        state = snapshot.under(f"optimiser/{position}", arrays)
        if state:
            optimiser.state[parameter] = {name: _like(value, parameter) for name, value in state.items()}


def _like(values: np.ndarray, parameter: Tensor) -> Tensor:
    """A tensor of `values` in the parameter's memory layout (convolution weights are channels_last)."""
    tensor = torch.from_numpy(values.copy())
    if tensor.dim() == 4 and tensor.shape == parameter.shape:
        return torch.empty_like(parameter, requires_grad=False).copy_(tensor)
    return tensor
