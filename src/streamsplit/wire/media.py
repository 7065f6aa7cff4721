"""What media payloads hold: the encodings, and the 20-byte header in front of AUDIO, FEATURES and EMBEDDING bytes."""

from __future__ import annotations

import math
import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

from streamsplit.errors import ProtocolError


class Encoding(IntEnum):
    """How a window is written where it crosses from device to server; the value is the byte on the wire."""

    NONE = 0
    PCM16 = 1
    OPUS24 = 2
    TINYSTREAM = 3  # codes of the neural codec: a packet of codec/tinystream/bitstream.py
    LOGMEL_FP16 = 8
    LOGMEL_INT8 = 9
    FP32 = 16
    FP16 = 17
    INT8 = 18
    BOTTLENECK_INT8 = 19  # the activation narrowed to a quarter of its channels by the encoder's own bottleneck
    EMBEDDING_FP16 = 32
    EMBEDDING_INT8 = 33
    EXIT_FP16 = 34  # the early exit's embedding after block k, in place of the activation

    @property
    def label(self) -> str:
        """The name used in settings, tables and reports, such as 'logmel-int8'."""
        return self.name.lower().replace("_", "-")


class Resolution(IntEnum):
    """Feature resolution of a window: 128 mel bands every 10 ms, or 64 every 20 ms (v1 App. B)."""

    FULL = 0
    REDUCED = 1


class MediaFlag(IntFlag):
    """Marks of a window in the media header."""

    NONE = 0
    STARTS = 1  # the sound is not continuous with that of the window sent before: a new clip, a gap, a restart


class MediaHeader(NamedTuple):
    """Header of one window's payload, 20 bytes little-endian."""

    window: int  # u32, window index on the device; window w covers frames [w*stride, w*stride + length)
    revision: int  # u32, first four bytes (big-endian) of the encoder revision's SHA-256; 0 where no encoder was used
    block: int  # u8, number of encoder blocks already computed
    encoding: int  # u8, see the table of encodings
    resolution: int  # u8, 0 full (128 bands, 10 ms), 1 reduced (64 bands, 20 ms)
    flags: int  # u8, bit 0 STARTS: the first window sent of a new stretch of sound; other bits are refused
    uncertainty: float  # f16, nats; NaN where the device does not know
    new_frames: int  # u16, k = 0 only: the payload holds the window's last `new_frames` full-rate (10 ms) frames
    edge_ms: float  # f16, milliseconds of device compute spent on this window
    skipped: int  # u16, windows that the device decided not to send since the last one it sent


_LAYOUT = struct.Struct("<IIBBBBeHeH")
MEDIA_HEADER_BYTES = _LAYOUT.size
_FP16_MAX = 65504.0


def pack_media(header: MediaHeader, payload: bytes | memoryview) -> bytes:
    """Header and payload as one media payload; numbers that do not fit their field are held at its largest value."""
    fitting = header._replace(
        window=header.window & 0xFFFF_FFFF,
        uncertainty=_fp16(header.uncertainty),
        edge_ms=_fp16(header.edge_ms),
        skipped=min(header.skipped, 0xFFFF),
    )
    return _LAYOUT.pack(*fitting) + bytes(payload)


def unpack_media(data: bytes | memoryview) -> tuple[MediaHeader, memoryview]:
    """Splits a media payload; raises ProtocolError('bad_media') on short data, an unknown encoding or set flags."""
    view = memoryview(data)
    if len(view) < MEDIA_HEADER_BYTES:
        raise ProtocolError("bad_media", f"got {len(view)} bytes, expected at least {MEDIA_HEADER_BYTES}")
    header = MediaHeader(*_LAYOUT.unpack_from(view))
    if header.encoding not in Encoding._value2member_map_:
        raise ProtocolError("bad_media", f"got encoding {header.encoding}, expected one of the known encodings")
    if header.resolution not in Resolution._value2member_map_:
        raise ProtocolError("bad_media", f"got resolution {header.resolution}, expected 0 or 1")
    if header.flags & ~int(MediaFlag.STARTS):
        raise ProtocolError("bad_media", f"got media flags {header.flags}, expected 0 or {int(MediaFlag.STARTS)}")
    return header, view[MEDIA_HEADER_BYTES:]


def _fp16(value: float) -> float:
    """Held within what a half can carry; NaN stays."""
    return value if math.isnan(value) else max(-_FP16_MAX, min(_FP16_MAX, value))
