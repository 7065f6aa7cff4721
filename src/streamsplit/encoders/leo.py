"""LEO, the light edge-only baseline: MobileNetV2 (Sandler et al. 2018) at width 0.35, channels halved, 19 blocks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from streamsplit.encoders.base import BANDS, SplitEncoder
from streamsplit.encoders.layers import ConvNorm
from streamsplit.encoders.mobilenet import scaled_channels
from streamsplit.encoders.readout import ReadoutSite

WIDTH = 0.35 / 2
_TABLE = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM_CHANNELS = 32
READOUT_BLOCKS = (4, 7, 14, 18)


class Leo(SplitEncoder):
    """Block 1 is the stem, 2..18 the seventeen inverted residuals, 19 the head.

    Departures: group instead of batch normalisation, and the statistics readout in place of the last convolution,
    pooling and classifier, as in the other encoders: what is compared is the size, not the readout.
    """

    def __init__(self, embedding_dim: int = 128, rng: np.random.Generator | None = None) -> None:
        """Starts from `rng`, or from seed 0."""
        with torch.random.fork_rng(devices=[]):
            channels = scaled_channels(STEM_CHANNELS, WIDTH)
            blocks: list[nn.Module] = [ConvNorm(1, channels, 3, 2, activation=nn.ReLU6)]
            names, outputs, strides = ["stem"], [channels], [2]
            for expansion, wanted, repeats, first_stride in _TABLE:
                for repeat in range(repeats):
                    stride, made = first_stride if repeat == 0 else 1, scaled_channels(wanted, WIDTH)
                    blocks.append(LinearBottleneck(channels, made, expansion, stride))
                    channels = made
                    names.append(f"residual{len(names)}")
                    outputs.append(channels)
                    strides.append(stride)
            sites = [ReadoutSite(0, 1, BANDS)]
            for block in READOUT_BLOCKS:
                sites.append(ReadoutSite(block, outputs[block - 1], BANDS // int(np.prod(strides[:block]))))
            rng = rng if rng is not None else np.random.default_rng(0)
            super().__init__("leo", blocks, names, sites, embedding_dim, rng)


class LinearBottleneck(nn.Module):
    """Expansion, depthwise convolution, linear projection; a shortcut where the shape allows."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        expanded = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvNorm(inputs, expanded, 1, activation=nn.ReLU6))
        layers.append(ConvNorm(expanded, expanded, 3, stride, groups=expanded, activation=nn.ReLU6))
        layers.append(ConvNorm(expanded, outputs, 1))
        self.layers = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, h: Tensor) -> Tensor:
        """[b, c, f, t] to [b, c', f / stride, t / stride]."""
        output: Tensor = self.layers(h)
        return h + output if self.shortcut else output
