"""Layers: causal, the same in any pieces, and equal to torch's own convolutions with the right padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from streamsplit.codec.tinystream.decoder import ConvNextBlock, SpectralDecoder
from streamsplit.codec.tinystream.front import FFT, FLOOR, LogMelFront
from streamsplit.codec.tinystream.layers import (
    CausalConv,
    CausalTransposedConv,
    Chain,
    ResidualUnit,
    Streaming,
    relu,
    separable,
)

LAYERS = {
    "conv": (lambda: CausalConv(3, 5, 7), 3, 1),
    "strided": (lambda: CausalConv(3, 5, 8, 4), 3, 4),
    "stride as long as the kernel": (lambda: CausalConv(3, 5, 4, 4), 3, 4),
    "separable": (lambda: separable(3, 6, 8, 4), 3, 4),
    "transposed": (lambda: CausalTransposedConv(3, 2, 5), 3, 1),
    "residual": (lambda: ResidualUnit(3), 3, 1),
    "logmel": (lambda: LogMelFront(16_000, 160, 20), 1, 160),
    "convnext": (lambda: ConvNextBlock(3, 9, 2), 3, 1),
    "spectral": (lambda: SpectralDecoder(3, 8, 2, 16), 3, 1),
    "four spectra": (lambda: SpectralDecoder(3, 8, 2, 16, 4), 3, 1),
    "chain": (lambda: Chain(CausalConv(3, 4, 7), relu(), separable(4, 8, 4, 2), CausalTransposedConv(8, 1, 2)), 3, 2),
}


def in_pieces(layer: Streaming, x: Tensor, sizes: list[int], unit: int) -> Tensor:
    state = layer.initial(len(x))
    parts, at = [], 0
    for size in [*sizes, x.shape[-1] // unit]:
        piece = x[..., at : at + size * unit]
        if piece.shape[-1]:
            y, state = layer.step(piece, state)
            parts.append(y)
        at += size * unit
    return torch.cat(parts, -1)


@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(1, 5), max_size=6))
def test_any_pieces_give_what_all_of_it_at_once_gives(name: str, sizes: list[int]) -> None:
    make, channels, unit = LAYERS[name]
    torch.manual_seed(0)
    layer, x = make().eval(), torch.randn(2, channels, 12 * unit)
    with torch.no_grad():
        torch.testing.assert_close(in_pieces(layer, x, sizes, unit), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_an_output_does_not_change_with_what_comes_after_it(name: str) -> None:
    make, channels, unit = LAYERS[name]
    torch.manual_seed(0)
    layer, x = make().eval(), torch.randn(1, channels, 10 * unit)
    other = x.clone()
    other[..., 6 * unit :] = torch.randn(1, channels, 4 * unit)
    with torch.no_grad():
        before, after = layer(x), layer(other)
    same = before.shape[-1] * 6 // 10
    torch.testing.assert_close(before[..., :same], after[..., :same], rtol=0, atol=1e-6)
    assert not torch.allclose(before[..., same:], after[..., same:])


@pytest.mark.parametrize("name", LAYERS)
def test_a_step_leaves_the_state_it_was_given_as_it_was(name: str) -> None:
    make, channels, unit = LAYERS[name]
    layer = make().eval()
    with torch.no_grad():
        state = layer.step(torch.randn(1, channels, 4 * unit), layer.initial(1))[1]
        kept = [tensor.clone() for tensor in state]
        first = layer.step(torch.ones(1, channels, 2 * unit), state)[0]
        again = layer.step(torch.ones(1, channels, 2 * unit), state)[0]
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(state, kept, strict=True))
    assert torch.equal(first, again)
    assert [tensor.shape for tensor in state] == [tensor.shape for tensor in layer.initial(1)]


def test_a_strided_convolution_is_torchs_with_its_context_in_front() -> None:
    layer, x = CausalConv(3, 5, 8, 4), torch.randn(2, 3, 24)
    expected = functional.conv1d(functional.pad(x, (4, 0)), layer.conv.weight, layer.conv.bias, 4)
    torch.testing.assert_close(layer(x), expected)


def test_a_transposed_convolution_is_torchs_without_its_last_stride() -> None:
    layer, x = CausalTransposedConv(3, 2, 5), torch.randn(2, 3, 6)
    torch.testing.assert_close(layer(x), layer.conv(x)[..., :30], rtol=1e-5, atol=1e-6)


def test_a_residual_unit_with_a_silent_branch_passes_its_input() -> None:
    unit, x = ResidualUnit(4), torch.randn(1, 4, 9)
    for child in unit.modules():
        if isinstance(child, nn.Conv1d):
            nn.init.zeros_(child.weight)
            nn.init.zeros_(child.bias)
    assert torch.equal(unit(x), x)


@pytest.mark.parametrize("spectra", [1, 2, 4])
def test_constant_spectra_overlap_to_a_constant_after_the_first_window(spectra: int) -> None:
    decoder = SpectralDecoder(1, 8, 1, 16, spectra)
    nn.init.zeros_(decoder.head.weight)
    with torch.no_grad():
        bias = decoder.head.bias.zero_().view(spectra, 2, 17)
        bias[:, 0] = -40.0
        bias[:, 0, 0] = 3.465735902799727  # ln 32: a window of 32 samples at 1
        audio = decoder(torch.zeros(1, 1, 6))
    torch.testing.assert_close(audio[0, 0, 32:], torch.ones(64), rtol=1e-5, atol=1e-5)
    if spectra == 1:
        torch.testing.assert_close(audio[0, 0, :16], torch.hann_window(32)[:16], rtol=1e-5, atol=1e-5)


def test_the_fronts_levels_are_band_energies_of_scipys_spectrum() -> None:
    from scipy.signal import stft

    rng = np.random.default_rng(0)
    audio = (0.1 * rng.standard_normal(1_600)).astype(np.float32)
    front = LogMelFront(16_000, 160, 20)
    levels = front(torch.from_numpy(audio)[None, None])[0].numpy()
    padded = np.concatenate([np.zeros(FFT - 160, np.float32), audio])
    spectrum = stft(padded, 16_000, "hann", FFT, FFT - 160, boundary=None, padded=False)[
        2
    ]  # scaled by the window's sum
    energies = front.filters.numpy() @ (4.0 * np.abs(spectrum) ** 2)
    expected = 1.0 + 2.0 * np.log2(energies + FLOOR) / -np.log2(FLOOR)
    np.testing.assert_allclose(levels, expected, atol=2e-5)


def test_silence_is_minus_one_and_no_full_scale_sine_is_above_one() -> None:
    front = LogMelFront(16_000, 160, 64)
    assert torch.allclose(front(torch.zeros(1, 1, 1_600)), torch.tensor(-1.0))
    time = torch.arange(3_200) / 16_000
    for hertz in (31.25, 1_000.0, 7_000.0):
        levels = front(torch.sin(2 * torch.pi * hertz * time)[None, None])
        assert 0.7 < levels.max() <= 1.0  # a band is the mean over its bins
