"""Layers shared by the encoders: convolutions with normalisation that does not depend on the batch."""

from __future__ import annotations

from torch import Tensor, nn


class ConvNorm(nn.Sequential):
    """Convolution without bias, group normalisation, and an activation or none; 'same' padding."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        activation: type[nn.Module] | None = None,
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
            group_norm(outputs),
        ]
        if activation is not None:
            layers.append(activation(inplace=True))
        super().__init__(*layers)


def group_norm(channels: int) -> nn.GroupNorm:
    """Normalisation of each sample over channels, rows and time together: the same at batch 1 as in any batch.

    One group: untrained, it gave slightly better statistics than groups of eight channels, in less time.
    """
    return nn.GroupNorm(1, channels)


class SqueezeExcite(nn.Module):
    """Channel gates from the map's global mean (Hu et al. 2018, with the hard sigmoid of MobileNetV3)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.activation = nn.ReLU(inplace=True)
        self.gate = nn.Hardsigmoid()

    def forward(self, h: Tensor) -> Tensor:
        """h [b, c, f, t] times its gates [b, c, 1, 1]."""
        gates = self.gate(self.expand(self.activation(self.reduce(h.mean((2, 3), keepdim=True)))))
        scaled: Tensor = h * gates
        return scaled
