"""The codec: encoder, residual quantizer and decoder, whole clips at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from streamsplit.codec.tinystream.decoder import make_decoder
from streamsplit.codec.tinystream.front import LogMelFront
from streamsplit.codec.tinystream.layers import (
    CausalConv,
    Chain,
    ResidualUnit,
    Streaming,
    pointwise,
    relu,
    separable,
)
from streamsplit.codec.tinystream.quantizer import Quantized, ResidualQuantizer
from streamsplit.codec.tinystream.settings import Clock, TinyStreamSettings
from streamsplit.errors import AudioError, CutError

_KERNEL = 7
_SETTLES = 16  # frames: longer than anything in the encoder remembers


class Coded(NamedTuple):
    """A training pass."""

    audio: Tensor  # [b, 1, n], decoded, aligned with the input
    latent: Tensor  # [b, d, t], before the quantizer
    quantized: Quantized | None  # None where the quantizer was left out


class TinyStream(nn.Module):
    """A causal neural codec of mono audio (after SoundStream, Zeghidour et al. 2021).

    The encoder is separable convolutions and ReLU, small enough for a microcontroller; `codebook_dim` and `decoder` are
    those of TinyStreamSettings. Weights are drawn from `seed`. Raises ConfigError on sizes out of range.
    """

    def __init__(
        self, C: int = 8, D: int = 128, strides: Sequence[int] = (4, 4, 4, 4), num_quantizers: int = 4,
        codebook_size: int = 512, sample_rate: int = 16_000, *, seed: int = 0, **more: object,
    ) -> None:  # fmt: skip
        super().__init__()
        self.settings = TinyStreamSettings.from_mapping(
            {
                "C": C, "D": D, "strides": tuple(strides), "num_quantizers": num_quantizers,
                "codebook_size": codebook_size, "sample_rate": sample_rate, **more,
            }
        )  # fmt: skip
        self.encoder = make_encoder(self.settings)
        self.quantizer = ResidualQuantizer(num_quantizers, codebook_size, self.settings.latent_dim)
        self.decoder = make_decoder(self.settings)
        initialise(self, np.random.default_rng(seed))

    @classmethod
    def from_settings(cls, settings: TinyStreamSettings, seed: int = 0) -> TinyStream:
        """The codec of these settings."""
        return cls(**settings.as_dict(), seed=seed)

    @property
    def clock(self) -> Clock:
        """Sample rate, hop, frame rate, bitrate and latency."""
        return self.settings.clock

    def forward(self, audio: Tensor, used: Tensor | None = None, *, quantize: bool = True) -> Coded:
        """Through the codec and back, for training; `used` [b] as for the quantizer, `quantize` False without it."""
        latent = self.encoder(self.whole_frames(audio))
        quantized = self.quantizer(latent, used) if quantize else None
        decoded = self._decoded(quantized.quantized if quantized is not None else latent)
        return Coded(decoded[..., : audio.shape[-1]], latent, quantized)

    def encode(self, audio: Tensor, num_quantizers: int | None = None) -> Tensor:
        """Indices [b, quantizers, frames] of audio [b, 1, n]; the last frame is filled up with silence.

        With `num_quantizers` only the first ones: fewer bits, coarser. Raises AudioError on another shape or numbers
        that are not finite, CutError where there are not that many quantizers.
        """
        if audio.ndim != 3 or audio.shape[1] != 1:
            raise AudioError(f"tinystream: got audio of shape {tuple(audio.shape)}, expected mono [b, 1, n]")
        if not bool(torch.isfinite(audio).all()):
            raise AudioError("tinystream: got samples that are not finite, expected -1..1")
        self.check_count(num_quantizers)
        return self.quantizer.encode(self.encoder(self.whole_frames(audio)), num_quantizers)

    def decode(self, indices: Tensor) -> Tensor:
        """Audio [b, 1, frames * hop] of indices [b, quantizers, frames], aligned with what was encoded.

        Raises CutError on indices that this codec cannot have written.
        """
        return self._decoded(self.quantizer.decode(indices))

    @torch.no_grad()
    def silent_latent(self) -> Tensor:
        """What the encoder says of silence that has lasted [1, d, 1]."""
        hop = self.settings.hop
        silence = self.encoder.initial(1)[0].new_zeros(1, 1, hop)
        state = self.encoder.initial(1)
        for _ in range(_SETTLES):
            latent, state = self.encoder.step(silence, state)
        return latent

    def model_id(self) -> bytes:
        """First eight bytes of a hash of encoder and codebooks: what a bitstream's reader must have, too."""
        state = {f"encoder.{name}": value for name, value in self.encoder.state_dict().items()}
        state["codebooks"] = self.quantizer.codebooks
        digest = hashlib.sha256()
        for name in sorted(state):
            digest.update(name.encode())
            digest.update(state[name].detach().cpu().to(torch.float32).contiguous().numpy().tobytes())
        return digest.digest()[:8]

    def check_count(self, num_quantizers: int | None) -> None:
        """Raises CutError where there are not that many quantizers."""
        if num_quantizers is not None and not 1 <= num_quantizers <= self.settings.num_quantizers:
            raise CutError(f"tinystream: got {num_quantizers} quantizers, expected 1..{self.settings.num_quantizers}")

    def whole_frames(self, audio: Tensor) -> Tensor:
        """Sounds [b, 1, n], filled up with silence to whole frames."""
        missing = -audio.shape[-1] % self.settings.hop
        return nn.functional.pad(audio, (0, missing)) if missing else audio

    def _decoded(self, latent: Tensor) -> Tensor:
        """Decoder's output for latents [b, d, t], its lookahead filled with the last latent and taken out again."""
        late = self.settings.lookahead
        if not latent.shape[-1]:  # convolutions refuse it
            return latent.new_zeros(len(latent), 1, 0)
        if not late:
            return self.decoder(latent)
        held = torch.cat([latent, latent[..., -1:].expand(-1, -1, late)], -1)
        return self.decoder(held)[..., late * self.settings.hop :]


