"""Pieces at a cut: codes and sound are those of one stream, and what is wrong with a packet is said."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.audio.synth import render_scene
from streamsplit.codec.tinystream.bitstream import HEADER_BYTES, unpack
from streamsplit.codec.tinystream.frames import IntegerEncoderStream
from streamsplit.codec.tinystream.integer import IntegerEncoder
from streamsplit.codec.tinystream.integerise import activation_peaks, integerise
from streamsplit.codec.tinystream.model import TinyStream
from streamsplit.codec.tinystream.segment_decoder import SegmentDecoder
from streamsplit.codec.tinystream.segments import SegmentEncoder, packaged_segments
from streamsplit.codec.tinystream.streams import DecoderStream
from streamsplit.errors import CutError
from streamsplit.weights.codec_file import read_codec

SIZES = {
    "waveform": {"C": 4, "D": 16, "strides": (4, 5), "num_quantizers": 3, "codebook_size": 32, "codebook_dim": 6},
    "logmel": {"D": 20, "strides": (80, 2), "bands": 24, "num_quantizers": 3, "codebook_size": 32, "codebook_dim": 6,
               "front": "logmel", "decoder": "spectral", "decoder_width": 16, "decoder_blocks": 2,
               "decoder_spectra": 2, "decoder_lookahead": 2},
}  # fmt: skip


def sound(seconds: float = 2.0, seed: int = 0) -> np.ndarray:
    return render_scene("conversation", seconds, np.random.default_rng(seed)).clip(-1, 1)


@functools.cache
def codec(name: str) -> tuple[TinyStream, IntegerEncoder]:
    if name == "tiny_mel":
        published = read_codec(name)
        return published.model, published.integer_encoder()
    model = TinyStream(**SIZES[name], seed=1).train()
    audio = torch.from_numpy(sound())[None, None]
    with torch.no_grad():
        for _ in range(3):
            model(audio)
    model.eval()
    return model, integerise(model, activation_peaks(model, audio))


@pytest.mark.parametrize("name", ["waveform", "logmel", "tiny_mel"])
def test_pieces_have_the_codes_of_one_stream(name: str) -> None:
    """The device's windows: each piece comes with the half second before it, and the first one is not whole frames."""
    _, encoder = codec(name)
    segments, audio = SegmentEncoder(encoder), sound(3.0)
    first, stride = 16_240, 25 * 320
    assert encoder.memory_frames * encoder.hop <= stride - encoder.hop  # so that what comes with a piece is enough
    packets = [segments.encode(audio[:first], audio[:0])]
    for end in range(first + stride, len(audio) + 1, stride):
        packets.append(segments.encode(audio[end - stride : end], audio[end - first : end - stride]))
    got = np.concatenate([unpack(packet, segments.model_id).indices for packet in packets], 1)
    stream = IntegerEncoderStream(encoder)
    stream.push(np.zeros(0, np.float32))
    silence = np.zeros(-first % encoder.hop, np.float32)
    expected = stream.push(np.concatenate([silence, audio[: first + (len(packets) - 1) * stride]]))
    np.testing.assert_array_equal(got, expected)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(name=st.sampled_from(["waveform", "logmel"]), lead=st.integers(0, 40), seed=st.integers(0, 9))
def test_memory_is_as_long_as_a_code_looks_back(name: str, lead: int, seed: int) -> None:
    """What lies before it changes nothing; what lies within it may."""
    _, encoder = codec(name)
    rng = np.random.default_rng(seed)
    hop = encoder.hop
    frames = (encoder.memory_frames + lead + 4) * hop
    audio = rng.integers(-8_000, 8_000, frames).astype(np.int16)
    other = audio.copy()
    other[: frames - (encoder.memory_frames + 1) * hop] = rng.integers(-8_000, 8_000)
    last = [encoder.step(samples, encoder.initial())[0][:, -1] for samples in (audio, other)]
    np.testing.assert_array_equal(*last)


@pytest.mark.parametrize("name", ["waveform", "logmel", "tiny_mel"])
def test_decoded_pieces_are_one_streams_sound(name: str) -> None:
    model, encoder = codec(name)
    segments, decoder, audio = SegmentEncoder(encoder), SegmentDecoder(model), sound(4.0)
    stride, hop = 25 * 320, model.settings.hop
    pieces, context, codes = [], None, []
    for start in range(0, len(audio) - stride + 1, stride):
        packet = segments.encode(audio[start : start + stride], audio[:start])
        codes.append(unpack(packet).indices)
        piece, context = decoder.decode(packet, stride, context)
        pieces.append(piece)
        assert context.shape[1] <= decoder.context_frames
    stream = DecoderStream(model)
    late = model.settings.lookahead * hop
    whole = stream.push(np.concatenate(codes, 1))[late:]
    for number, piece in enumerate(pieces):
        expected = whole[number * stride : (number + 1) * stride - late]
        np.testing.assert_allclose(piece[: len(expected)], expected, atol=2e-5)


