"""Every error code that may travel in an ERROR message, and what the one who gets it should do."""

from __future__ import annotations

from typing import NamedTuple


class ErrorCode(NamedTuple):
    """What a code means."""

    meaning: str
    fatal: bool  # the session is over
    retry: bool  # connecting again, unchanged, may succeed


ERROR_CODES: dict[str, ErrorCode] = {
    # the frame layer
    "bad_version": ErrorCode("the header or HELLO names another protocol version; the text names both", True, False),
    "unknown_type": ErrorCode("the header's type is none of the known ones", True, False),
    "bad_flags": ErrorCode("unknown flag bits, or a flag that this type cannot have or must have", True, False),
    "bad_reserved": ErrorCode("the header's reserved byte is not 0", True, False),
    "bad_sequence": ErrorCode("a numbered frame without a sequence, or a sequence where there is none", True, False),
    "frame_too_large": ErrorCode("the payload length exceeds the limit of the type or the session", True, False),
    "truncated": ErrorCode("one WebSocket message held less than one frame", True, True),
    "trailing_bytes": ErrorCode("one WebSocket message held more than one frame", True, False),
    # payloads
    "bad_message": ErrorCode("a control payload is not msgpack, or has an unknown field or a wild value", True, False),
    "bad_media": ErrorCode("a media header is short, or names an unknown encoding or resolution", False, True),
    # the session
    "unexpected": ErrorCode("this frame has no place in the present state or in this direction", True, True),
    "sequence_gap": ErrorCode("an uplink sequence was left out", True, True),
    "bad_ack": ErrorCode("an acknowledgement of something never sent", True, True),
    "flow_control": ErrorCode("more windows in flight than the server granted", True, True),
    "bad_epoch": ErrorCode("the server holds sequences that the device never assigned: new epoch", True, False),
    "bad_welcome": ErrorCode("WELCOME does not fit the HELLO that it answers", True, True),
    "slow_peer": ErrorCode("the peer reads so slowly that control frames pile up", True, True),
    "timeout": ErrorCode("nothing was heard for too long", True, True),
    "resume_expired": ErrorCode("the connection did not come back in time; the session is forgotten", True, True),
    "unsupported": ErrorCode("the frame is valid but this end does not implement it; it was dropped", False, False),
    # what the server decides about a device
    "bad_token": ErrorCode("device id and token do not match", True, False),
    "bad_settings": ErrorCode("sample rate, mel bands or window of the device differ from the server's", True, False),
    "unknown_revision": ErrorCode("features of an encoder revision that the server does not hold", False, False),
    "bad_window": ErrorCode("a window was recorded as rejected: NaN, wrong shape, impossible cut", False, False),
    "nan_features": ErrorCode("a window's features or audio are not all finite", False, False),
    "missing_overlap": ErrorCode("a window builds on frames of the previous one, which is not there", False, True),
    "bad_gmm": ErrorCode("mixture statistics do not decode; the old ones stay", False, False),
    "bad_policy": ErrorCode(
        "a pushed policy was refused: key, signature, version, size, table; the old one stays", False, False
    ),
    "bad_dialogue": ErrorCode(
        "a piece of a question does not decode or leaves a hole; the question is over", False, False
    ),
    "no_answer": ErrorCode("whoever answers failed or was too slow; the question is over", False, False),
    "bad_transfer": ErrorCode("a weight transfer was refused: wrong offset, size or hash", False, True),
    "server_full": ErrorCode("no room for another device", True, True),
    "replaced": ErrorCode("another connection with the same device id took over", True, False),
    "shutting_down": ErrorCode("the server is going away", True, True),
    "internal": ErrorCode("the peer failed through no fault of this end", True, True),
}


def may_retry(code: str) -> bool:
    """Whether connecting again unchanged may succeed; True for a code that this version does not know."""
    known = ERROR_CODES.get(code)
    return known is None or known.retry
