"""Feature codecs: golden bytes, error bounds over all that audio can give, hostile input."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsplit.audio.logmel import log_mel
from streamsplit.codec.features import HIGHEST, INT8_ERROR, LOWEST, pack_features, unpack_features
from streamsplit.errors import CutError
from streamsplit.wire.media import Encoding

BOTH = [Encoding.LOGMEL_FP16, Encoding.LOGMEL_INT8]


def test_the_layout_is_encoding_bands_frames_then_band_by_band():
    features = np.array([[0.0, 1.0], [-2.0, 0.5]], np.float32)
    assert pack_features(features, Encoding.LOGMEL_FP16).hex() == "08020200" + "0000003c00c00038"
    middle = (HIGHEST + LOWEST) / 2.0
    edges = np.array([[LOWEST, middle, HIGHEST]], np.float32)
    assert pack_features(edges, Encoding.LOGMEL_INT8).hex() == "09010300" + "81007f"


@pytest.mark.parametrize(
    ("encoding", "bound"), [(Encoding.LOGMEL_FP16, 0.004), (Encoding.LOGMEL_INT8, INT8_ERROR + 1e-5)]
)
@pytest.mark.parametrize("shape", [(128, 100), (128, 50), (64, 25), (64, 1)])
def test_values_in_range_come_back_within_the_bound(encoding: Encoding, bound: float, shape: tuple[int, int]):
    features = np.random.default_rng(0).uniform(LOWEST, HIGHEST, shape).astype(np.float32)
    result = unpack_features(pack_features(features, encoding))
    assert result.shape == shape and result.dtype == np.float32
    assert np.abs(result - features).max() <= bound


@pytest.mark.parametrize("encoding", BOTH)
def test_no_audio_leaves_the_scale(encoding: Encoding):
    rng = np.random.default_rng(1)
    time_s = np.arange(8_000) / 16_000
    sounds = [
        np.zeros(8_000), np.ones(8_000), np.sign(np.sin(2 * np.pi * 440 * time_s)), np.sign(rng.standard_normal(8_000)),
        np.sign(np.sin(2 * np.pi * 6_543 * time_s)),
        *(np.sin(2 * np.pi * hz * time_s) for hz in (100, 1_000, 4_000, 7_900)),
    ]  # fmt: skip
    for sound in sounds:
        features = log_mel(sound.astype(np.float32))
        assert np.abs(unpack_features(pack_features(features, encoding)) - features).max() <= INT8_ERROR + 1e-4


def test_int8_takes_a_byte_a_value():
    features = np.zeros((128, 50), np.float32)
    assert len(pack_features(features, Encoding.LOGMEL_INT8)) == 4 + 6_400
    assert len(pack_features(features, Encoding.LOGMEL_FP16)) == 4 + 12_800


@pytest.mark.parametrize("encoding", BOTH)
def test_a_second_time_through_changes_nothing(encoding: Encoding):
    features = np.random.default_rng(0).uniform(-20, 12, (64, 9)).astype(np.float32)
    payload = pack_features(features, encoding)
    assert pack_features(unpack_features(payload), encoding) == payload


@given(st.binary(max_size=64))
def test_any_bytes_give_features_or_the_codecs_own_error(data: bytes):
    try:
        result = unpack_features(data)
    except CutError:
        return
    assert np.isfinite(result).all()


def test_truncation_nan_and_lies_about_the_size_are_refused():
    payload = pack_features(np.zeros((4, 4), np.float32), Encoding.LOGMEL_FP16)
    nan = payload[:4] + np.full(16, np.nan, "<f2").tobytes()
    huge = struct.pack("<BBH", Encoding.LOGMEL_INT8, 255, 65_535) + bytes(10)
    for bad in (payload[:-1], payload + b"\0", payload[:3], b"", nan, huge, b"\x01" + payload[1:], b"\x09\0\0\0"):
        with pytest.raises(CutError):
            unpack_features(bad)


@pytest.mark.parametrize(
    "features",
    [np.zeros(10), np.zeros((256, 2)), np.full((2, 2), np.nan), np.zeros((1, 70_000))],
    ids=["one axis", "too many bands", "nan", "too many frames"],
)
def test_what_is_not_log_mel_is_refused(features: np.ndarray):
    with pytest.raises(CutError):
        pack_features(features.astype(np.float32), Encoding.LOGMEL_INT8)
    with pytest.raises(CutError):
        pack_features(np.zeros((2, 2), np.float32), Encoding.PCM16)
