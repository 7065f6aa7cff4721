"""A file of codes, packet after packet; what is damaged behind the first is told apart, not refused (numpy only).

Bits that were changed within the codes cannot be seen: packets hold no checksum.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamsplit.codec.tinystream.bitstream import (
    HEADER_BYTES,
    MODEL_ID_BYTES,
    MOST_FRAMES,
    Indices,
    pack,
    unpack_first,
)
from streamsplit.errors import CutError

PACKET_FRAMES = 250  # of the packets of a file that is kept: what one damaged header costs


class Lost(NamedTuple):
    """Frames of a packet that cannot be read."""

    frames: int
    why: str


def pack_file(
    indices: NDArray[np.integer], index_bits: int, model_id: bytes, packet_frames: int = MOST_FRAMES
) -> bytes:
    """Indices [quantizers, frames] of any length as one packet after the other; raises CutError as `pack`."""
    frames = np.asarray(indices).shape[-1]
    starts = range(0, max(1, frames), packet_frames)
    return b"".join(pack(indices[:, start : start + packet_frames], index_bits, model_id) for start in starts)


def file_pieces(data: bytes, model_id: bytes, most_quantizers: int, index_bits: int) -> Iterator[Indices | Lost]:
    """Indices [quantizers, frames] packet by packet, all with as many quantizers, or what is lost in their place.

    Raises CutError, before it gives anything, where the first packet cannot be read, is of another model, or has more
    quantizers or other bits than the codec's. Behind a damaged packet it goes on at the next header like the first's.
    """
    first, used = unpack_first(data, model_id)
    if len(first.indices) > most_quantizers or first.index_bits != index_bits:
        raise CutError(
            f"tinystream: got {len(first.indices)} quantizers of {first.index_bits} bits an index, expected "
            f"1..{most_quantizers} of {index_bits}"
        )
    return _pieces(data, first.indices, used, len(first.indices) * index_bits)


def _pieces(data: bytes, first: Indices, at: int, frame_bits: int) -> Iterator[Indices | Lost]:
    yield first
    kind, model_id = data[:2], data[HEADER_BYTES - MODEL_ID_BYTES : HEADER_BYTES]
    while at < len(data):
        after, right = _next(data, at + 1, kind, model_id), _begins(data, at, kind, model_id)
        there = max(0, after - at - HEADER_BYTES) * 8 // frame_bits  # frames
        try:
            if not right:
                raise CutError("tinystream: got a header unlike the first packet's, expected the same codec and sizes")
            packet, used = unpack_first(memoryview(data)[at:after])
        except CutError as error:
            if right and after == len(data) and there < (told := int.from_bytes(data[at + 2 : at + 4], "little")):
                yield _beginning(data[at:], there, there * frame_bits)  # cut short
                yield Lost(told - there, str(error))
            else:
                yield Lost(there, str(error))
            at = after
        else:
            yield packet.indices
            at += used


def _beginning(packet: bytes, frames: int, bits: int) -> Indices:
    """The indices of the first frames of a packet."""
    codes = np.unpackbits(np.frombuffer(packet, np.uint8, offset=HEADER_BYTES))[:bits]
    head = packet[:2] + frames.to_bytes(2, "little") + packet[4:HEADER_BYTES]
    return unpack_first(head + np.packbits(codes).tobytes())[0].indices


def _begins(data: bytes, at: int, kind: bytes, model_id: bytes) -> bool:
    """Whether a header like the first packet's is at `at`."""
    return data[at : at + 2] == kind and data[at + HEADER_BYTES - MODEL_ID_BYTES : at + HEADER_BYTES] == model_id


def _next(data: bytes, at: int, kind: bytes, model_id: bytes) -> int:
    """Where the next header like the first's begins, or the end."""
    while (found := data.find(model_id, at + HEADER_BYTES - MODEL_ID_BYTES)) >= 0:
        begin = found - HEADER_BYTES + MODEL_ID_BYTES
        if data[begin : begin + 2] == kind:
            return begin
        at = begin + 1
    return len(data)
