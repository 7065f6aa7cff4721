"""The bytes of a crossing: exact or within the stated bound, and no hostile byte gets past them."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.encoders.crossing import Crossing, pack_crossing, stack_crossings, unpack_crossing
from streamsplit.errors import CutError
from streamsplit.wire.media import Encoding

ENCODINGS = (Encoding.FP32, Encoding.FP16, Encoding.INT8)  # without a bottleneck; see test_bottleneck.py


def crossing(shape: tuple[int, int, int] = (3, 4, 5), dim: int = 8, seed: int = 0) -> Crossing:
    generator = torch.Generator().manual_seed(seed)
    return Crossing(torch.randn(1, *shape, generator=generator), torch.randn(1, dim, generator=generator))


def test_fp32_comes_back_bit_for_bit_from_any_memory_layout():
    sent = crossing()
    for h in (sent.h, sent.h.contiguous(memory_format=torch.channels_last)):
        got = unpack_crossing(pack_crossing(Crossing(h, sent.partial), Encoding.FP32))
        assert torch.equal(got.h, sent.h) and torch.equal(got.partial, sent.partial)


def test_the_bytes_of_a_small_crossing_are_these():
    h = torch.tensor([1.0, -2.0, 0.5, 0.0]).reshape(1, 2, 1, 2)
    sent = Crossing(h, torch.tensor([[3.0]]))
    head = struct.pack("<HHHH", 2, 1, 2, 1)
    assert pack_crossing(sent, Encoding.FP32) == b"\x10\0" + head + struct.pack("<5f", 1, -2, 0.5, 0, 3)
    assert pack_crossing(sent, Encoding.FP16) == b"\x11\0" + head + struct.pack("<5e", 1, -2, 0.5, 0, 3)
    scale = float(np.float32(2 / 127))
    assert pack_crossing(sent, Encoding.INT8) == (
        b"\x12\0" + head + struct.pack("<f4b", scale, 64, -127, 32, 0) + struct.pack("<e", 3)
    )


def test_fp16_and_int8_values_stay_within_the_stated_bounds(encoder, windows):
    for x in torch.from_numpy(windows[:: len(windows) // 4][:4]).split(1):
        for k in range(1, encoder.num_blocks):
            sent = encoder.forward_to(x, k)
            half = unpack_crossing(pack_crossing(sent, Encoding.FP16))
            for got, true in zip(half, sent, strict=True):
                assert ((got - true).abs() <= (true.abs() * 2**-11).clamp(min=2**-25)).all()
            step = unpack_crossing(pack_crossing(sent, Encoding.INT8))
            assert (step.h - sent.h).abs().max() <= sent.h.abs().max() / 254 * (1 + 1e-4)
            assert torch.equal(step.partial, half.partial)


def test_completed_embeddings_agree_with_the_exact_ones(encoder, windows, reduced_windows):
    """The bounds that the module states: 1 - cosine below 2e-6 (FP16) and 1e-3 (INT8) at every cut."""
    for source in (windows, reduced_windows):
        for x in torch.from_numpy(source[:: len(source) // 3][:3]).split(1):
            whole = encoder(x).double()
            for k in range(1, encoder.num_blocks):
                sent = encoder.forward_to(x, k)
                for encoding, bound in ((Encoding.FP16, 2e-6), (Encoding.INT8, 1e-3)):
                    z = encoder.forward_from(unpack_crossing(pack_crossing(sent, encoding)), k).double()
                    assert 1 - (z * whole).sum() / z.norm() / whole.norm() < bound, (k, encoding)


def test_payload_sizes_are_header_values_and_sums():
    sent = crossing((72, 4, 4), 128)
    assert len(pack_crossing(sent, Encoding.FP32)) == 10 + 4 * 1152 + 4 * 128
    assert len(pack_crossing(sent, Encoding.FP16)) == 10 + 2 * 1152 + 2 * 128
    assert len(pack_crossing(sent, Encoding.INT8)) == 10 + 4 + 1152 + 2 * 128


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_all_zero_map_stays_zero(encoding):
    got = unpack_crossing(pack_crossing(Crossing(torch.zeros(1, 2, 2, 2), torch.zeros(1, 4)), encoding))
    assert not got.h.any() and not got.partial.any()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("field", ["h", "partial"])
def test_values_that_are_not_finite_are_not_packed(encoding, value, field):
    sent = crossing()
    getattr(sent, field).flatten()[3:4].fill_(value)
    with pytest.raises(CutError, match="NaN or infinite"):
        pack_crossing(sent, encoding)


@pytest.mark.parametrize("encoding", [Encoding.FP32, Encoding.FP16])
@pytest.mark.parametrize("position", [10, -4])
def test_values_that_are_not_finite_are_not_unpacked(encoding, position):
    data = bytearray(pack_crossing(crossing(), encoding))
    nan = struct.pack("<f" if encoding is Encoding.FP32 else "<e", float("nan"))
    data[position : (position + len(nan)) or None] = nan
    data = data[: len(pack_crossing(crossing(), encoding))]
    with pytest.raises(CutError, match="NaN or infinite"):
        unpack_crossing(data)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0, 3e38])
def test_int8_scales_that_make_no_sense_are_refused(scale):
    data = bytearray(pack_crossing(crossing(), Encoding.INT8))
    data[10:14] = struct.pack("<f", scale)
    with pytest.raises(CutError, match="INT8 scale"):
        unpack_crossing(data)


def test_every_truncation_and_any_extra_byte_is_refused():
    for encoding in ENCODINGS:
        data = pack_crossing(crossing(), encoding)
        for length in range(len(data)):
            with pytest.raises(CutError, match="expected"):
                unpack_crossing(data[:length])
        with pytest.raises(CutError, match="expected"):
            unpack_crossing(data + b"\0")


def test_a_header_that_claims_gigabytes_is_refused_before_anything_is_allocated():
    with pytest.raises(CutError, match="values"):
        unpack_crossing(struct.pack("<BBHHHH", Encoding.FP32, 0, 65535, 65535, 65535, 65535))


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (3, 4, 0)])
def test_empty_shapes_are_refused(shape):
    with pytest.raises(CutError, match="expected"):
        unpack_crossing(struct.pack("<BBHHHH", Encoding.FP32, 0, *shape, 8) + bytes(4 * 8))


@pytest.mark.parametrize("encoding", [e for e in Encoding if e not in ENCODINGS])
def test_encodings_for_other_payloads_are_refused(encoding):
    with pytest.raises(CutError, match="expected"):
        pack_crossing(crossing(), encoding)
    data = bytes([encoding]) + pack_crossing(crossing(), Encoding.FP32)[1:]
    with pytest.raises(CutError, match=r"encoding|flags 0x0 with bottleneck-int8"):
        unpack_crossing(data)


def test_batches_and_embeddings_are_not_crossings():
    with pytest.raises(CutError, match="one window at a time"):
        pack_crossing(Crossing(torch.zeros(2, 1, 2, 2), torch.zeros(2, 4)), Encoding.FP32)
    with pytest.raises(CutError, match="pack_embedding"):
        pack_crossing(Crossing(torch.zeros(1, 128), torch.zeros(1, 128)), Encoding.FP32)


def test_values_beyond_float16_are_named():
    sent = crossing()
    sent.h[0, 0, 0, 0] = 7e4
    with pytest.raises(CutError, match="float16"):
        pack_crossing(sent, Encoding.FP16)


def test_crossings_of_different_shapes_do_not_stack():
    with pytest.raises(CutError, match="one shape"):
        stack_crossings([crossing(), crossing((3, 4, 6))])
    with pytest.raises(CutError, match="one shape"):
        stack_crossings([])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_cut_errors(data):
    try:
        got = unpack_crossing(data)
    except CutError:
        return
    assert torch.isfinite(got.h).all() and torch.isfinite(got.partial).all()


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(ENCODINGS), st.integers(0, 400), st.integers(0, 255))
def test_a_flipped_byte_gives_finite_values_or_a_cut_error(encoding, position, value):
    data = bytearray(pack_crossing(crossing(), encoding))
    data[position % len(data)] = value
    try:
        got = unpack_crossing(data)
    except CutError:
        return
    assert torch.isfinite(got.h).all() and torch.isfinite(got.partial).all()
