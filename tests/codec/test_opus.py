"""Opus segments: aligned with their input, about 3 KB a second, alone decodable, and hostile bytes refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.audio.synth import render
from streamsplit.codec.opus import LONGEST_S, decode_segment, encode_segment
from streamsplit.errors import AudioError, CutError

SOUND = render("conversation", 3.0, np.random.default_rng(0)) * np.float32(2.0)


def lag(a: np.ndarray, b: np.ndarray) -> int:
    """Samples by which b is late."""
    size = 2 * len(a)
    correlation = np.fft.irfft(np.conj(np.fft.rfft(a, size)) * np.fft.rfft(b, size), size)
    best = int(np.argmax(correlation))
    return best if best < len(a) else best - size


@pytest.mark.parametrize("label", ["conversation", "music", "rain", "typing"])
@pytest.mark.parametrize("samples", [8_000, 16_240, 8_240])
def test_the_decoded_segment_is_aligned_with_its_input(label: str, samples: int):
    audio = render(label, samples / 16_000, np.random.default_rng(3))
    result = decode_segment(encode_segment(audio), samples)
    assert result.dtype == np.float32 and result.shape == (samples,)
    assert lag(audio, result) == 0
    assert np.corrcoef(audio, result)[0, 1] > 0.8


def test_24_kbit_take_about_3_kb_a_second():
    pieces = [SOUND[at : at + 8_000] for at in range(0, 48_000, 8_000)]
    rate = sum(len(encode_segment(piece)) for piece in pieces) / 3.0
    assert 2_500 < rate < 3_600
    assert 24_000 / 8 * 0.8 < len(encode_segment(SOUND)) / 3.0 < 24_000 / 8 * 1.15


def test_more_bits_sound_closer():
    def error(bitrate_bps: int) -> float:
        return float(np.mean((decode_segment(encode_segment(SOUND, bitrate_bps), len(SOUND)) - SOUND) ** 2))

    assert error(48_000) < error(24_000) < error(10_000)


def test_segments_are_independent_and_repeatable():
    first, second = encode_segment(SOUND[:8_000]), encode_segment(SOUND[8_000:16_000])
    alone = decode_segment(second, 8_000)
    decode_segment(first, 8_000)
    np.testing.assert_array_equal(decode_segment(second, 8_000), alone)
    assert encode_segment(SOUND[8_000:16_000]) == second


@pytest.mark.parametrize("samples", [0, 1, 100, 319, 320, 321, 5_000])
def test_segments_of_any_length_come_back_at_their_length(samples: int):
    assert decode_segment(encode_segment(SOUND[:samples]), samples).shape == (samples,)


def test_packets_longer_than_251_bytes_take_a_two_byte_length():
    noise = np.random.default_rng(0).uniform(-1, 1, 16_000).astype(np.float32)
    payload = encode_segment(noise, 128_000)
    assert len(payload) / 50 > 252
    assert lag(noise, decode_segment(payload, 16_000)) == 0


def test_a_payload_of_another_length_is_refused():
    payload = encode_segment(SOUND[:8_000])
    for samples in (0, 7_000, 9_000, 16_240, -1, (LONGEST_S + 1) * 16_000):
        with pytest.raises(CutError):
            decode_segment(payload, samples)


def test_every_truncation_is_refused():
    payload = encode_segment(SOUND[:2_000])
    for length in range(len(payload)):
        with pytest.raises(CutError):
            decode_segment(payload[:length], 2_000)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_give_audio_or_the_codecs_own_error(data: bytes):
    try:
        result = decode_segment(data, 640)
    except CutError:
        return
    assert result.shape == (640,)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=20))
def test_changed_bytes_give_audio_or_the_codecs_own_error(changes: list[tuple[int, int]]):
    payload = bytearray(encode_segment(SOUND[:1_600]))
    for at, value in changes:
        payload[at % len(payload)] = value
    try:
        result = decode_segment(bytes(payload), 1_600)
    except CutError:
        return
    assert result.shape == (1_600,)


def test_a_packet_that_holds_more_than_its_20_ms_is_refused():
    payload = encode_segment(np.zeros(320, np.float32))
    sixty_ms = bytes((3, 0b00011011, 2, 0))  # a length, then code 3 with two 20 ms frames in one packet
    with pytest.raises(CutError):
        decode_segment(payload[:2] + sixty_ms + sixty_ms, 320)


@pytest.mark.parametrize("audio", [np.full(400, np.nan, np.float32), np.zeros((2, 400), np.float32)])
def test_what_is_not_finite_mono_is_refused(audio: np.ndarray):
    with pytest.raises(CutError):
        encode_segment(audio)


def test_impossible_bit_rates_are_refused():
    for bitrate_bps in (0, 1_000_000):
        with pytest.raises(CutError, match="bit/s"):
            encode_segment(SOUND[:320], bitrate_bps)


def test_without_libopus_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch):
    class NoLibrary:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "opuslib_next":
                raise Exception("Could not find Opus library. Make sure it is installed.")  # as the binding does

    for name in [name for name in sys.modules if name.split(".")[0] == "opuslib_next"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NoLibrary(), *sys.meta_path])
    with pytest.raises(AudioError, match="apt-get install libopus0"):
        encode_segment(SOUND[:320])
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "opuslib_next", None)
    with pytest.raises(AudioError, match="pip install opuslib-next"):
        encode_segment(SOUND[:320])
