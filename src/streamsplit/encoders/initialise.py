"""Starting weights drawn from a numpy Generator: the same on every torch version and platform."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn


def initialise(module: nn.Module, rng: np.random.Generator) -> None:
    """Fills convolutions (He normal, fan out), linear layers (normal, fan in) and norms (1, 0), in module order."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            height, width = child.kernel_size
            fan_out = child.out_channels // child.groups * height * width
            _draw(child.weight, math.sqrt(2.0 / fan_out), rng)
        elif isinstance(child, nn.Linear):
            _draw(child.weight, math.sqrt(1.0 / child.in_features), rng)
        elif isinstance(child, nn.GroupNorm):
            _fill(child.weight, 1.0)
        bias = getattr(child, "bias", None)
        if isinstance(bias, Tensor):
            _fill(bias, 0.0)


def set_identity(linear: nn.Linear) -> None:
    """Makes a square linear layer pass its input through."""
    with torch.no_grad():
        linear.weight.copy_(torch.eye(linear.out_features, linear.in_features))
        linear.bias.zero_()


def _draw(weight: Tensor, deviation: float, rng: np.random.Generator) -> None:
    values = rng.standard_normal(tuple(weight.shape), dtype=np.float32) * np.float32(deviation)
    with torch.no_grad():
        weight.copy_(torch.from_numpy(values))


def _fill(weight: Tensor, value: float) -> None:
    with torch.no_grad():
        weight.fill_(value)
