"""The bytes of one embedding."""

from __future__ import annotations

import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.encoders.embedding_codec import pack_embedding, unpack_embedding
from streamsplit.errors import CutError
from streamsplit.wire.media import Encoding

ENCODINGS = (Encoding.EMBEDDING_FP16, Encoding.EMBEDDING_INT8, Encoding.EXIT_FP16)


def unit(seed: int = 0, dim: int = 128) -> np.ndarray:
    z = np.random.default_rng(seed).standard_normal(dim).astype(np.float32)
    return z / np.linalg.norm(z)


def test_the_bytes_of_a_small_embedding_are_these():
    z = np.array([1.0, -0.5, 0.0], np.float32)
    assert pack_embedding(z, Encoding.EMBEDDING_FP16) == struct.pack("<BBH3e", 32, 0, 3, 1, -0.5, 0)
    scale = float(np.float32(1 / 127))
    assert pack_embedding(z, Encoding.EMBEDDING_INT8) == struct.pack("<BBHf3b", 33, 0, 3, scale, 127, -64, 0)

    assert pack_embedding(z, Encoding.EXIT_FP16) == struct.pack("<BBH3e", 34, 0, 3, 1, -0.5, 0)


def test_sizes_are_260_and_136_bytes_for_128_dimensions():
    assert [len(pack_embedding(unit(), encoding)) for encoding in ENCODINGS] == [260, 136, 260]


@pytest.mark.parametrize("seed", range(20))
def test_values_come_back_within_the_stated_bounds(seed):
    z = unit(seed)
    half = unpack_embedding(pack_embedding(z, Encoding.EMBEDDING_FP16))
    assert half.dtype == np.float32 and half.shape == (128,)
    assert (np.abs(half - z) <= np.maximum(np.abs(z) * 2**-11, 2**-25)).all()
    step = unpack_embedding(pack_embedding(z, Encoding.EMBEDDING_INT8))
    assert np.abs(step - z).max() <= np.abs(z).max() / 254 * (1 + 1e-5)
    assert step @ z / np.linalg.norm(step) > 0.9998


def test_zeros_stay_zeros():
    for encoding in ENCODINGS:
        assert not unpack_embedding(pack_embedding(np.zeros(4, np.float32), encoding)).any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_on_both_ends(value):
    z = unit()
    z[5] = value
    for encoding in ENCODINGS:
        with pytest.raises(CutError, match="NaN or infinite"):
            pack_embedding(z, encoding)
    data = bytearray(pack_embedding(unit(), Encoding.EMBEDDING_FP16))
    data[4:6] = struct.pack("<e", value)
    with pytest.raises(CutError, match="NaN or infinite"):
        unpack_embedding(data)
    data = bytearray(pack_embedding(unit(), Encoding.EMBEDDING_INT8))
    data[4:8] = struct.pack("<f", value)
    with pytest.raises(CutError, match="INT8 scale"):
        unpack_embedding(data)


def test_wrong_shapes_sizes_and_encodings_are_refused():
    for z in (np.zeros((1, 4)), np.zeros(0), np.zeros(5000)):
        with pytest.raises(CutError, match="shape"):
            pack_embedding(z, Encoding.EMBEDDING_FP16)
    with pytest.raises(CutError, match="expected embedding-fp16"):
        pack_embedding(unit(), Encoding.FP16)
    with pytest.raises(CutError, match="65504"):
        pack_embedding(np.array([1e6]), Encoding.EMBEDDING_FP16)


def test_every_truncation_and_any_extra_byte_is_refused():
    for encoding in ENCODINGS:
        data = pack_embedding(unit(dim=8), encoding)
        for wrong in [data[:n] for n in range(len(data))] + [data + b"\0"]:
            with pytest.raises(CutError, match="expected"):
                unpack_embedding(wrong)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64), st.sampled_from([b"", b"\x20\0", b"\x21\0", b"\x22\0"]))
def test_random_bytes_raise_nothing_but_cut_errors(data, head):
    try:
        got = unpack_embedding(head + data)
    except CutError:
        return
    assert np.isfinite(got).all()


def test_it_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from streamsplit.encoders.embedding_codec import pack_embedding, unpack_embedding\n"
        "from streamsplit.wire.media import Encoding\n"
        "z = np.ones(4, np.float32) / 2\n"
        "assert (unpack_embedding(pack_embedding(z, Encoding.EMBEDDING_FP16)) == z).all()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
