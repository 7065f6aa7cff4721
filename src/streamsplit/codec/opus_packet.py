"""What an Opus packet says of itself in its first bytes, without being decoded (RFC 6716)."""

from __future__ import annotations

_CELT_FROM = 16  # configurations from here on have no linear-prediction layer, so no copy of the past
_HYBRID_FROM = 12


def carries_copy(packet: bytes) -> bool:
    """Whether forward error correction put a coarse copy of the sound before it into the packet (LBRR); of a packet
    longer than 20 ms, of some of that sound. False for what is no packet.

    The flags are the first symbols of the first frame, of equal probability: bits that can be read as they are
    (sections 4.2.3 and 4.2.4): for each channel one of voice activity for every 20 ms, then the copy's.
    """
    first = _first_frame_byte(packet)
    configuration = packet[0] >> 3 if packet else _CELT_FROM
    if first is None or configuration >= _CELT_FROM:
        return False
    pieces = 1 if configuration >= _HYBRID_FROM else max(1, configuration & 3)  # of 10, 20, 40, 60 ms: 1, 1, 2, 3
    copied = bool(first >> (7 - pieces) & 1)
    stereo = bool(packet[0] & 4)
    return copied or (stereo and bool(first >> (6 - 2 * pieces) & 1))


def _first_frame_byte(packet: bytes) -> int | None:
    """The first byte of the first frame; None where that is empty, or there is none (section 3.2)."""
    if not packet:
        return None
    code, at, size = packet[0] & 3, 1, len(packet) - 1
    if code == 1:  # two frames of the same size
        size = size // 2 if size % 2 == 0 else 0
    elif code == 2:  # two frames
        size, at = _length(packet, at)
    elif code == 3:
        if len(packet) < 2:
            return None
        variable, padded, count = packet[1] & 0x80, packet[1] & 0x40, packet[1] & 0x3F
        at, padding = 2, 0
        while padded:
            if at >= len(packet):
                return None
            more = packet[at]
            at += 1
            padding += min(more, 254)
            padded = more == 255
        size, behind = -1, 0
        for _ in range(count - 1 if variable else 0):
            length, at = _length(packet, at)
            size = length if size < 0 else size
            behind += length
        left = len(packet) - at - padding - behind
        if count == 0 or left < 0 or (not variable and left % count):
            return None
        if size < 0:
            size = left if variable else left // count
    return packet[at] if 0 < size <= len(packet) - at else None


def _length(packet: bytes, at: int) -> tuple[int, int]:
    """A frame's length and the place behind it; longer than any packet where it is cut off (section 3.2.1)."""
    if at >= len(packet):
        return len(packet), at
    if packet[at] < 252:
        return packet[at], at + 1
    if at + 1 >= len(packet):
        return len(packet), at + 1
    return packet[at] + 4 * packet[at + 1], at + 2
