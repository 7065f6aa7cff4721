"""The 20-byte header of a window's payload."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsplit.errors import ProtocolError
from streamsplit.wire.media import (
    MEDIA_HEADER_BYTES,
    Encoding,
    MediaFlag,
    MediaHeader,
    Resolution,
    pack_media,
    unpack_media,
)

HEADER = MediaHeader(0x01020304, 0xA1B2C3D4, 5, Encoding.INT8, Resolution.REDUCED, 0, 1.5, 50, 12.25, 3)


def test_a_media_header_is_twenty_bytes_in_the_documented_order():
    data = pack_media(HEADER, b"payload")
    assert data == bytes.fromhex("04030201 d4c3b2a1 05 12 01 00 003e 3200 204a 0300") + b"payload"
    header, payload = unpack_media(data)
    assert header == HEADER and bytes(payload) == b"payload" and MEDIA_HEADER_BYTES == 20


def test_numbers_too_large_for_their_field_are_held_at_its_largest_value():
    header, _ = unpack_media(pack_media(HEADER._replace(edge_ms=1e6, uncertainty=math.inf, skipped=70_000), b""))
    assert (header.edge_ms, header.uncertainty, header.skipped) == (65504.0, 65504.0, 65535)
    header, _ = unpack_media(pack_media(HEADER._replace(window=(1 << 32) + 9, uncertainty=math.nan), b""))
    assert header.window == 9 and math.isnan(header.uncertainty)


@pytest.mark.parametrize(("offset", "value"), [(9, 4), (9, 255), (10, 2), (11, 2), (11, 3), (11, 128)])
def test_unknown_encodings_resolutions_and_flags_are_refused(offset, value):
    data = bytearray(pack_media(HEADER, b""))
    data[offset] = value
    with pytest.raises(ProtocolError, match=r"^bad_media"):
        unpack_media(data)


def test_the_mark_of_a_new_stretch_is_bit_0_of_the_flags():
    data = pack_media(HEADER._replace(flags=MediaFlag.STARTS), b"")
    assert data[11] == 1 and unpack_media(data)[0].flags == MediaFlag.STARTS
    assert unpack_media(pack_media(HEADER, b""))[0].flags == MediaFlag.NONE


def test_short_media_is_refused_at_every_length():
    for length in range(MEDIA_HEADER_BYTES):
        with pytest.raises(ProtocolError, match=r"^bad_media"):
            unpack_media(pack_media(HEADER, b"")[:length])


@given(st.binary(max_size=60))
def test_random_bytes_unpack_or_raise_bad_media(data):
    try:
        header, payload = unpack_media(data)
    except ProtocolError as error:
        assert error.code == "bad_media"
    else:
        assert len(payload) == len(data) - MEDIA_HEADER_BYTES and header.encoding in list(Encoding)
