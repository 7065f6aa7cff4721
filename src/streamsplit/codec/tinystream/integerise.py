"""A trained encoder in whole numbers: scales from what it hears, weights to 8 bits by output channel."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from streamsplit.codec.tinystream.front import LogMelFront
from streamsplit.codec.tinystream.integer import HIGHEST, IntegerEncoder, Kind, Operation
from streamsplit.codec.tinystream.integer_front import LEVEL_STEP, IntegerFront
from streamsplit.codec.tinystream.layers import CausalConv, Chain, Pointwise, ResidualUnit, Streaming
from streamsplit.codec.tinystream.model import TinyStream
from streamsplit.errors import CutError

_SAMPLE_STEP = 1 / 32_768
_HEADROOM = 1.25  # of the largest activation heard; beyond it the integer encoder saturates


class _Step(NamedTuple):
    """One operation of the float encoder; its layer where it is a convolution."""

    kind: Kind
    layer: CausalConv | nn.Conv1d | None = None
    relu: bool = False


def integerise(model: TinyStream, peaks: Sequence[float]) -> IntegerEncoder:
    """The encoder of `model` in whole numbers, its scales from the largest activations heard (`activation_peaks`).

    Raises CutError where there are not as many peaks as operations, or sums would not fit 32 bits.
    """
    settings = model.settings
    steps = list(_steps(list(model.encoder.layers)))  # type: ignore[arg-type]
    if len(peaks) != len(steps):
        raise CutError(f"tinystream: got {len(peaks)} peaks of activations, expected {len(steps)}")
    front = None
    scale = _SAMPLE_STEP
    if settings.front == "logmel":
        front = IntegerFront(settings.sample_rate, settings.strides[0], settings.bands)
        scale = LEVEL_STEP
    program: list[Operation] = []
    held = scale
    for number, step in enumerate(steps):
        if step.kind is Kind.KEEP:
            held = scale
        if step.layer is None:
            program.append(Operation(step.kind))
            continue
        ends_unit = number + 1 < len(steps) and steps[number + 1].kind is Kind.ADD
        wanted = held if ends_unit else _HEADROOM * peaks[number] / HIGHEST
        program.append(_operation(step, scale, wanted))
        scale = wanted
    codebooks, shifts = _codebooks(model, scale)
    return IntegerEncoder(
        settings.hop, settings.sample_rate, front, tuple(program), codebooks, shifts, scale, model.model_id()
    )


def _steps(layers: list[Streaming]) -> Iterator[_Step]:
    """The float encoder's convolutions, in order, with the ReLU before each, and the residual units' ends."""
    relu = False
    for layer in _flat(layers):
        if isinstance(layer, nn.ReLU):
            relu = True
        elif isinstance(layer, (CausalConv, nn.Conv1d)):
            conv = layer.conv if isinstance(layer, CausalConv) else layer
            yield _Step(Kind.DEPTHWISE if conv.groups > 1 else Kind.DENSE, layer, relu)
            relu = False
        elif isinstance(layer, Kind):
            yield _Step(layer)
        elif not isinstance(layer, LogMelFront):
            raise CutError(f"tinystream: a layer of type {type(layer).__name__} has no integer form")


def _flat(layers: list[Streaming]) -> Iterator[nn.Module | Kind]:
    for layer in layers:
        if isinstance(layer, Chain):
            yield from _flat(list(layer.layers))  # type: ignore[arg-type]
        elif isinstance(layer, ResidualUnit):
            yield Kind.KEEP
            yield from _flat([layer.chain])
            yield Kind.ADD
        elif isinstance(layer, Pointwise):
            yield layer.layer
        else:
            yield layer


@torch.no_grad()
def activation_peaks(model: TinyStream, audio: Tensor) -> list[float]:
    """Largest magnitude after each operation of the encoder, over sounds [b, 1, n].

    Of what a residual unit is added to, of the sum as well: both have one scale.
    """
    steps = list(_steps(list(model.encoder.layers)))  # type: ignore[arg-type]
    x = model.whole_frames(audio)
    first = model.encoder.layers[0]  # type: ignore[index]
    if isinstance(first, LogMelFront):
        x = first(x)
    peaks = [0.0] * len(steps)
    held, writer, kept_from = x, -1, -1
    for number, step in enumerate(steps):
        if step.kind is Kind.KEEP:
            held, kept_from = x, writer
        elif step.kind is Kind.ADD:
            x = held + x
            if kept_from >= 0:
                peaks[kept_from] = max(peaks[kept_from], float(x.abs().max()))
            writer = kept_from
        else:
            assert step.layer is not None
            x = step.layer(torch.relu(x) if step.relu else x)
            peaks[number] = float(x.abs().max())
            writer = number
    return peaks


def _operation(step: _Step, scale_in: float, scale_out: float) -> Operation:
    """A convolution's numbers, between two scales of activations."""
    assert step.layer is not None
    conv = step.layer.conv if isinstance(step.layer, CausalConv) else step.layer
    weight = conv.weight.detach().double().numpy()  # [o, i / groups, kernel]
    steps = np.maximum(np.abs(weight).max((1, 2)), 1e-12) / 127
    whole = np.rint(weight / steps[:, None, None])
    sums = steps * scale_in  # what 1 of a sum stands for
    bias = np.zeros(len(weight)) if conv.bias is None else conv.bias.detach().double().numpy()
    biases = np.rint(bias / sums)
    largest = np.abs(whole).sum((1, 2)) * (HIGHEST + 1) + np.abs(biases)
    if largest.max() >= 1 << 31:
        raise CutError(
            f"tinystream: got a layer whose sums reach {largest.max():.3g}, expected below 2^31; use fewer channels"
        )
    multiplier, shift = zip(*(_rational(ratio) for ratio in sums / scale_out), strict=True)
    stored = whole[:, 0] if step.kind is Kind.DEPTHWISE else whole.transpose(0, 2, 1)
    return Operation(
        step.kind, stored.astype(np.int8), biases.astype(np.int32), np.array(multiplier, np.int32),
        np.array(shift, np.int32), conv.stride[0], step.relu,
    )  # fmt: skip


def _rational(ratio: float) -> tuple[int, int]:
    """multiplier / 2^shift of a ratio, the multiplier with 15 bits."""
    fraction, exponent = math.frexp(ratio)
    multiplier, shift = round(fraction * (1 << 15)), 15 - exponent
    if multiplier == 1 << 15:
        multiplier, shift = multiplier // 2, shift - 1
    if not 1 <= shift <= 46:
        raise CutError(f"tinystream: got scales {ratio:.3g} apart, expected 2^-31..2^14")
    return multiplier, shift


def _codebooks(model: TinyStream, latent_step: float) -> tuple[np.ndarray, tuple[int, ...]]:
    """Entries as 8-bit numbers, each codebook in the smallest power of two of latent steps that holds it."""
    entries = model.quantizer.codebooks.detach().double().numpy() / latent_step
    shifts = [max(0, math.ceil(math.log2(max(np.abs(book).max(), 1.0) / 127))) for book in entries]
    if (entries.shape[2] * 128**2) << max(shifts) >= 1 << 31:
        raise CutError(
            f"tinystream: got codebook entries up to {np.abs(entries).max():.3g} latent steps, whose squares do not "
            "fit 32 bits; the peaks of activations are too small for this codec"
        )
    whole = np.stack([np.rint(book / (1 << shift)) for book, shift in zip(entries, shifts, strict=True)])
    return np.clip(whole, -128, 127).astype(np.int8), tuple(shifts)
