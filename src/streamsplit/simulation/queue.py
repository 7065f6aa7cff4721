"""The offline queue without a disk: the same numbers, bounds and answers as the device's SQLite file."""

from __future__ import annotations

from collections import deque

from streamsplit.edge.queue import QueuedWindow, QueueSettings
from streamsplit.wire.types import FrameType

ROW_BYTES = 64  # what the file counts for a row beside its payload; the test compares the two


class MemoryQueue:
    """Windows accepted for sending until the server holds them, and results that have not come."""

    def __init__(self, settings: QueueSettings | None = None, epoch: int = 1) -> None:
        self.settings = settings or QueueSettings()
        self.epoch = epoch
        self.next_sequence = 1
        self.pending_bytes = 0
        self._windows: deque[QueuedWindow] = deque()
        self._awaited: dict[int, None] = {}  # in order of sequence

    @property
    def oldest_sequence(self) -> int:
        """The lowest number still held; `next_sequence` when the queue is empty."""
        return self._windows[0].sequence if self._windows else self.next_sequence

    @property
    def pending(self) -> int:
        """Windows accepted and not yet acknowledged."""
        return len(self._windows)

    @property
    def results_from(self) -> int:
        """The lowest sequence whose result has not come; 0 when none is missing."""
        return next(iter(self._awaited), 0)

    def accept(self, frame_type: FrameType, timestamp_ms: int, window: int, payload: bytes) -> int | None:
        """Takes a window and gives its sequence number, or None when the queue is full."""
        size = len(payload) + ROW_BYTES
        if len(self._windows) >= self.settings.max_windows or self.pending_bytes + size > self.settings.max_bytes:
            return None
        sequence = self.next_sequence
        self.next_sequence = sequence + 1
        self.pending_bytes += size
        self._windows.append(QueuedWindow(sequence, frame_type, timestamp_ms, window, payload))
        if len(self._awaited) >= self.settings.max_awaited:
            del self._awaited[self.results_from]
        self._awaited[sequence] = None
        return sequence

    def after(self, sequence: int, limit: int) -> list[QueuedWindow]:
        """Up to `limit` accepted windows with higher numbers, in order."""
        if not self._windows:
            return []
        first = max(sequence + 1 - self._windows[0].sequence, 0)
        return [self._windows[at] for at in range(first, min(first + limit, len(self._windows)))]

    def acknowledge(self, through: int) -> int:
        """Forgets what the server holds; returns how many windows that were."""
        count = 0
        while self._windows and self._windows[0].sequence <= through:
            self.pending_bytes -= len(self._windows.popleft().payload) + ROW_BYTES
            count += 1
        return count

    def take_result(self, sequence: int) -> bool:
        """True the first time a result for `sequence` comes; False for one that came before or is not awaited."""
        if sequence not in self._awaited:
            return False
        del self._awaited[sequence]
        return True
