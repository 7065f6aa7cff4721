"""The spectral front of an encoder: log energies of mel bands, causal, with the samples still needed as its state."""

from __future__ import annotations

import torch
from torch import Tensor

from streamsplit.audio.mel import triangle_filters
from streamsplit.codec.tinystream.layers import State, Streaming

FFT = 512  # samples of a window
FLOOR = 1e-8  # added to a band's energy, where a sine at full scale has 1: -80 dB
OCTAVES = 26.575424759098897  # log2(1 / FLOOR)


class LogMelFront(Streaming):
    """Samples [b, 1, t hop] -> log energies [b, bands, t], -1 for silence and 1 for a sine at full scale.

    A frame's window ends with the frame's last sample. The energies are means over a band of the power spectrum.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, sample_rate: int, hop: int, bands: int) -> None:
        super().__init__()
        self.hop = hop
        self.register_buffer("window", torch.hann_window(FFT), persistent=False)
        self.scale = (2.0 / (FFT / 2)) ** 2  # of a power: a sine at full scale has a peak of 1
        filters = triangle_filters(sample_rate, FFT, bands, 0.0, sample_rate / 2)
        self.register_buffer("filters", torch.from_numpy(filters / filters.sum(1, keepdims=True)), persistent=False)

    def initial(self, batch: int) -> State:
        """The samples before the first: zeros [b, 1, FFT - hop]."""
        return (self.window.new_zeros(batch, 1, FFT - self.hop),)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One frame for every `hop` samples."""
        frames, rest = self.windows(x, state)
        spectrum = torch.fft.rfft(frames)
        return self.levels(spectrum.real.square() + spectrum.imag.square()), rest

    def windows(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Windowed samples [b, t, FFT], and the state after them."""
        joined = torch.cat([state[0], x], -1)
        return joined[:, 0].unfold(-1, FFT, self.hop) * self.window, (joined[..., joined.shape[-1] - FFT + self.hop :],)

    def levels(self, power: Tensor) -> Tensor:
        """Log energies [b, bands, t] of power spectra [b, t, FFT / 2 + 1]."""
        energies = (power * self.scale) @ self.filters.T
        return (torch.log2(energies + FLOOR) * (2.0 / OCTAVES) + 1.0).transpose(1, 2)
