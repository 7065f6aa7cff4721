"""Files of codes: any length, what is damaged behind the first packet concealed, hostile bytes one clear error."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.codec.tinystream.bitstream import HEADER_BYTES, MODEL_ID_BYTES, pack
from streamsplit.codec.tinystream.coded_file import Lost, file_pieces, pack_file
from streamsplit.codec.tinystream.file_decoder import decode_file
from streamsplit.codec.tinystream.model import TinyStream
from streamsplit.errors import CutError

SIZES = {"D": 8, "strides": (80, 2), "bands": 8, "num_quantizers": 2, "codebook_size": 8, "codebook_dim": 4,
         "front": "logmel", "decoder": "spectral", "decoder_width": 8, "decoder_blocks": 1}  # fmt: skip
MODEL = bytes.fromhex("01020304")


@functools.cache
def codec() -> TinyStream:
    model = TinyStream(**SIZES).train()
    with torch.no_grad():
        model(0.1 * torch.randn(2, 1, 16_000, generator=torch.Generator().manual_seed(1)))
    return model.eval()


def model_id() -> bytes:
    return codec().model_id()[:MODEL_ID_BYTES]


def codes(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 8, (2, frames))


def test_a_file_goes_on_where_a_packet_is_full() -> None:
    indices = codes(70_000)
    data = pack_file(indices, 3, MODEL)
    assert len(data) == 2 * HEADER_BYTES + -(-65_535 * 6 // 8) + -(-4_465 * 6 // 8)
    assert np.array_equal(np.concatenate(list(file_pieces(data, MODEL, 2, 3)), 1), indices)
    assert pack_file(indices[:, :7], 3, MODEL, 4) == pack(indices[:, :4], 3, MODEL) + pack(indices[:, 4:7], 3, MODEL)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "got 0 bytes"),
        (pack(codes(4), 9, MODEL), "got 2 quantizers of 9 bits an index, expected 1..2 of 3"),
        (pack(np.zeros((3, 4), int), 3, MODEL), "got 3 quantizers of 3 bits"),
        (pack(codes(4), 3, b"else"), "codes of model 656c7365"),
        (pack(codes(4), 3, MODEL)[:-1], "got 10 bytes, expected 11"),
    ],
)
def test_a_first_packet_that_is_not_the_codecs_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(CutError, match=message):
        list(file_pieces(data, MODEL, 2, 3))


def test_the_sound_of_a_file_is_that_of_its_codes_at_once() -> None:
    indices = codes(23)
    with torch.no_grad():
        expected = codec().decode(torch.from_numpy(indices)[None])[0, 0].numpy()
    decoded = decode_file(pack_file(indices, 3, model_id(), 5), codec())
    assert decoded.frames == 23
    assert not decoded.lost
    np.testing.assert_allclose(decoded.audio, expected, atol=1e-5)


def test_no_frames_are_no_sound() -> None:
    decoded = decode_file(pack(np.zeros((2, 0), int), 3, model_id()), codec())
    assert decoded.audio.shape == (0,)
    assert codec().decode(torch.zeros(1, 2, 0, dtype=torch.long)).shape == (1, 1, 0)


@pytest.mark.parametrize(("at", "value"), [(0, 7), (1, 0x35), (2, 9), (3, 1), (5, 0xEE), (9, 0xFF)])
def test_a_damaged_packet_in_the_middle_is_concealed_in_its_place(at: int, value: int) -> None:
    indices = codes(15)
    packets = [pack(indices[:, start : start + 5], 3, model_id()) for start in (0, 5, 10)]
    middle = bytearray(packets[1])
    middle[at] = value
    if at == 9:
        middle[-1] |= 1  # of the filling
    data = packets[0] + bytes(middle) + packets[2]
    before, lost, after = file_pieces(data, model_id(), 2, 3)
    assert isinstance(lost, Lost)
    assert lost.frames == 5
    assert np.array_equal(before, indices[:, :5])
    assert np.array_equal(after, indices[:, 10:])
    decoded, whole = decode_file(data, codec()), decode_file(b"".join(packets), codec())
    assert decoded.audio.shape == whole.audio.shape
    hop, late = codec().settings.hop, codec().settings.lookahead
    np.testing.assert_array_equal(decoded.audio[: (5 - late) * hop], whole.audio[: (5 - late) * hop])
    assert not np.allclose(decoded.audio[5 * hop : 10 * hop], whole.audio[5 * hop : 10 * hop], atol=1e-4)


def test_a_last_packet_cut_short_gives_the_frames_that_are_there() -> None:
    indices = codes(15)
    data = pack_file(indices, 3, model_id(), 5)
    first, second, third, lost = file_pieces(data[:-1], model_id(), 2, 3)
    assert np.array_equal(np.concatenate([first, second, third], 1), indices[:, :14])  # three of four bytes: 24 bits
    assert lost.frames == 1
    assert decode_file(data[:-1], codec()).audio.shape == decode_file(data, codec()).audio.shape


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    frames=st.integers(0, 12), changes=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 60), tail=st.binary(max_size=24),
)  # fmt: skip
def test_any_file_is_sound_or_one_clear_error(
    frames: int, changes: list[tuple[int, int]], cut: int, tail: bytes
) -> None:
    data = bytearray(pack_file(codes(frames), 3, model_id(), 4))
    for at, value in changes:
        data[at % len(data)] = value
    whole = bytes(data[: max(0, len(data) - max(0, cut - 40))]) + tail
    try:
        decoded = decode_file(whole, codec())
    except CutError as error:
        assert str(error).startswith("tinystream: got")
    else:
        assert decoded.audio.shape == (decoded.frames * codec().settings.hop,)
        assert np.isfinite(decoded.audio).all()
