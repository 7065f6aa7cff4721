"""Frame types, flags and priorities of the wire protocol, version 1."""

from __future__ import annotations

from enum import IntEnum, IntFlag

PROTOCOL_VERSION = 1
MAX_FRAME_BYTES = 1 << 20  # payload bytes of one frame, header excluded
MAX_CHUNK_BYTES = 32 << 10  # payload bytes of one WEIGHTS chunk: bulk never delays audio by more than one chunk


class FrameType(IntEnum):
    """The byte at offset 1 of the frame header."""

    HELLO = 1
    WELCOME = 2
    ACK = 3
    PING = 4
    ERROR = 5
    BYE = 6
    AUDIO = 16
    FEATURES = 17
    EMBEDDING = 18
    GRADIENT = 19
    STATS = 20
    RESULT = 32
    GRAD_BACK = 33
    GMM = 34
    POLICY = 35
    WEIGHTS_REQ = 36
    WEIGHTS = 37
    REVISION = 38
    THROTTLE = 39
    DIALOGUE = 48


class FrameFlag(IntFlag):
    """The byte at offset 2 of the frame header."""

    NONE = 0
    NUMBERED = 1  # counts in the sequence, is acknowledged and replayed
    FINAL = 2  # last chunk of a transfer
    REPLAYED = 4  # sent again after a reconnect


class Priority(IntEnum):
    """Order of sending; lower goes first."""

    CONTROL = 0
    DIALOGUE = 1
    RESULT = 2
    MEDIA = 3
    BULK = 4


MEDIA_TYPES = frozenset({
    FrameType.AUDIO, FrameType.FEATURES, FrameType.EMBEDDING, FrameType.GRADIENT,
    FrameType.GRAD_BACK, FrameType.WEIGHTS, FrameType.DIALOGUE,
})

PRIORITY: dict[FrameType, Priority] = {
    **{kind: Priority.CONTROL for kind in FrameType},
    FrameType.DIALOGUE: Priority.DIALOGUE,
    FrameType.RESULT: Priority.RESULT,
    FrameType.GRAD_BACK: Priority.RESULT,
    FrameType.AUDIO: Priority.MEDIA,
    FrameType.FEATURES: Priority.MEDIA,
    FrameType.EMBEDDING: Priority.MEDIA,
    FrameType.GRADIENT: Priority.MEDIA,
    FrameType.GMM: Priority.BULK,
    FrameType.WEIGHTS: Priority.BULK,
}
