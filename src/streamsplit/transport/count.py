"""How many bytes a connection takes on the link."""

from __future__ import annotations

import math

SEGMENT_BYTES = 1448  # TCP payload of an Ethernet-sized packet, with timestamps
PACKET_HEADER_BYTES = 52  # IPv4 20 + TCP 20 + timestamps 12
UDP_HEADER_BYTES = 28  # IPv4 20 + UDP 8


class ByteCount:
    """Bytes on the TCP socket over all connections, HTTP handshake and WebSocket headers included.

    With TLS it is what goes into it. `packet_bytes` adds an estimate of TCP/IP headers: full segments, and one pure
    acknowledgement for every second segment of the other direction.
    """

    def __init__(self) -> None:
        self.up = 0
        self.down = 0
        self._up_segments = 0
        self._down_segments = 0

    def sent(self, size: int) -> None:
        """The socket was handed `size` bytes."""
        self.up += size
        self._up_segments += math.ceil(size / SEGMENT_BYTES)

    def received(self, size: int) -> None:
        """The socket gave `size` bytes."""
        self.down += size
        self._down_segments += math.ceil(size / SEGMENT_BYTES)

    @property
    def packet_bytes(self) -> tuple[int, int]:
        """Estimated (up, down) on the link with TCP/IP headers."""
        return (
            self.up + PACKET_HEADER_BYTES * (self._up_segments + self._down_segments // 2),
            self.down + PACKET_HEADER_BYTES * (self._down_segments + self._up_segments // 2),
        )


class UdpByteCount(ByteCount):
    """Bytes in UDP packets over all connections: TLS, acknowledgements and repetitions of QUIC included."""

    @property
    def packet_bytes(self) -> tuple[int, int]:
        """(up, down) on the link with UDP/IP headers: every call of `sent` and `received` was one packet."""
        return self.up + UDP_HEADER_BYTES * self._up_segments, self.down + UDP_HEADER_BYTES * self._down_segments


def websocket_bytes(payload_bytes: int, *, masked: bool) -> int:
    """Bytes of one WebSocket message on the TCP stream (RFC 6455, 5.2): clients mask, servers do not."""
    length = 0 if payload_bytes < 126 else 2 if payload_bytes < 65536 else 8
    return 2 + length + (4 if masked else 0) + payload_bytes
