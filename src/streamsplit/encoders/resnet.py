"""ResNet-18 on log-mel windows (v2's encoder; He et al. 2016), nine blocks: eight residual blocks and the head."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from streamsplit.encoders.base import BANDS, SplitEncoder
from streamsplit.encoders.layers import ConvNorm
from streamsplit.encoders.readout import ReadoutSite

STAGE_CHANNELS = (64, 128, 256, 512)


class ResNet18(SplitEncoder):
    """Blocks 1..8 are the residual blocks (the stem belongs to block 1), 9 the head.

    Departures from the paper: one input channel, group instead of batch normalisation, and the statistics readout
    after every stage in place of global average pooling.
    """

    def __init__(self, embedding_dim: int = 128, rng: np.random.Generator | None = None) -> None:
        """Starts from `rng`, or from seed 0."""
        with torch.random.fork_rng(devices=[]):
            stem = nn.Sequential(ConvNorm(1, 64, 7, 2, activation=nn.ReLU), nn.MaxPool2d(3, 2, 1))
            blocks: list[nn.Module] = []
            sites = [ReadoutSite(0, 1, BANDS)]
            inputs, rows = 64, BANDS // 4
            for stage, channels in enumerate(STAGE_CHANNELS):
                stride = 1 if stage == 0 else 2
                blocks += [BasicBlock(inputs, channels, stride), BasicBlock(channels, channels, 1)]
                inputs, rows = channels, rows // stride
                sites.append(ReadoutSite(len(blocks), channels, rows))
            blocks[0] = nn.Sequential(stem, blocks[0])
            names = ["stem+residual1", *(f"residual{number}" for number in range(2, 9))]
            rng = rng if rng is not None else np.random.default_rng(0)
            super().__init__("resnet18", blocks, names, sites, embedding_dim, rng)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, 1x1 where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = ConvNorm(inputs, outputs, 3, stride, activation=nn.ReLU)
        self.second = ConvNorm(outputs, outputs, 3)
        changes = stride != 1 or inputs != outputs
        self.shortcut = ConvNorm(inputs, outputs, 1, stride) if changes else nn.Identity()
        self.activation = nn.ReLU(inplace=True)

    def forward(self, h: Tensor) -> Tensor:
        """[b, c, f, t] to [b, c', f / stride, t / stride]."""
        output: Tensor = self.activation(self.second(self.first(h)) + self.shortcut(h))
        return output
