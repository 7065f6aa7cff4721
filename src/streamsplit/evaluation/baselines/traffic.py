"""Bytes of a window on the wire: the payload is really packed, and framed as a device frames it."""

from __future__ import annotations

import math

from streamsplit.audio.windows import Window
from streamsplit.edge.payload import Packed, pack_input
from streamsplit.evaluation.corpus import Part
from streamsplit.weights.delta import pack_full
from streamsplit.weights.revision import Weights
from streamsplit.wire.frame import HEADER_BYTES, Frame, encode_frame
from streamsplit.wire.media import Encoding, MediaFlag, MediaHeader, pack_media
from streamsplit.wire.types import MAX_CHUNK_BYTES, FrameFlag, FrameType


def media_frame(window: Window, packed: Packed, block: int, encoding: Encoding, uncertainty: float = math.nan) -> bytes:
    """The frame that carries a window's payload."""
    flags = MediaFlag.STARTS if window.new_frames == window.features.shape[1] else MediaFlag.NONE
    header = MediaHeader(
        window.index, 0, block, encoding, window.resolution, flags, uncertainty, packed.new_frames, 0.0, 0
    )
    return encode_frame(Frame(packed.frame_type, FrameFlag.NUMBERED, 1, 0, pack_media(header, packed.payload)), 1 << 20)


def framed_bytes(payload: bytes, kind: FrameType) -> int:
    """Size of a frame that carries `payload` without a media header."""
    flags = FrameFlag.NUMBERED if kind in (FrameType.GRADIENT, FrameType.GRAD_BACK) else FrameFlag.NONE
    return Frame(kind, flags, 1, 0, payload).wire_bytes


def weights_bytes(weights: Weights) -> int:
    """Size of all weights in full precision, in chunks as they travel."""
    return transfer_bytes(len(pack_full(weights, "fp32")[0]))


def transfer_bytes(size: int) -> int:
    """Size of a bulk transfer of `size` bytes with the header of every chunk."""
    return size + HEADER_BYTES * math.ceil(size / MAX_CHUNK_BYTES)


class InputTraffic:
    """Bytes of each window of a part at block 0 in one encoding, packed when first asked for."""

    def __init__(self, part: Part, encoding: Encoding) -> None:
        self._part, self._encoding = part, encoding
        self._known: dict[tuple[int, int], int] = {}

    def bytes_of(self, row: int, *, follows: bool = True) -> int:
        """Of window `row`; only its new frames where the window before it went up (`follows`)."""
        window = self._part.window(row)
        new_frames = window.new_frames if follows else window.features.shape[1]
        key = (row, new_frames)
        if key not in self._known:
            packed = pack_input(window, self._encoding, new_frames)
            self._known[key] = len(media_frame(window, packed, 0, self._encoding))
        return self._known[key]
