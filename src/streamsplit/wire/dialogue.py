"""What DIALOGUE holds: coded sound or text of one utterance, with the place of its first frame.

Layout, little-endian: u32 utterance, u32 index of the first frame, u8 kind, u8 duration of a frame in units of 0.5 ms,
u8 number of frames, u8 flags, u16 milliseconds that the server held what this answers, u16 0; then each frame behind
its length (u16). Kinds: 0 PCM (16-bit little-endian), 1 Opus, 2 text (UTF-8, no duration), 3 stop: the sender wants no
more of the utterance. Flag 1, LIVE: the sound is being made right now, so that what has come late is better left out
than played late; other flags are 0. The frame's flag FINAL ends the utterance; its first index is then the number of
frames in all. What is LIVE may be lost where the transport can lose (`may_be_lost`), but for an utterance's two ends.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from streamsplit.errors import ProtocolError
from streamsplit.wire.frame import HEADER_BYTES
from streamsplit.wire.types import MAX_DIALOGUE_BYTES, FrameFlag, FrameType

_LAYOUT = struct.Struct("<IIBBBBHH")
DIALOGUE_HEADER_BYTES = _LAYOUT.size
MOST_FRAMES = 24  # of one message: 60 ms of frames of 2.5 ms
LONGEST_TEXT = 4_096  # bytes
_U16 = struct.Struct("<H")
_LIVE = 1
_DIALOGUE, _FINAL = int(FrameType.DIALOGUE), int(FrameFlag.FINAL)
_FIRST_AT, _FLAGS_AT = HEADER_BYTES + 4, HEADER_BYTES + 11


class Kind(IntEnum):
    """What the frames are."""

    PCM16 = 0
    OPUS = 1
    TEXT = 2
    STOP = 3


class Utterance(NamedTuple):
    """One DIALOGUE payload."""

    utterance: int  # u32, chosen by the device, another one for each; the answer carries its question's
    first: int  # u32, index of the first frame, from 0
    kind: Kind
    frame_ms: float  # duration of a frame; 0 for text and stop
    frames: tuple[bytes, ...]
    held_ms: int = 0  # u16, server: from the arrival of what this answers to its departure
    live: bool = False  # being made right now


def pack_utterance(piece: Utterance) -> bytes:
    """The payload; raises ProtocolError where it does not fit."""
    if len(piece.frames) > MOST_FRAMES or any(len(frame) > 0xFFFF for frame in piece.frames):
        raise ProtocolError("bad_media", f"got {len(piece.frames)} frames, expected at most {MOST_FRAMES}")
    head = _LAYOUT.pack(
        piece.utterance, piece.first, piece.kind, round(2 * piece.frame_ms), len(piece.frames), int(piece.live),
        min(max(piece.held_ms, 0), 0xFFFF), 0,
    )  # fmt: skip
    data = head + b"".join(_U16.pack(len(frame)) + frame for frame in piece.frames)
    if len(data) > MAX_DIALOGUE_BYTES:
        raise ProtocolError("bad_media", f"got {len(data)} bytes of dialogue, expected at most {MAX_DIALOGUE_BYTES}")
    return data


def unpack_utterance(data: bytes | memoryview) -> Utterance:
    """The piece in a payload; raises ProtocolError('bad_media') on anything that `pack_utterance` does not write."""
    view = memoryview(data)
    if len(view) < DIALOGUE_HEADER_BYTES:
        raise ProtocolError("bad_media", f"got {len(view)} bytes, expected at least {DIALOGUE_HEADER_BYTES}")
    utterance, first, kind, halves, count, flags, held_ms, more = _LAYOUT.unpack_from(view)
    if kind not in Kind._value2member_map_ or flags > _LIVE or more or count > MOST_FRAMES:
        raise ProtocolError("bad_media", f"got kind {kind} with {count} frames, expected kinds 0..3, at most 24 frames")
    if (halves == 0) != (kind in (Kind.TEXT, Kind.STOP)) or (kind == Kind.STOP and count):
        raise ProtocolError("bad_media", f"got frames of {halves / 2} ms in a message of kind {Kind(kind).name}")
    frames = []
    at = DIALOGUE_HEADER_BYTES
    for _ in range(count):
        if len(view) < at + _U16.size:
            raise ProtocolError("bad_media", "the dialogue ends in a frame's length")
        (length,) = _U16.unpack_from(view, at)
        at += _U16.size
        if len(view) < at + length:
            raise ProtocolError("bad_media", f"got {len(view) - at} bytes of a frame, expected {length}")
        frames.append(bytes(view[at : at + length]))
        at += length
    if at != len(view):
        raise ProtocolError("bad_media", f"got {len(view) - at} bytes behind the dialogue's last frame")
    return Utterance(utterance, first, Kind(kind), halves / 2, tuple(frames), held_ms, bool(flags & _LIVE))


def may_be_lost(data: bytes | bytearray | memoryview) -> bool:
    """Whether an encoded frame may travel where messages are lost and overtake each other: live sound, but for an
    utterance's beginning and its end."""
    return (
        len(data) >= HEADER_BYTES + DIALOGUE_HEADER_BYTES
        and data[1] == _DIALOGUE
        and not data[2] & _FINAL
        and bool(data[_FLAGS_AT] & _LIVE)
        and any(data[_FIRST_AT : _FIRST_AT + 4])
    )


def text_of(piece: Utterance) -> str:
    """The text of a piece of text; raises ProtocolError('bad_media') where it is none."""
    data = b"".join(piece.frames)
    if len(data) > LONGEST_TEXT:
        raise ProtocolError("bad_media", f"got {len(data)} bytes of text, expected at most {LONGEST_TEXT}")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ProtocolError("bad_media", f"got text that is not UTF-8 ({error})") from None
