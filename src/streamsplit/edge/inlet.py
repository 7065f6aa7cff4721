"""The inlet: a thread that reads the source, and a bounded buffer between it and the encoder."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from streamsplit.edge.blocks import AudioBlock, Source

_JUMP_MS = 1.0  # between blocks of a source that lost nothing


class Heard(NamedTuple):
    """A block as it came in."""

    block: AudioBlock
    captured_ms: int  # Unix time at which its last sample existed
    gap: bool  # audio before it was dropped


class AudioInlet:
    """Reads `source` in a thread. With `paced` audio that nobody takes in time is dropped, oldest first, and counted;
    without, the source waits.
    A block that begins later than the one before it ended says that the source lost some.

    An error of the source ends it and is kept in `error`.
    """

    def __init__(
        self,
        source: Source,
        *,
        paced: bool,
        buffer_s: float,
        wall_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self.dropped_ms = 0.0
        self.error: BaseException | None = None
        self._source = source
        self._paced = paced
        self._limit_ms = buffer_s * 1000
        self._wall_ms = wall_ms
        self._blocks: deque[Heard] = deque()
        self._held_ms = 0.0
        self._end_ms = math.nan  # of the newest block
        self._gap = False
        self._ended = False
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="audio-inlet", daemon=True)

    @property
    def finished(self) -> bool:
        """True when the source has ended and everything was taken."""
        with self._changed:
            return self._ended and not self._blocks

    @property
    def waiting_ms(self) -> float:
        """Audio that waits to be taken."""
        return self._held_ms

    def start(self) -> None:
        """Begins to listen."""
        self._thread.start()

    def get(self, timeout_s: float) -> Heard | None:
        """The next block; None when none came in time."""
        with self._changed:
            if not self._blocks and not self._ended:
                self._changed.wait(timeout_s)
            if not self._blocks:
                return None
            heard = self._blocks.popleft()
            self._held_ms -= _length_ms(heard.block)
            self._changed.notify_all()
            return heard

    def close(self) -> None:
        """Stops listening; what is in the buffer can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._source.close()

    def join(self, timeout_s: float) -> None:
        """Waits for the thread; a source stuck in a device driver is left behind."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _read(self) -> None:
        try:
            for block in self._source:
                if not self._put(block):
                    break
        except Exception as error:
            self.error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, block: AudioBlock) -> bool:
        length_ms = _length_ms(block)
        with self._changed:
            while not self._paced and not self._closed and self._held_ms >= self._limit_ms:
                self._changed.wait()
            if self._closed:
                return False
            missing_ms = block.start_ms - self._end_ms
            if block.outage:  # of the device: nothing was there to be dropped
                self._gap = True
            elif missing_ms > _JUMP_MS:  # lost before it came here; False at the beginning
                self.dropped_ms += missing_ms
                self._gap = True
            self._end_ms = block.start_ms + length_ms
            while self._blocks and self._held_ms + length_ms > self._limit_ms:
                lost = self._blocks.popleft()
                self._held_ms -= _length_ms(lost.block)
                self.dropped_ms += _length_ms(lost.block)
                self._gap = True
                if self._blocks:  # the loss lies before what is now the oldest
                    self._blocks[0] = self._blocks[0]._replace(gap=True)
                    self._gap = False
            self._blocks.append(Heard(block, self._wall_ms(), self._gap))
            self._gap = False
            self._held_ms += length_ms
            self._changed.notify_all()
            return True


def _length_ms(block: AudioBlock) -> float:
    return len(block.samples) / 16.0
