"""MobileNetV3-Small on log-mel windows (v1's edge encoder; Howard et al. 2019, table 2), 13 blocks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from streamsplit.encoders.base import BANDS, SplitEncoder
from streamsplit.encoders.layers import ConvNorm, SqueezeExcite
from streamsplit.encoders.readout import ReadoutSite

STEM_CHANNELS = 16
READOUT_BLOCKS = (2, 4, 7, 9, 12)  # the stem's statistics add nothing to the input's own


class _Row(NamedTuple):
    """One line of the paper's table: kernel, expanded and output channels, gates, activation, stride."""

    kernel: int
    expanded: int
    outputs: int
    gated: bool
    hard_swish: bool
    stride: int


_TABLE = (
    _Row(3, 16, 16, True, False, 2),
    _Row(3, 72, 24, False, False, 2),
    _Row(3, 88, 24, False, False, 1),
    _Row(5, 96, 40, True, True, 2),
    _Row(5, 240, 40, True, True, 1),
    _Row(5, 240, 40, True, True, 1),
    _Row(5, 120, 48, True, True, 1),
    _Row(5, 144, 48, True, True, 1),
    _Row(5, 288, 96, True, True, 2),
    _Row(5, 576, 96, True, True, 1),
    _Row(5, 576, 96, True, True, 1),
)


class MobileNetV3Small(SplitEncoder):
    """Block 1 is the stem, 2..12 the eleven inverted residuals, 13 the head; k = 12 crosses 72 x 4 x 4 values.

    Departures from the paper: group instead of batch normalisation (batches of 1 on a device), and the statistics
    readout in place of the 1x1 convolution, pooling and classifier.
    """

    def __init__(self, width: float = 0.75, embedding_dim: int = 128, rng: np.random.Generator | None = None) -> None:
        """Starts from `rng`, or from seed 0."""
        with torch.random.fork_rng(devices=[]):
            channels = scaled_channels(STEM_CHANNELS, width)
            blocks: list[nn.Module] = [ConvNorm(1, channels, 3, 2, activation=nn.Hardswish)]
            names = ["stem"]
            outputs, strides = [channels], [2]
            for number, row in enumerate(_TABLE, 1):
                blocks.append(InvertedResidual(channels, row, width))
                channels = scaled_channels(row.outputs, width)
                names.append(f"residual{number}")
                outputs.append(channels)
                strides.append(row.stride)
            sites = [ReadoutSite(0, 1, BANDS)]
            for block in READOUT_BLOCKS:
                rows = BANDS // int(np.prod(strides[:block]))
                sites.append(ReadoutSite(block, outputs[block - 1], rows))
            rng = rng if rng is not None else np.random.default_rng(0)
            super().__init__("mobilenet", blocks, names, sites, embedding_dim, rng)


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, channel gates, linear projection; a shortcut where the shape allows."""

    def __init__(self, inputs: int, row: _Row, width: float) -> None:
        super().__init__()
        expanded, outputs = scaled_channels(row.expanded, width), scaled_channels(row.outputs, width)
        activation: type[nn.Module] = nn.Hardswish if row.hard_swish else nn.ReLU
        layers: list[nn.Module] = []
        if expanded != inputs:
            layers.append(ConvNorm(inputs, expanded, 1, activation=activation))
        layers.append(ConvNorm(expanded, expanded, row.kernel, row.stride, groups=expanded, activation=activation))
        if row.gated:
            layers.append(SqueezeExcite(expanded, scaled_channels(expanded / 4, 1.0)))
        layers.append(ConvNorm(expanded, outputs, 1))
        self.layers = nn.Sequential(*layers)
        self.shortcut = row.stride == 1 and inputs == outputs

    def forward(self, h: Tensor) -> Tensor:
        """[b, c, f, t] to [b, c', f / stride, t / stride]."""
        output: Tensor = self.layers(h)
        return h + output if self.shortcut else output


def scaled_channels(channels: float, width: float) -> int:
    """Channels times width, rounded to a multiple of 8 that is at most 10 % smaller (the rule of the paper's code)."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8
