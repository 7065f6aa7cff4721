"""Frames: a 16-byte header and a payload, little-endian, checked before anything is allocated.

    offset  size  field           |  offset  size  field
    0       1     version (1)     |  4       4     sequence
    1       1     type            |  8       4     timestamp_ms (mod 2^32)
    2       1     flags           |  12      4     payload_length
    3       1     reserved (0)    |  16      ...   payload

One WebSocket binary message is one frame (`decode_frame`); `FrameParser` takes the same bytes in pieces of any size.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from streamsplit.errors import ProtocolError
from streamsplit.wire.types import (
    COUNTING_TYPES,
    FINAL_TYPES,
    MAX_FRAME_BYTES,
    NUMBERED_TYPES,
    PAYLOAD_LIMITS,
    PROTOCOL_VERSION,
    FrameFlag,
    FrameType,
)

_HEADER = struct.Struct("<BBBBIII")
HEADER_BYTES = _HEADER.size
_KNOWN_FLAGS = int(FrameFlag.NUMBERED | FrameFlag.FINAL | FrameFlag.REPLAYED)
_NUMBERED, _FINAL, _REPLAYED = int(FrameFlag.NUMBERED), int(FrameFlag.FINAL), int(FrameFlag.REPLAYED)
_TYPES: dict[int, FrameType] = {int(kind): kind for kind in FrameType}
# type -> flags that it must carry, flags that it may, whether its sequence may be 0, may be more, its largest payload:
# one look-up a frame (masks on IntFlag cost more than all the rest of the check)
_RULES: dict[int, tuple[int, int, bool, bool, int]] = {
    int(kind): (
        _NUMBERED if kind in NUMBERED_TYPES else 0,
        (_NUMBERED | _REPLAYED if kind in NUMBERED_TYPES else 0) | (_FINAL if kind in FINAL_TYPES else 0),
        kind not in NUMBERED_TYPES,
        kind in NUMBERED_TYPES or kind in COUNTING_TYPES,
        PAYLOAD_LIMITS[kind],
    )
    for kind in FrameType
}
_FLAGS: tuple[FrameFlag, ...] = tuple(FrameFlag(bits) for bits in range(_KNOWN_FLAGS + 1))


class Frame(NamedTuple):
    """One frame; the payload length is implied."""

    type: FrameType
    flags: FrameFlag
    sequence: int  # u32; numbered: 1, 2, ...; DIALOGUE: its own counter; otherwise 0
    timestamp_ms: int  # u32; windows: capture time; otherwise the sender's clock
    payload: bytes

    @property
    def wire_bytes(self) -> int:
        """Size with the header."""
        return HEADER_BYTES + len(self.payload)


class _Header(NamedTuple):
    type: FrameType
    flags: FrameFlag
    sequence: int
    timestamp_ms: int
    length: int


def encode_frame(frame: Frame, max_frame_bytes: int = MAX_FRAME_BYTES) -> bytes:
    """The bytes of a frame; raises ProtocolError with the code that a receiver would answer."""
    check_frame(frame, max_frame_bytes)
    kind, flags, sequence, timestamp_ms, payload = frame
    return _HEADER.pack(PROTOCOL_VERSION, kind, flags, 0, sequence, timestamp_ms, len(payload)) + payload


def check_frame(frame: Frame, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
    """Raises ProtocolError if a receiver would refuse this frame."""
    kind, flags, sequence, timestamp_ms, payload = frame
    if not (0 <= sequence <= 0xFFFF_FFFF and 0 <= timestamp_ms <= 0xFFFF_FFFF):
        raise ProtocolError("bad_sequence", f"got sequence {sequence} at {timestamp_ms} ms, expected unsigned 32 bits")
    _check(int(kind), int(flags), 0, sequence, len(payload), max_frame_bytes)


def decode_frame(data: bytes | bytearray | memoryview, max_frame_bytes: int = MAX_FRAME_BYTES) -> Frame:
    """Exactly one frame, such as one WebSocket message; raises ProtocolError, 'truncated' and 'trailing_bytes' too."""
    if len(data) < HEADER_BYTES:
        raise ProtocolError("truncated", f"got {len(data)} bytes, expected a header of {HEADER_BYTES}")
    header = _parse_header(data, 0, max_frame_bytes)
    got = len(data) - HEADER_BYTES
    if got != header.length:
        code = "truncated" if got < header.length else "trailing_bytes"
        raise ProtocolError(code, f"got {got} payload bytes, expected {header.length} as the header says")
    return Frame(*header[:4], bytes(memoryview(data)[HEADER_BYTES:]))


def numbered_sequence(data: bytes) -> int:
    """The sequence of an encoded frame if it is numbered, else 0: what a link estimator wants to know of sent bytes."""
    return int.from_bytes(data[4:8], "little") if data[2] & _NUMBERED else 0


class FrameParser:
    """Cuts a byte stream into frames; holds at most one incomplete frame and never reserves what was only announced.

    A malformed header breaks the parser for good: frames before it are still returned, then `error` is set and the
    next `feed` raises it.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self.max_frame_bytes = max_frame_bytes
        self.error: ProtocolError | None = None
        self._head = bytearray()
        self._body = bytearray()
        self._header: _Header | None = None

    @property
    def buffered_bytes(self) -> int:
        """Bytes of an incomplete frame held back."""
        return len(self._head) + len(self._body)

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Complete frames, in order; raises ProtocolError if the stream is broken at its very start or was before."""
        frames: list[Frame] = []
        try:
            for frame in self.each(data):
                frames.append(frame)
        except ProtocolError:
            if not frames:
                raise
        return frames

    def each(self, data: bytes | bytearray | memoryview) -> Iterator[Frame]:
        """The same one by one: what a frame changes in `max_frame_bytes` holds from the next one on. Raises
        ProtocolError where the stream breaks, or was broken before."""
        if self.error is not None:
            raise self.error
        with memoryview(data) as view:
            try:
                yield from self._cut(view)
            except ProtocolError as error:
                self.error = error
                self._head.clear()
                self._body.clear()
                raise

    def _cut(self, view: memoryview) -> Iterator[Frame]:
        at, end = 0, len(view)
        while True:
            if self._header is None:
                take = min(HEADER_BYTES - len(self._head), end - at)
                self._head += view[at : at + take]
                at += take
                if len(self._head) < HEADER_BYTES:
                    return
                self._header = _parse_header(self._head, 0, self.max_frame_bytes)
            take = min(self._header.length - len(self._body), end - at)
            if not self._body and take == self._header.length:
                payload = bytes(view[at : at + take])
            else:
                self._body += view[at : at + take]
                if len(self._body) < self._header.length:
                    return
                payload = bytes(self._body)
            at += take
            frame = Frame(*self._header[:4], payload)
            self._header = None
            self._head.clear()
            self._body.clear()
            yield frame


def _parse_header(data: bytes | bytearray | memoryview, offset: int, max_frame_bytes: int) -> _Header:
    version, kind, flags, reserved, sequence, timestamp_ms, length = _HEADER.unpack_from(data, offset)
    if version != PROTOCOL_VERSION:
        raise ProtocolError("bad_version", f"got protocol version {version}, expected {PROTOCOL_VERSION}")
    _check(kind, flags, reserved, sequence, length, max_frame_bytes)
    return _Header(_TYPES[kind], _FLAGS[flags], sequence, timestamp_ms, length)


def _check(kind: int, flags: int, reserved: int, sequence: int, length: int, max_frame_bytes: int) -> None:
    rules = _RULES.get(kind)
    if rules is not None and not reserved and length <= max_frame_bytes:
        must, may, zero, more, limit = rules
        if flags & must == must and not flags & ~may and (more if sequence else zero) and length <= limit:
            return
    _refuse(kind, flags, reserved, sequence, length, max_frame_bytes)


def _refuse(kind: int, flags: int, reserved: int, sequence: int, length: int, max_frame_bytes: int) -> None:
    """Raises ProtocolError with what is wrong."""
    frame_type = _TYPES.get(kind)
    if frame_type is None:
        raise ProtocolError("unknown_type", f"got frame type {kind}, expected one of protocol {PROTOCOL_VERSION}")
    if flags & ~_KNOWN_FLAGS:
        raise ProtocolError("bad_flags", f"{frame_type.name}: got flags {flags:#x}, expected within {_KNOWN_FLAGS:#x}")
    if reserved:
        raise ProtocolError("bad_reserved", f"{frame_type.name}: got reserved byte {reserved}, expected 0")
    numbered = frame_type in NUMBERED_TYPES
    if numbered is not bool(flags & _NUMBERED):
        raise ProtocolError("bad_flags", f"{frame_type.name}: NUMBERED {'missing' if numbered else 'not allowed'}")
    if flags & _REPLAYED and not numbered:
        raise ProtocolError("bad_flags", f"{frame_type.name}: REPLAYED is for numbered frames")
    if flags & _FINAL and frame_type not in FINAL_TYPES:
        raise ProtocolError("bad_flags", f"{frame_type.name}: FINAL is for WEIGHTS and DIALOGUE")
    if numbered and sequence == 0:
        raise ProtocolError("bad_sequence", f"{frame_type.name}: got sequence 0, expected at least 1")
    if sequence and not numbered and frame_type not in COUNTING_TYPES:
        raise ProtocolError("bad_sequence", f"{frame_type.name}: got sequence {sequence}, expected 0")
    limit = min(PAYLOAD_LIMITS[frame_type], max_frame_bytes)
    if length > limit:
        raise ProtocolError("frame_too_large", f"{frame_type.name}: got {length} payload bytes, allowed {limit}")