@pytest.mark.parametrize("name", ["waveform", "logmel"])
def test_the_context_of_the_decoder_is_no_longer_than_it_needs_to_be(name: str) -> None:
    """One latent within the reach changes the last frame; one before it changes nothing."""
    model, _ = codec(name)
    decoder, count = SegmentDecoder(model), 60
    rng = np.random.default_rng(0)
    codes = torch.from_numpy(rng.integers(0, 32, (1, 3, count)))
    last = model.decode(codes)[..., -model.settings.hop :]

    @torch.no_grad()
    def moved(frame: int) -> float:
        other = codes.clone()
        other[:, :, frame] = (other[:, :, frame] + 7) % 32
        return float((model.decode(other)[..., -model.settings.hop :] - last).abs().max())

    reach = decoder.context_frames
    assert moved(count - 2 - reach) == 0.0
    late = model.settings.lookahead
    assert max(moved(count - 1 - back + late) for back in (reach, reach - 1)) > 0.0


def test_fewer_quantizers_and_a_change_of_their_number() -> None:
    model, encoder = codec("tiny_mel")
    audio, decoder = sound(2.0), SegmentDecoder(model)
    all_of_them, few = SegmentEncoder(encoder), SegmentEncoder(encoder, 2)
    whole = all_of_them.encode(audio[:16_000], audio[:0])
    coarse = few.encode(audio[16_000:24_000], audio[:16_000])
    assert len(coarse) == HEADER_BYTES + -(-25 * 2 * 9 // 8)
    expected = unpack(all_of_them.encode(audio[16_000:24_000], audio[:16_000])).indices[:2]
    np.testing.assert_array_equal(unpack(coarse).indices, expected)
    _, context = decoder.decode(whole, 16_000)
    with_other, kept = decoder.decode(coarse, 8_000, context)
    np.testing.assert_array_equal(with_other, decoder.decode(coarse, 8_000)[0])
    assert kept.shape == (2, 25)
    with pytest.raises(CutError, match=r"6 quantizers, expected 1\.\.5"):
        SegmentEncoder(encoder, 6)


def test_the_packaged_encoder_is_the_published_codecs() -> None:
    audio = sound(1.5)
    expected = SegmentEncoder(codec("tiny_mel")[1]).encode(audio[8_000:16_000], audio[:8_000])
    assert packaged_segments().encode(audio[8_000:16_000], audio[:8_000]) == expected
    assert packaged_segments() is packaged_segments()


def test_an_empty_piece_is_an_empty_packet() -> None:
    packet = packaged_segments().encode(np.zeros(0, np.float32), np.zeros(0, np.float32))
    audio, context = SegmentDecoder(codec("tiny_mel")[0]).decode(packet, 0)
    assert len(packet) == HEADER_BYTES and audio.shape == (0,) and context.shape[1] == 0


@pytest.mark.parametrize(
    "piece", [np.zeros((2, 320), np.float32), np.array([0.0, np.nan], np.float32), np.array([np.inf], np.float32)]
)
def test_sound_that_cannot_be_coded_is_refused(piece: np.ndarray) -> None:
    with pytest.raises(CutError, match="expected finite mono samples"):
        packaged_segments().encode(piece, np.zeros(0, np.float32))


def test_packets_that_do_not_fit_are_refused() -> None:
    model, encoder = codec("tiny_mel")
    decoder = SegmentDecoder(model)
    packet = SegmentEncoder(encoder).encode(sound(0.5), np.zeros(0, np.float32))
    with pytest.raises(CutError, match="got 25 frames of 9 bits an index, expected 26 of 9 for 8001 samples"):
        decoder.decode(packet, 8_001)
    with pytest.raises(CutError, match="load the codec that wrote them"):
        SegmentDecoder(codec("logmel")[0]).decode(packet, 8_000)
    with pytest.raises(CutError, match="bytes"):
        decoder.decode(packet[:-1], 8_000)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_whatever_arrives_it_decodes_or_is_refused(data: st.DataObject) -> None:
    decoder = SegmentDecoder(codec("tiny_mel")[0])
    packet = bytearray(SegmentEncoder(codec("tiny_mel")[1]).encode(sound(0.5), np.zeros(0, np.float32)))
    for _ in range(data.draw(st.integers(0, 4))):
        packet[data.draw(st.integers(0, len(packet) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(packet)))
    try:
        audio, _ = decoder.decode(bytes(packet[:cut]), 8_000)
    except CutError:
        return
    assert audio.shape == (8_000,) and np.isfinite(audio).all()
