"""The two decoders: the encoder's mirror, and one that writes spectra at the frame rate (Siuzdak 2023, Vocos)."""

from __future__ import annotations

import math

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
        return SpectralDecoder(
            settings.latent_dim, settings.decoder_width, settings.decoder_blocks, settings.hop, settings.decoder_spectra
        )
    return mirror_decoder(settings)


def decoder_memory(settings: TinyStreamSettings) -> int:
    """Latents before a frame's that its samples depend on."""
    reach = float(_KERNEL - 1)
    if settings.decoder == "spectral":
        return math.ceil(reach * (settings.decoder_blocks + 1) + 2 - 1 / settings.decoder_spectra)
    rate = 1
    for stride in reversed(settings.strides):
        reach += 1 / rate  # a transposed convolution reads one value before the present
        rate *= stride
        reach += (_KERNEL - 1) / rate
    return math.ceil(reach + (_KERNEL - 1) / rate)


def mirror_decoder(settings: TinyStreamSettings) -> Chain:
    """A dense convolution, stages of transposed convolution and residual unit, and a convolution to samples."""
    widths = [settings.C * 2**stage for stage in range(len(settings.strides) + 1)]
    layers: list[Streaming] = [CausalConv(settings.latent_dim, widths[-1], _KERNEL)]
    for stage in reversed(range(len(settings.strides))):
        layers += [relu(), CausalTransposedConv(widths[stage + 1], widths[stage], settings.strides[stage])]
        layers.append(ResidualUnit(widths[stage], _KERNEL))
    return Chain(*layers, relu(), CausalConv(widths[0], 1, _KERNEL))


class SpectralDecoder(Streaming):
    """ConvNeXt blocks at the frame rate; each frame gives magnitudes and phases of `spectra` windows, two hops long.

    Windows are Hann, `hop / spectra` samples apart, and add up to one; the first of a frame begins where the output of
    its step does.
    """

    window: Tensor

    def __init__(self, inputs: int, width: int, blocks: int, hop: int, spectra: int = 1) -> None:
        super().__init__()
        self.hop, self.spectra, self.pace = hop, spectra, hop // spectra
        self.body = Chain(
            CausalConv(inputs, width, _KERNEL), *(ConvNextBlock(width, 3 * width, blocks) for _ in range(blocks))
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, spectra * 2 * (hop + 1))
        self.register_buffer("window", torch.hann_window(2 * hop) / spectra, persistent=False)

    def initial(self, batch: int) -> State:
        """The body's state and what the last windows reach into the next frame: zeros [b, 2 spectra - 1, pace]."""
        return (*self.body.initial(batch), self.window.new_zeros(batch, 2 * self.spectra - 1, self.pace))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """`hop` samples a frame."""
        h, body = self.body.step(x, state[:-1])
        values = self.head(self.norm(h.transpose(1, 2))).unflatten(-1, (self.spectra, -1)).flatten(1, 2)
        magnitude, phase = values.chunk(2, -1)  # [b, t spectra, hop + 1]
        magnitude = torch.exp(magnitude.clamp(max=_LONGEST_LOG))
        spectrum = torch.complex(magnitude * torch.cos(phase), magnitude * torch.sin(phase))
        pieces = (torch.fft.irfft(spectrum, 2 * self.hop) * self.window).unflatten(-1, (2 * self.spectra, self.pace))
        count, reach = pieces.shape[1], 2 * self.spectra - 1
        samples = functional.pad(state[-1], (0, 0, 0, count))  # overlap-add in steps of `pace`
        for place in range(2 * self.spectra):
            samples = samples + functional.pad(pieces[:, :, place], (0, 0, place, reach - place))
        return samples[:, :count].reshape(len(x), 1, -1), (*body, samples[:, count:])


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
