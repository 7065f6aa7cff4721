"""What a TinyStream codec is made of, the named sizes, and the clock that follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from streamsplit.config import Settings, setting
from streamsplit.errors import ConfigError

FRONTS = ("waveform", "logmel")
DECODERS = ("mirror", "spectral")
LONGEST_HOP = 512  # of the spectral front: its window


class Clock(NamedTuple):
    """What a codec costs in time and bits."""

    sample_rate: int  # Hz
    hop: int  # samples a frame
    frame_rate_hz: float
    bits_per_frame: int
    bitrate_bps: float  # of the indices; headers are counted where they are written
    latency_ms: (
        float  # from a sample's arrival to its playout, computing aside: its frame, and what the decoder waits for
    )


@dataclass(frozen=True, kw_only=True)
class TinyStreamSettings(Settings):
    """Sizes of a codec; the first six as the seed names them.

    Stage i of the encoder has C 2^i channels and shortens time by `strides[i]`. With `codebook_dim` the encoder's last
    layer gives that many channels instead of D, and the codebooks are as narrow: at 16 of 128 an eighth of the memory
    and of the search. `decoder` is the encoder's mirror, as in the seed, or `spectral`: blocks at the frame rate and an
    inverse Fourier transform, as large as a server likes. With the `logmel` front the encoder begins with the energies
    of `bands` mel bands every `strides[0]` samples, and its stages are all D wide (C is not used).
    """

    C: int = setting(8, low=1, high=64)
    D: int = setting(128, low=1, high=1024)
    strides: tuple[int, ...] = setting((4, 4, 4, 4))
    num_quantizers: int = setting(4, low=1, high=16)
    codebook_size: int = setting(512, low=2, high=4096)
    sample_rate: int = setting(16_000, low=4_000, high=48_000)
    codebook_dim: int | None = setting(None, low=1, high=1024)
    front: str = setting("waveform", choices=FRONTS)
    bands: int = setting(64, low=8, high=128)  # of the logmel front
    decoder: str = setting("mirror", choices=DECODERS)
    decoder_width: int = setting(160, low=8, high=2048)  # channels of the spectral decoder
    decoder_blocks: int = setting(5, low=1, high=64)
    decoder_spectra: int = setting(1, low=1, high=8)  # that the spectral decoder writes a frame
    decoder_lookahead: int = setting(1, low=0, high=16)  # frames that the spectral decoder waits for

    def check(self) -> None:
        """Strides must shorten time; a codebook's size is a power of two, so that its indices fill their bits."""
        strides = self.strides
        if self.front == "logmel":
            if not strides or not 16 <= strides[0] <= LONGEST_HOP:
                raise ConfigError(
                    f"'strides': got {list(strides)}, expected the spectrum's hop of 16..{LONGEST_HOP} samples first"
                )
            strides = strides[1:]
        elif not strides:
            raise ConfigError("'strides': got none, expected one to eight numbers of 1..16")
        if len(strides) > 8 or not all(1 <= stride <= 16 for stride in strides):
            raise ConfigError(f"'strides': got {list(self.strides)}, expected one to eight numbers of 1..16")
        if self.hop % self.decoder_spectra:
            raise ConfigError(
                f"'decoder_spectra': got {self.decoder_spectra}, expected a divisor of {self.hop} samples"
            )
        if self.codebook_size & (self.codebook_size - 1):
            raise ConfigError(f"'codebook_size': got {self.codebook_size}, expected a power of two")

    @property
    def hop(self) -> int:
        """Samples a frame."""
        return math.prod(self.strides)

    @property
    def latent_dim(self) -> int:
        """Channels of what is quantised."""
        return self.codebook_dim if self.codebook_dim is not None else self.D

    @property
    def index_bits(self) -> int:
        """Bits of one index."""
        return self.codebook_size.bit_length() - 1

    @property
    def lookahead(self) -> int:
        """Frames that the decoder waits for beyond the one it gives."""
        return self.decoder_lookahead if self.decoder == "spectral" else 0

    @property
    def clock(self) -> Clock:
        """Rates and latency with all quantizers."""
        return self.clock_with(self.num_quantizers)

    def clock_with(self, num_quantizers: int) -> Clock:
        """Rates and latency when only the first `num_quantizers` are sent."""
        frame_rate = self.sample_rate / self.hop
        bits = num_quantizers * self.index_bits
        latency_ms = 1000.0 * self.hop * (1 + self.lookahead) / self.sample_rate
        return Clock(self.sample_rate, self.hop, frame_rate, bits, bits * frame_rate, latency_ms)


SIZES = {
    "ultra_tiny": TinyStreamSettings(C=4, D=64, num_quantizers=2, codebook_size=256),
    "tiny": TinyStreamSettings(C=8, D=128, num_quantizers=4, codebook_size=512),
    "small": TinyStreamSettings(C=12, D=192, num_quantizers=4, codebook_size=1024),
    "tiny_mel": TinyStreamSettings(
        front="logmel", strides=(160, 2), D=60, codebook_dim=16, num_quantizers=5, decoder="spectral"
    ),
}
"""The seed's three sizes, whose parameter counts do not follow from them by any one rule, and one with a log-mel front
and narrow codebooks."""
