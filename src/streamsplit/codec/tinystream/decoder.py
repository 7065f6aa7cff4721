"""The two decoders: the encoder's mirror, and one that writes spectra at the frame rate (Siuzdak 2023, Vocos)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamsplit.codec.tinystream.layers import (
    CausalConv,
    CausalTransposedConv,
    Chain,
    ResidualUnit,
    State,
    Streaming,
    relu,
)
from streamsplit.codec.tinystream.settings import TinyStreamSettings

_KERNEL = 7
_LONGEST_LOG = 6.0  # of a magnitude: e^6 is far above what a waveform in -1..1 gives


def make_decoder(settings: TinyStreamSettings) -> Streaming:
    """Latents [b, latent dim, t] -> samples [b, 1, t hop], late by the settings' lookahead."""
    if settings.decoder == "spectral":
        return SpectralDecoder(settings.latent_dim, settings.decoder_width, settings.decoder_blocks, settings.hop)
    return mirror_decoder(settings)


def mirror_decoder(settings: TinyStreamSettings) -> Chain:
    """A dense convolution, stages of transposed convolution and residual unit, and a convolution to samples."""
    widths = [settings.C * 2**stage for stage in range(len(settings.strides) + 1)]
    layers: list[Streaming] = [CausalConv(settings.latent_dim, widths[-1], _KERNEL)]
    for stage in reversed(range(len(settings.strides))):
        layers += [relu(), CausalTransposedConv(widths[stage + 1], widths[stage], settings.strides[stage])]
        layers.append(ResidualUnit(widths[stage], _KERNEL))
    return Chain(*layers, relu(), CausalConv(widths[0], 1, _KERNEL))


class SpectralDecoder(Streaming):
    """ConvNeXt blocks at the frame rate; each frame gives magnitudes and phases of a window two hops long.

    Windows are Hann and overlap by half, so they add up to one; a frame's window begins where its step's output does.
    """

    window: Tensor

    def __init__(self, inputs: int, width: int, blocks: int, hop: int) -> None:
        super().__init__()
        self.hop = hop
        self.body = Chain(
            CausalConv(inputs, width, _KERNEL), *(ConvNextBlock(width, 3 * width, blocks) for _ in range(blocks))
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 2 * (hop + 1))
        self.register_buffer("window", torch.hann_window(2 * hop), persistent=False)

    def initial(self, batch: int) -> State:
        """The body's state and the second half of the last window."""
        return (*self.body.initial(batch), self.window.new_zeros(batch, self.hop))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """`hop` samples a frame."""
        h, body = self.body.step(x, state[:-1])
        magnitude, phase = self.head(self.norm(h.transpose(1, 2))).chunk(2, -1)
        magnitude = torch.exp(magnitude.clamp(max=_LONGEST_LOG))
        spectrum = torch.complex(magnitude * torch.cos(phase), magnitude * torch.sin(phase))
        frames = torch.fft.irfft(spectrum, 2 * self.hop) * self.window  # [b, t, 2 hop]
        tails = torch.cat([state[-1][:, None], frames[..., self.hop :]], 1)
        samples = frames[..., : self.hop] + tails[:, :-1]
        return samples.reshape(len(x), 1, -1), (*body, tails[:, -1])


class ConvNextBlock(Streaming):
    """x + scale * (depthwise convolution, normalisation of each frame, widening, GELU, narrowing) (Liu et al. 2022)."""

    def __init__(self, channels: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.depthwise = CausalConv(channels, channels, _KERNEL, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, hidden)
        self.narrow = nn.Linear(hidden, channels)
        self.scale = nn.Parameter(torch.full((channels,), 1.0 / blocks))

    def initial(self, batch: int) -> State:
        """Of the depthwise convolution."""
        return self.depthwise.initial(batch)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """As long as it came."""
        h, state = self.depthwise.step(x, state)
        h = self.narrow(functional.gelu(self.widen(self.norm(h.transpose(1, 2)))))
        return x + (self.scale * h).transpose(1, 2), state
