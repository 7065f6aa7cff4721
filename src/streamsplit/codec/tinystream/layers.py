"""Causal layers with explicit state: `step(x, state) -> (y, state)`, and `forward` is a step from the initial state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

State = tuple[Tensor, ...]  # fixed sizes, never changed in place


class Streaming(nn.Module):
    """A layer over time [b, c, t] that can stop after any frame and go on from its state, bit for bit."""

    def initial(self, batch: int) -> State:
        """The state before the first sample: silence."""
        raise NotImplementedError

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """What the next samples [b, c, t] give, t a multiple of the layer's stride, and the state after them."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """All of it at once, from the initial state."""
        return self.step(x, self.initial(len(x)))[0]


class Pointwise(Streaming):
    """A layer without memory."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def initial(self, batch: int) -> State:
        """None."""
        return ()

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The layer's output; the state is empty."""
        return self.layer(x), state


class Chain(Streaming):
    """Layers one after the other; the state is that of all of them in order."""

    def __init__(self, *layers: Streaming) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._sizes = [len(layer.initial(1)) for layer in layers]

    def initial(self, batch: int) -> State:
        """All layers' states, joined."""
        return sum((layer.initial(batch) for layer in self._all()), ())

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Through every layer."""
        after: State = ()
        at = 0
        for layer, size in zip(self._all(), self._sizes, strict=True):
            x, new = layer.step(x, state[at : at + size])
            after += new
            at += size
        return x, after

    def _all(self) -> Sequence[Streaming]:
        return list(self.layers)  # type: ignore[arg-type]


class CausalConv(Streaming):
    """Convolution that sees only the past: [b, inputs, t stride] -> [b, outputs, t]."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, groups=groups)
        self.inputs, self.context = inputs, max(0, kernel - stride)

    def initial(self, batch: int) -> State:
        """The last samples before the first one: zeros [b, inputs, kernel - stride]."""
        return (self.conv.weight.new_zeros(batch, self.inputs, self.context),)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One output for every `stride` samples."""
        x = torch.cat([state[0], x], -1)
        return self.conv(x), (x[..., x.shape[-1] - self.context :],)


class CausalTransposedConv(Streaming):
    """Transposed convolution with kernel 2 stride: [b, inputs, t] -> [b, outputs, t stride], none of it late."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(inputs, outputs, 2 * stride, stride)
        self.outputs, self.stride = outputs, stride

    def initial(self, batch: int) -> State:
        """What the frame before reaches into the next one: zeros [b, outputs, stride]."""
        return (self.conv.weight.new_zeros(batch, self.outputs, self.stride),)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Overlap-add with the state; the bias is added once."""
        spread = functional.conv_transpose1d(x, self.conv.weight, None, self.stride)
        head, body = spread[..., : self.stride] + state[0], spread[..., self.stride :]
        joined = torch.cat([head, body], -1)
        length = x.shape[-1] * self.stride
        bias: Tensor = self.conv.bias  # type: ignore[assignment]
        return joined[..., :length] + bias[:, None], (joined[..., length:],)


class ResidualUnit(Streaming):
    """x + pointwise(relu(separable convolution(relu(x)))), as wide as it came."""

    def __init__(self, channels: int, kernel: int = 7) -> None:
        super().__init__()
        self.chain = Chain(relu(), separable(channels, channels, kernel), relu(), pointwise(channels, channels))

    def initial(self, batch: int) -> State:
        """Of the depthwise convolution."""
        return self.chain.initial(batch)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The input and what the unit adds."""
        added, state = self.chain.step(x, state)
        return x + added, state


def relu() -> Pointwise:
    """ReLU, which a microcontroller gets for nothing."""
    return Pointwise(nn.ReLU())


def pointwise(inputs: int, outputs: int) -> Pointwise:
    """Convolution of kernel 1."""
    return Pointwise(nn.Conv1d(inputs, outputs, 1))


def separable(inputs: int, outputs: int, kernel: int, stride: int = 1) -> Chain:
    """Depthwise causal convolution, then a pointwise one."""
    return Chain(CausalConv(inputs, inputs, kernel, stride, groups=inputs), pointwise(inputs, outputs))
