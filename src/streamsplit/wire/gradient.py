"""What GRAD_BACK holds: 10 bytes that name a window and its cut, in front of the loss's gradient there.

An empty GRAD_BACK is an offer. A device says with one that it takes gradients, the server answers with another that it
returns them. Ends without a use for them answer ERROR 'unsupported' to the offer, as for every optional type: older
peers are never asked, and HELLO and WELCOME, whose unknown fields older ends refuse, stay as they are.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from streamsplit.errors import ProtocolError

OFFER = b""


class GradientHeader(NamedTuple):
    """Header of one returned gradient, little-endian; an activation in its own encoding follows."""

    window: int  # u32, window index, from the media header of the window that asked
    revision: int  # u32, as there: of the encoder that computed what crossed
    block: int  # u8, the cut
    exponent: int  # i8, the values that follow are the gradient times 2^exponent, so that halves hold small ones


_LAYOUT = struct.Struct("<IIBb")
GRADIENT_HEADER_BYTES = _LAYOUT.size


def pack_gradient_header(header: GradientHeader, payload: bytes) -> bytes:
    """Header and payload as one GRAD_BACK payload."""
    return _LAYOUT.pack(*header) + payload


def unpack_gradient_header(data: bytes | memoryview) -> tuple[GradientHeader, memoryview]:
    """Splits a GRAD_BACK payload; raises ProtocolError('bad_media') on short data."""
    view = memoryview(data)
    if len(view) < GRADIENT_HEADER_BYTES:
        raise ProtocolError("bad_media", f"got {len(view)} bytes, expected at least {GRADIENT_HEADER_BYTES}")
    return GradientHeader(*_LAYOUT.unpack_from(view)), view[GRADIENT_HEADER_BYTES:]
