"""The server's copy of numbered downlink frames until the device has acknowledged them, bounded in count and bytes."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from streamsplit.wire.frame import HEADER_BYTES, Frame
from streamsplit.wire.types import FrameFlag, FrameType


class Dropped(NamedTuple):
    """A run of frames that fell out unacknowledged."""

    first: int  # downlink sequences
    last: int
    first_answer: int  # lowest and highest uplink sequence that they answered
    last_answer: int


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
        self._answers: deque[int] = deque()  # the uplink sequence that each frame answers

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def oldest_answer(self) -> int:
        """The lowest uplink sequence that a frame here answers; 0 if none is here."""
        return min(self._answers, default=0)

    def append(self, frame_type: FrameType, timestamp_ms: int, payload: bytes, answers: int) -> Dropped | None:
        """Numbers and keeps a frame that answers an uplink sequence; returns what was dropped to make room."""
        self.last += 1
        frame = Frame(frame_type, FrameFlag.NUMBERED, self.last, timestamp_ms, payload)
        self._frames.append(frame)
        self._answers.append(answers)
        self.bytes += frame.wire_bytes
        dropped: list[tuple[int, int]] = []
        while len(self._frames) > 1 and (len(self._frames) > self.max_frames or self.bytes > self.max_bytes):
            dropped.append(self._pop())
        if not dropped:
            return None
        lost = [answer for _, answer in dropped]
        return Dropped(dropped[0][0], dropped[-1][0], min(lost), max(lost))

    def acknowledge(self, through: int) -> None:
        """Forgets frames that the peer has processed."""
        self.acked_through = max(self.acked_through, through)
        while self._frames and self._frames[0].sequence <= self.acked_through:
            self._pop()

    def rewind(self, through: int) -> None:
        """Starts over after a reconnect: the peer has processed everything up to `through`."""
        self.acknowledge(through)
        self.sent_through = through

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

    def _pop(self) -> tuple[int, int]:
        frame = self._frames.popleft()
        self.bytes -= frame.wire_bytes
        return frame.sequence, self._answers.popleft()
