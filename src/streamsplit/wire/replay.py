"""The server's copy of numbered downlink frames until the device has acknowledged them, bounded in count and bytes."""

from __future__ import annotations

from collections import deque

from streamsplit.wire.frame import HEADER_BYTES, Frame
from streamsplit.wire.types import FrameFlag, FrameType


class ReplayWindow:
    """Frames acked+1 .. last, of which those from `next unsent` on still wait for the transport."""

    def __init__(self, max_frames: int, max_bytes: int) -> None:
        self.max_frames = max_frames
        self.max_bytes = max_bytes
        self.acked_through = 0
        self.last = 0  # highest sequence given out
        self.sent_through = 0  # in this connection
        self.ever_sent = 0  # in any connection
        self.bytes = 0
        self._frames: deque[Frame] = deque()

    def __len__(self) -> int:
        return len(self._frames)

    def append(self, frame_type: FrameType, timestamp_ms: int, payload: bytes) -> tuple[int, int] | None:
        """Numbers and keeps a frame; returns the first and last sequence that were dropped to make room."""
        self.last += 1
        frame = Frame(frame_type, FrameFlag.NUMBERED, self.last, timestamp_ms, payload)
        self._frames.append(frame)
        self.bytes += frame.wire_bytes
        dropped: tuple[int, int] | None = None
        while len(self._frames) > 1 and (len(self._frames) > self.max_frames or self.bytes > self.max_bytes):
            oldest = self._pop()
            dropped = (dropped[0] if dropped else oldest, oldest)
        return dropped

    def acknowledge(self, through: int) -> None:
        """Forgets frames that the peer has processed."""
        self.acked_through = max(self.acked_through, through)
        while self._frames and self._frames[0].sequence <= self.acked_through:
            self._pop()

    def rewind(self, through: int) -> None:
        """Starts over after a reconnect: the peer has processed everything up to `through`."""
        self.acknowledge(through)
        self.sent_through = through

    def covers(self, through: int) -> bool:
        """Whether every frame after `through` is still here."""
        first = self._frames[0].sequence if self._frames else self.last + 1
        return first <= through + 1

    def peek_bytes(self) -> int:
        """Wire size of the next unsent frame; 0 if there is none."""
        at = self._next_index()
        return HEADER_BYTES + len(self._frames[at].payload) if at < len(self._frames) else 0

    def take(self) -> Frame | None:
        """The next unsent frame, flagged REPLAYED if it was sent before."""
        at = self._next_index()
        if at >= len(self._frames):
            return None
        frame = self._frames[at]
        self.sent_through = frame.sequence
        if frame.sequence <= self.ever_sent:
            return frame._replace(flags=frame.flags | FrameFlag.REPLAYED)
        self.ever_sent = frame.sequence
        return frame

    def _next_index(self) -> int:
        return max(0, self.sent_through + 1 - self._frames[0].sequence) if self._frames else 0

    def _pop(self) -> int:
        frame = self._frames.popleft()
        self.bytes -= frame.wire_bytes
        return frame.sequence
