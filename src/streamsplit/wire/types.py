"""Frame types, flags, priorities, directions and size limits of the wire protocol, version 1."""

from __future__ import annotations

from enum import IntEnum, IntFlag

PROTOCOL_VERSION = 1
MAX_FRAME_BYTES = 1 << 20  # payload bytes of one frame, header excluded
MAX_CHUNK_BYTES = 32 << 10  # payload bytes of one WEIGHTS chunk: bulk never delays audio by more than one chunk
MAX_GMM_BYTES = 36 << 10  # payload bytes of one GMM (64 components x 128 dimensions take 32,896 and the field names)
MAX_POLICY_FILE_BYTES = 36 << 10  # payload bytes of one POLICY_FILE: a policy of some 15,000 numbers in fp16
MAX_RESULT_BYTES = 16 << 10
MAX_DIALOGUE_BYTES = 16 << 10
MAX_MESSAGE_BYTES = 4 << 10  # payload bytes of every other control message
MAX_SEQUENCE = 0xFFFF_FFFF  # a device that gets here (68 years at two windows a second) starts a new epoch


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
    PROTOTYPES = 40
    POLICY_FILE = 41
    DIALOGUE = 48


class FrameFlag(IntFlag):
    """The byte at offset 2 of the frame header."""

    NONE = 0
    NUMBERED = 1  # counts in the sequence, is acknowledged and replayed
    FINAL = 2  # last chunk of a transfer, last frame of an utterance
    REPLAYED = 4  # may have been sent before (after a reconnect)


class Priority(IntEnum):
    """Order of sending; lower goes first."""

    CONTROL = 0
    DIALOGUE = 1
    RESULT = 2
    MEDIA = 3
    BULK = 4


MEDIA_TYPES = frozenset(
    {
        FrameType.AUDIO,
        FrameType.FEATURES,
        FrameType.EMBEDDING,
        FrameType.GRADIENT,
        FrameType.GRAD_BACK,
        FrameType.WEIGHTS,
        FrameType.DIALOGUE,
    }
)

WINDOW_TYPES = frozenset({FrameType.AUDIO, FrameType.FEATURES, FrameType.EMBEDDING, FrameType.GRADIENT})

NUMBERED_TYPES = WINDOW_TYPES | {FrameType.RESULT}  # always carry NUMBERED; no other type ever does

COUNTING_TYPES = frozenset({FrameType.DIALOGUE})
"""Not numbered, yet the sequence field is theirs: a counter that shows the receiver what is missing."""

FINAL_TYPES = frozenset({FrameType.WEIGHTS, FrameType.DIALOGUE})
"""May carry FINAL: last chunk of a transfer, last frame of an utterance."""

LATEST_WINS_TYPES = frozenset(
    {
        FrameType.ACK,
        FrameType.STATS,
        FrameType.GMM,
        FrameType.PROTOTYPES,
        FrameType.POLICY_FILE,
        FrameType.THROTTLE,
    }
)
"""An unsent older frame of the same type is replaced instead of queued behind."""

OPTIONAL_TYPES = frozenset({FrameType.DIALOGUE, FrameType.GRAD_BACK})
"""A receiver without a use for these answers ERROR 'unsupported' (not fatal) and drops the frame."""

_BOTH_WAYS = (
    frozenset(
        {
            FrameType.ACK,
            FrameType.PING,
            FrameType.ERROR,
            FrameType.BYE,
            FrameType.WEIGHTS_REQ,
            FrameType.WEIGHTS,
            FrameType.REVISION,
        }
    )
    | OPTIONAL_TYPES
)

UPLINK_TYPES = _BOTH_WAYS | WINDOW_TYPES | {FrameType.HELLO, FrameType.STATS}

DOWNLINK_TYPES = _BOTH_WAYS | {
    FrameType.WELCOME,
    FrameType.RESULT,
    FrameType.GMM,
    FrameType.PROTOTYPES,
    FrameType.POLICY,
    FrameType.POLICY_FILE,
    FrameType.THROTTLE,
}

PRIORITY: dict[FrameType, Priority] = {
    **dict.fromkeys(FrameType, Priority.CONTROL),
    FrameType.DIALOGUE: Priority.DIALOGUE,
    FrameType.RESULT: Priority.RESULT,
    FrameType.GRAD_BACK: Priority.RESULT,
    FrameType.AUDIO: Priority.MEDIA,
    FrameType.FEATURES: Priority.MEDIA,
    FrameType.EMBEDDING: Priority.MEDIA,
    FrameType.GRADIENT: Priority.MEDIA,
    FrameType.GMM: Priority.BULK,
    FrameType.PROTOTYPES: Priority.BULK,
    FrameType.POLICY_FILE: Priority.BULK,
    FrameType.WEIGHTS: Priority.BULK,
}

PAYLOAD_LIMITS: dict[FrameType, int] = {
    **dict.fromkeys(FrameType, MAX_MESSAGE_BYTES),
    **dict.fromkeys(WINDOW_TYPES, MAX_FRAME_BYTES),
    FrameType.GRAD_BACK: MAX_FRAME_BYTES,
    FrameType.RESULT: MAX_RESULT_BYTES,
    FrameType.DIALOGUE: MAX_DIALOGUE_BYTES,
    FrameType.GMM: MAX_GMM_BYTES,
    FrameType.PROTOTYPES: MAX_GMM_BYTES,
    FrameType.POLICY_FILE: MAX_POLICY_FILE_BYTES,
    FrameType.WEIGHTS: MAX_CHUNK_BYTES,
}
