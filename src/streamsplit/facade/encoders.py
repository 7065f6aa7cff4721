"""`MobileNetV3EdgeEncoder` and `MobileNetV3ServerEncoder`: the split encoder under the research code's names."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from streamsplit.encoders.mobilenet import MobileNetV3Small
from streamsplit.errors import EncoderError


class MobileNetV3EdgeEncoder(MobileNetV3Small):
    """The default encoder; also takes a single spectrogram [f, t] and gives its embedding [d]."""

    def __init__(
        self, input_dim: int = 128, embedding_dim: int = 128, width_multiplier: float = 0.75, *, seed: int = 0
    ) -> None:
        """`input_dim` mel bands, 128 or (reduced) 64: one encoder takes both."""
        if input_dim not in (64, 128):
            raise EncoderError(f"got input_dim {input_dim}, expected 128 mel bands, or 64 at reduced resolution")
        super().__init__(width_multiplier, embedding_dim, np.random.default_rng(seed))
        self.input_dim = input_dim
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Unit-norm embeddings [b, d] of x [b, f, t] or [b, 1, f, t]; [d] of x [f, t]."""
        if x.dim() == 2:
            return super().forward(x[None])[0]
        return super().forward(x[:, 0] if x.dim() == 4 and x.shape[1] == 1 else x)


class MobileNetV3ServerEncoder(nn.Module):
    """The server's part: its copy of the split encoder, which completes any cut, and a head that refines finished
    embeddings, so that the server also learns from devices that send nothing else.

    The head is a residual network of `num_layers` linear layers, `intermediate_dim` wide, that starts as the identity.
    """

    def __init__(
        self,
        intermediate_dim: int = 256,
        embedding_dim: int = 128,
        num_layers: int = 4,
        *,
        width_multiplier: float = 0.75,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_layers < 1 or intermediate_dim < 1:
            raise EncoderError(f"got {num_layers} layers of {intermediate_dim}, expected at least one of at least 1")
        self.embedding_dim = embedding_dim
        self.encoder = MobileNetV3EdgeEncoder(128, embedding_dim, width_multiplier, seed=seed)
        sizes = [embedding_dim, *[intermediate_dim] * (num_layers - 1), embedding_dim]
        rng = np.random.default_rng([seed, num_layers, intermediate_dim])
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layer = nn.Linear(inputs, outputs)
            scale = np.sqrt(2.0 / inputs) if len(layers) // 2 < num_layers - 1 else 0.0
            with torch.no_grad():
                values = scale * rng.standard_normal((outputs, inputs))
                layer.weight.copy_(torch.from_numpy(values.astype(np.float32)))
                layer.bias.zero_()
            layers += [layer, nn.GELU()]
        self.head = nn.Sequential(*layers[:-1])
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings [b, d] of spectrograms x [b, f, t], or [d] of [f, t], refined."""
        return self.refine(self.encoder(x))

    def refine(self, z: Tensor) -> Tensor:
        """Unit-norm refined embeddings of finished ones, [b, d] or [d]."""
        if z.shape[-1] != self.embedding_dim:
            raise EncoderError(f"got embeddings of shape {tuple(z.shape)}, expected [..., {self.embedding_dim}]")
        z = functional.normalize(z, dim=-1)
        refined: Tensor = self.head(z)
        return functional.normalize(z + refined, dim=-1)
