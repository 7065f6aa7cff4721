"""Packed indices: golden bytes, any sizes there and back, and hostile bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.codec.tinystream import bitstream
from streamsplit.codec.tinystream.bitstream import pack, unpack
from streamsplit.errors import CutError

MODEL = bytes.fromhex("01020304")


def test_golden_bytes() -> None:
    indices = np.array([[5, 0], [7, 1]])  # two frames of two quantizers, three bits: 101 111 000 001
    assert pack(indices, 3, MODEL).hex() == "01" + "12" + "0200" + "01020304" + "bc10"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(quantizers=st.integers(1, 16), frames=st.integers(0, 40), bits=st.integers(1, 16), seed=st.integers(0, 9))
def test_what_is_packed_is_unpacked(quantizers: int, frames: int, bits: int, seed: int) -> None:
    indices = np.random.default_rng(seed).integers(0, 1 << bits, (quantizers, frames))
    data = pack(indices, bits, MODEL)
    assert len(data) == bitstream.HEADER_BYTES + -(-quantizers * frames * bits // 8)
    packet = unpack(data, MODEL)
    assert np.array_equal(packet.indices, indices)
    assert (packet.index_bits, packet.model_id) == (bits, MODEL)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.binary(max_size=64))
def test_any_bytes_are_a_packet_or_one_clear_error(data: bytes) -> None:
    try:
        packet = unpack(data)
    except CutError as error:
        assert str(error).startswith("tinystream: got")
    else:
        assert pack(packet.indices, packet.index_bits, packet.model_id) == data


def test_every_cut_of_a_packet_is_refused() -> None:
    data = pack(np.arange(8).reshape(2, 4), 9, MODEL)
    for length in range(len(data)):
        with pytest.raises(CutError, match=r"tinystream: got \d+ bytes, expected"):
            unpack(data[:length], MODEL)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, 2, "got version 2, expected 1"),
        (4, 9, "codes of model 09020304, expected 01020304"),
        (-1, 0x01, "expected zeros"),
    ],
)
def test_another_version_model_or_filling_is_refused(at: int, value: int, message: str) -> None:
    data = bytearray(pack(np.array([[5]]), 3, MODEL))
    data[at] |= value
    if at == 0:
        data[at] = value
    if at == 4:
        data[at] = value
    with pytest.raises(CutError, match=message):
        unpack(bytes(data), MODEL)


def test_bytes_behind_the_packet_are_refused() -> None:
    with pytest.raises(CutError, match="got 1 bytes behind a packet of 9"):
        unpack(pack(np.array([[5]]), 3, MODEL) + b"\0", MODEL)


@pytest.mark.parametrize(
    ("indices", "bits"),
    [(np.zeros((17, 2), int), 3), (np.zeros(4, int), 3), (np.zeros((1, 65536), int), 3), (np.array([[8]]), 3),
     (np.array([[-1]]), 3), (np.array([[0]]), 17), (np.array([[0]]), 0)],
)  # fmt: skip
def test_indices_that_do_not_fit_are_refused(indices: np.ndarray, bits: int) -> None:
    with pytest.raises(CutError, match="tinystream: got"):
        pack(indices, bits, MODEL)
