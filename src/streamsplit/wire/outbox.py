"""What waits to be sent: frames by priority, bounded, handed out a little at a time."""

from __future__ import annotations

from collections import deque

from streamsplit.errors import ProtocolError
from streamsplit.wire.frame import Frame
from streamsplit.wire.types import LATEST_WINS_TYPES, PRIORITY, FrameType, Priority

MAX_CONTROL_FRAMES = 256
MAX_BULK_BYTES = 4 << 20
MAX_OTHER_BYTES = 16 << 20  # media, dialogue: bounded by flow control long before


class Outbox:
    """Frames in order of priority, first in first out within one.

    A newer frame of a latest-wins type takes the place of an unsent older one. Bulk is handed out one frame at a
    time and last, so media never waits behind more than one bulk frame.
    """

    def __init__(self) -> None:
        self._queues: list[deque[Frame]] = [deque() for _ in Priority]  # by priority
        self._bytes = [0] * len(Priority)
        self._frames = 0

    def __len__(self) -> int:
        return self._frames

    def queued_bytes(self, priority: Priority) -> int:
        """Bytes waiting at one priority, headers included."""
        return self._bytes[priority]

    def put(self, frame: Frame) -> bool:
        """Queues a frame. False: no room for more bulk or media now. Raises ProtocolError('slow_peer') when control
        frames pile up, because those cannot be left out."""
        priority = PRIORITY[frame.type]
        queue = self._queues[priority]
        if frame.type in LATEST_WINS_TYPES:
            for at, older in enumerate(queue):
                if older.type is frame.type:
                    self._bytes[priority] += frame.wire_bytes - older.wire_bytes
                    queue[at] = frame
                    return True
        if priority is Priority.CONTROL:
            if len(queue) >= MAX_CONTROL_FRAMES:
                raise ProtocolError("slow_peer", f"{len(queue)} control frames wait to be read")
        elif self._bytes[priority] + frame.wire_bytes > (
            MAX_BULK_BYTES if priority is Priority.BULK else MAX_OTHER_BYTES
        ):
            return False
        queue.append(frame)
        self._frames += 1
        self._bytes[priority] += frame.wire_bytes
        return True

    def take(self, priority: Priority) -> Frame | None:
        """The next frame of one priority."""
        queue = self._queues[priority]
        if not queue:
            return None
        frame = queue.popleft()
        self._frames -= 1
        self._bytes[priority] -= frame.wire_bytes
        return frame

    def peek(self, priority: Priority) -> Frame | None:
        """The next frame of one priority, left where it is."""
        queue = self._queues[priority]
        return queue[0] if queue else None

    def drop_windows_through(self, sequence: int) -> None:
        """Forgets unsent numbered frames that the peer turned out to have."""
        queue = self._queues[Priority.MEDIA]
        while queue and queue[0].sequence <= sequence:
            self._frames -= 1
            self._bytes[Priority.MEDIA] -= queue.popleft().wire_bytes

    def clear(self, keep: frozenset[FrameType] = frozenset()) -> None:
        """Forgets what waits, except frames of the types in `keep`."""
        for priority, queue in enumerate(self._queues):
            kept = [frame for frame in queue if frame.type in keep]
            queue.clear()
            queue.extend(kept)
            self._bytes[priority] = sum(frame.wire_bytes for frame in kept)
        self._frames = sum(map(len, self._queues))
