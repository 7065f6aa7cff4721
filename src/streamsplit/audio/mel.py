"""The mel filterbank: Slaney mel scale, triangles integrated over FFT bins, so that no filter is ever empty."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LINEAR_HZ_PER_MEL = 200.0 / 3.0
_LOG_START_HZ = 1000.0
_LOG_START_MEL = _LOG_START_HZ / _LINEAR_HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27.0


def hz_to_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slaney's mel scale: linear below 1 kHz, logarithmic above."""
    hz = np.asarray(hz, np.float64)
    log_part = _LOG_START_MEL + np.log(np.maximum(hz, _LOG_START_HZ) / _LOG_START_HZ) / _LOG_STEP
    return np.where(hz < _LOG_START_HZ, hz / _LINEAR_HZ_PER_MEL, log_part)


def mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of `hz_to_mel`."""
    mel = np.asarray(mel, np.float64)
    log_part = _LOG_START_HZ * np.exp(_LOG_STEP * (np.maximum(mel, _LOG_START_MEL) - _LOG_START_MEL))
    return np.where(mel < _LOG_START_MEL, mel * _LINEAR_HZ_PER_MEL, log_part)


def triangle_filters(
    sample_rate_hz: int, fft_samples: int, bands: int, low_hz: float, high_hz: float
) -> NDArray[np.float32]:
    """Filters [f, bins], each triangle of area one over frequency in Hz.

    The usual construction samples each triangle at the bin centres; where the bands are narrower than the bins (128
    bands on 512 points) some triangles fall between two centres and stay all zero: 12 of 128 in the papers' release.
    Here a bin's weight is the triangle's mean over the bin's width, the difference of the triangular distribution's
    cumulative function at the bin's two edges; the two agree where the bins are fine.
    """
    low_mel, high_mel = hz_to_mel(np.array([low_hz, high_hz]))
    edges = mel_to_hz(np.linspace(float(low_mel), float(high_mel), bands + 2))
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bin_hz = sample_rate_hz / fft_samples
    borders = (np.arange(fft_samples // 2 + 2) - 0.5)[None, :] * bin_hz
    rising = np.clip(borders, left, centre) - left
    falling = right - np.clip(borders, centre, right)
    up = rising**2 / (centre - left)
    down = (right - centre) - falling**2 / (right - centre)
    cumulative = (up + down) / (right - left)
    return (np.diff(cumulative, axis=1) / bin_hz).astype(np.float32)
