"""The spectral front in whole numbers: window, Fourier transform, mel energies, logarithm (numpy, as the C runtime)."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from streamsplit.audio.mel import triangle_filters

Int16 = NDArray[np.int16]
Int64 = NDArray[np.int64]

FFT = 512
STAGES = 9  # 2^9 = FFT
WINDOW_SHIFT = 8  # a windowed sample, 2^30 at most, goes on with 22 bits: after nine stages it fits 31
TWIDDLE_BITS = 15
POWER_SHIFT = 16
FILTER_BITS = 15
LOG_BITS = 10  # of a logarithm's fraction
LOG_TABLE_BITS = 6
LEVEL_STEP = 1 / 16_384  # what 1 of a level stands for
_FLOOR = 1e-8  # of a sine at full scale, as LogMelFront has it


class IntegerFront:
    """Samples [t hop] -> levels [t, bands] in LEVEL_STEP, those of `front.LogMelFront` up to rounding."""

    def __init__(self, sample_rate: int, hop: int, bands: int) -> None:
        self.sample_rate, self.hop, self.bands = sample_rate, hop, bands
        self.context = FFT - hop
        filters = triangle_filters(sample_rate, FFT, bands, 0.0, sample_rate / 2).astype(np.float64)
        shares = filters / filters.sum(1, keepdims=True)
        self.filters = np.rint(shares * (1 << FILTER_BITS)).astype(np.int64)  # [bands, bins], 2^15 in all, nearly
        full_scale = 32_768.0 * (1 << (15 - WINDOW_SHIFT)) * FFT / 4  # peak of a sine's spectrum
        energy = full_scale**2 / (1 << POWER_SHIFT)
        self.floor = max(1, round(_FLOOR * energy))
        octaves = math.log2(1 / _FLOOR)
        scale = 2.0 / (LEVEL_STEP * octaves * (1 << LOG_BITS))
        self.slope = round(scale * (1 << 12))
        lowest = (math.log2(_FLOOR * energy)) * (1 << LOG_BITS)
        self.offset = round(-1 / LEVEL_STEP) * (1 << 12) - round(lowest * scale * (1 << 12))

    def step(self, samples: Int16, context: Int16) -> tuple[Int16, Int16]:
        """One row of levels for every `hop` samples, and the samples that the next ones need."""
        joined = np.concatenate([context, samples])
        if len(joined) < FFT:
            return np.zeros((0, self.bands), np.int16), joined
        frames = np.lib.stride_tricks.sliding_window_view(joined, FFT)[:: self.hop]
        return self.levels(frames), joined[len(joined) - self.context :]

    def levels(self, frames: Int16) -> Int16:
        """Levels [t, bands] of windows of samples [t, FFT]."""
        real, imaginary = spectrum(frames.astype(np.int64) * window() >> WINDOW_SHIFT)
        power = (real * real + imaginary * imaginary) >> POWER_SHIFT
        energies = np.stack([(power * shares >> FILTER_BITS).sum(1) for shares in self.filters], 1)
        logarithms = log2(energies + self.floor)
        scaled = (logarithms * self.slope + self.offset + (1 << 11)) >> 12
        return np.clip(scaled, -32_768, 32_767).astype(np.int16)


def spectrum(x: Int64) -> tuple[Int64, Int64]:
    """Real and imaginary part [t, FFT / 2 + 1] of real rows [t, FFT]: radix 2, decimation in time."""
    real, imaginary = x[:, bit_reversed()].copy(), np.zeros_like(x)
    cosines, sines = twiddles()
    half_bit = 1 << (TWIDDLE_BITS - 1)
    for stage in range(STAGES):
        half = 1 << stage
        c, s = cosines[:: FFT // (2 * half)], sines[:: FFT // (2 * half)]
        re = real.reshape(len(x), -1, 2, half)
        im = imaginary.reshape(len(x), -1, 2, half)
        upper_re, upper_im = re[:, :, 1], im[:, :, 1]
        turned_re = (upper_re * c + upper_im * s + half_bit) >> TWIDDLE_BITS
        turned_im = (upper_im * c - upper_re * s + half_bit) >> TWIDDLE_BITS
        real = np.stack([re[:, :, 0] + turned_re, re[:, :, 0] - turned_re], 2).reshape(len(x), FFT)
        imaginary = np.stack([im[:, :, 0] + turned_im, im[:, :, 0] - turned_im], 2).reshape(len(x), FFT)
    return real[:, : FFT // 2 + 1], imaginary[:, : FFT // 2 + 1]


def log2(x: Int64) -> Int64:
    """log2 of whole numbers in 1..2^53 in steps of 2^-LOG_BITS: the leading bit, and a table, linear in between."""
    leading = np.frexp(x.astype(np.float64))[1].astype(np.int64) - 1
    mantissa = np.where(leading >= 16, x >> np.maximum(leading - 16, 0), x << np.maximum(16 - leading, 0)) - (1 << 16)
    below = 16 - LOG_TABLE_BITS
    place, rest = mantissa >> below, mantissa & ((1 << below) - 1)
    table = log_table()
    return (leading << LOG_BITS) + table[place] + ((table[place + 1] - table[place]) * rest >> below)


@functools.cache
def window() -> Int64:
    """Hann window, 2^15 - 1 at most."""
    return np.rint(np.minimum(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT) / FFT), 1) * 32_767).astype(np.int64)


@functools.cache
def twiddles() -> tuple[Int64, Int64]:
    """Cosines and sines of half a turn [FFT / 2], 2^15 - 1 at most."""
    angles = 2 * np.pi * np.arange(FFT // 2) / FFT
    return tuple(np.rint(wave(angles) * 32_767).astype(np.int64) for wave in (np.cos, np.sin))


@functools.cache
def log_table() -> Int64:
    """log2(1 + i / 2^LOG_TABLE_BITS) in steps of 2^-LOG_BITS, both ends included."""
    places = 1 + np.arange((1 << LOG_TABLE_BITS) + 1) / (1 << LOG_TABLE_BITS)
    return np.rint(np.log2(places) * (1 << LOG_BITS)).astype(np.int64)


@functools.cache
def bit_reversed() -> NDArray[np.int64]:
    """Places [FFT] with their bits in reverse."""
    places = np.arange(FFT)
    turned = np.zeros(FFT, np.int64)
    for bit in range(STAGES):
        turned |= (places >> bit & 1) << (STAGES - 1 - bit)
    return turned
