"""PCM: golden bytes, the error bound, clipping, hostile input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsplit.codec.pcm import pack_pcm, unpack_pcm
from streamsplit.errors import CutError


def test_the_bytes_are_16_bit_little_endian():
    audio = np.array([0.0, 0.5, -0.5, -1.0, 1.0, 3.0, -3.0, 1 / 32_768], np.float32)
    assert pack_pcm(audio).hex() == "0000" + "0040" + "00c0" + "0080" + "ff7f" + "ff7f" + "0080" + "0100"


@given(st.lists(st.floats(-1.0, 0.9998779296875, width=32), max_size=200))
def test_samples_come_back_within_half_a_step(values: list[float]):
    audio = np.array(values, np.float32)
    result = unpack_pcm(pack_pcm(audio))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, audio, atol=0.5 / 32_768 + 1e-9)


def test_a_second_time_through_changes_nothing():
    audio = np.random.default_rng(0).uniform(-1, 1, 1_000).astype(np.float32)
    once = unpack_pcm(pack_pcm(audio))
    np.testing.assert_array_equal(unpack_pcm(pack_pcm(once)), once)


def test_half_a_sample_nan_and_stereo_are_refused():
    with pytest.raises(CutError, match="even"):
        unpack_pcm(b"\0\0\0")
    for bad in (np.array([np.nan], np.float32), np.zeros((2, 4), np.float32)):
        with pytest.raises(CutError):
            pack_pcm(bad)