def make_encoder(settings: TinyStreamSettings) -> Streaming:
    """Samples [b, 1, t hop] -> latents [b, latent dim, t]: stages of a residual unit and a strided convolution."""
    layers: list[Streaming]
    if settings.front == "logmel":
        width, strides, growth = settings.D, settings.strides[1:], 1
        layers = [
            LogMelFront(settings.sample_rate, settings.strides[0], settings.bands), pointwise(settings.bands, width)
        ]  # fmt: skip
    else:
        width, strides, growth = settings.C, settings.strides, 2
        layers = [CausalConv(1, width, _KERNEL)]
    for stride in strides:
        layers += [ResidualUnit(width, _KERNEL), relu(), separable(width, growth * width, 2 * stride, stride)]
        width *= growth
    if settings.front == "logmel":
        layers.append(ResidualUnit(width, _KERNEL))
    return Chain(*layers, relu(), CausalConv(width, settings.latent_dim, 3))


def initialise(module: nn.Module, rng: np.random.Generator) -> None:
    """Fills convolutions and linear layers (He normal, fan in), in module order; norms and scales keep their start."""
    for child in module.modules():
        if isinstance(child, (nn.Conv1d, nn.ConvTranspose1d, nn.Linear)):
            weight = child.weight
            reached = weight.shape[0] if isinstance(child, nn.ConvTranspose1d) else weight[0].numel()
            if isinstance(child, nn.ConvTranspose1d):
                reached *= 2  # windows of two strides: two inputs meet in every output
            values = rng.standard_normal(tuple(weight.shape), dtype=np.float32) * np.float32(np.sqrt(2.0 / reached))
            with torch.no_grad():
                weight.copy_(torch.from_numpy(values))
                if child.bias is not None:
                    child.bias.zero_()
