"""The jitter buffer: packets in as they come, one decision out for every frame that is to be played.

Playout follows a clock that is an argument. How long a frame waits is measured, not set: the delay of each packet
against its place in the stream, over the fastest of the last ones, tells how much later than it a frame may come; the
target is a high percentile of that, within bounds. Where a stall had it wait, it plays later than before; it comes back
by leaving out as many frames, now and then one, once they are there. A sender that is ahead of its time is not hurried,
unless its sound is `live`: then whatever plays later than it must is made up for.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from streamsplit.codec.opus_packet import carries_copy
from streamsplit.config import Settings, setting
from streamsplit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class JitterSettings(Settings):
    """Bounds of the delay and what happens beyond them."""

    least_ms: float = setting(40.0, low=0.0, high=1_000.0)
    most_ms: float = setting(400.0, low=1.0, high=5_000.0)
    percentile: float = setting(0.95, low=0.5, high=1.0)  # of the delays that are waited for
    remembered: int = setting(150, low=8, high=10_000)  # delays: 3 s of frames of 20 ms
    most_frames: int = setting(150, low=4, high=10_000)  # held; the oldest give way (50 messages of 60 ms)
    concealed_frames: int = setting(5, low=0, high=100)  # in a row; then comfort silence
    shrink_every: int = setting(10, low=1, high=1_000)  # frames between two that are left out

    def check(self) -> None:
        """The range must not be empty."""
        if self.least_ms > self.most_ms:
            raise ConfigError(f"'least_ms': got {self.least_ms}, allowed <= most_ms ({self.most_ms})")


class Play(Enum):
    """What to do for one frame of playout."""

    NOTHING = "no stream, or too little of it yet"
    PACKET = "decode the packet"
    RECOVER = "decode the packet's copy of the one before it"
    CONCEAL = "conceal a frame"
    COMFORT = "silence: too much in a row is missing"
    END = "the stream is over"


class Decision(NamedTuple):
    """For the decoder."""

    play: Play
    data: bytes = b""
    place: int = -1  # of the frame in the stream, where a packet is played


@dataclass
class JitterCounts:
    """What became of the frames."""

    received: int = 0
    duplicates: int = 0
    played: int = 0
    recovered: int = 0  # from the copy in the packet after them
    concealed: int = 0  # frames of concealment or comfort silence that were played
    comfort: int = 0  # of those, frames of comfort silence
    late: int = 0  # came after their time
    lost: int = 0  # their time passed, and they have not come
    left_out: int = 0  # to come back to the target, or for want of room


class JitterBuffer:
    """Of one stream; `restart` begins another."""

    def __init__(
        self, settings: JitterSettings = JitterSettings(), *, frame_ms: float = 20.0, fec: bool = False
    ) -> None:
        """`frame_ms` of sound in a packet; `fec`: packets of Opus may carry a copy of the one before them."""
        self.settings, self.frame_ms, self.fec = settings, frame_ms, fec
        self.counts = JitterCounts()
        self.restart()

    def restart(self) -> None:
        """Forgets the stream; counts go on."""
        self.live = False  # the stream is being made right now: it is played as soon as can be, not whole
        self._packets: dict[int, bytes] = {}
        self._delays: deque[float] = deque(maxlen=self.settings.remembered)  # arrival - place in the stream, ms
        self._next = 0
        self._end: int | None = None
        self._started = self._ended = False
        self._missing = 0  # frames concealed in a row
        self._waited = 0  # of those, frames whose place did not move on
        self._owed = 0  # frames of waiting since the start that have not been made up for
        self._since_left_out = 0
        self._passed: set[int] = set()  # lost, as far as is known

    # -- what comes ----------------------------------------------------------------------------------------------

    def push(self, index: int, data: bytes, now_ms: float) -> None:
        """A packet: the frame number `index`."""
        counts = self.counts
        if index < self._next and (self._started or not self._packets):
            if index in self._passed:
                self._passed.discard(index)
                counts.lost -= 1
                counts.late += 1
            else:
                counts.duplicates += 1
            return
        if index in self._packets:
            counts.duplicates += 1
            return
        counts.received += 1
        if not self._started:
            self._next = min(self._next, index) if self._packets else index
        self._delays.append(now_ms - index * self.frame_ms)
        self._packets[index] = data
        while len(self._packets) > self.settings.most_frames:
            oldest = min(self._packets)
            del self._packets[oldest]
            counts.left_out += 1
            self._next = max(self._next, oldest + 1)

    def finish(self, frames: int) -> None:
        """The stream has `frames` frames in all."""
        self._end = frames

    # -- where it stands -----------------------------------------------------------------------------------------

    @property
    def target_ms(self) -> float:
        """How long after the fastest a frame is played."""
        s = self.settings
        if not self._delays:
            return s.least_ms
        ordered = sorted(self._delays)
        spread = ordered[min(len(ordered) - 1, math.ceil(s.percentile * len(ordered)) - 1)] - ordered[0]
        return min(max(spread + self.frame_ms, s.least_ms), s.most_ms)

    @property
    def held_ms(self) -> float:
        """Sound that waits, holes included."""
        return (max(self._packets) + 1 - self._next) * self.frame_ms if self._packets else 0.0

    @property
    def known_frames(self) -> int:
        """Frames of the stream up to the newest that has come."""
        return max(self._packets) + 1 if self._packets else self._next

    @property
    def started(self) -> bool:
        """Whether playout has begun."""
        return self._started

    @property
    def over(self) -> bool:
        """Whether everything has been played."""
        return self._ended

    def lag_ms(self, now_ms: float) -> float:
        """How much later than the fastest possible the next frame plays; 0 without a stream."""
        if not self._delays:
            return 0.0
        return now_ms - (self._next * self.frame_ms + min(self._delays))

    # -- playout -------------------------------------------------------------------------------------------------

    def pull(self, now_ms: float) -> Decision:
        """What to play for the next frame's time; to be asked once a frame."""
        if self._ended or (not self._started and not self._may_start(now_ms)):
            return Decision(Play.END if self._ended else Play.NOTHING)
        self._started = True
        self._catch_up(now_ms)
        if self._end is not None and self._next >= self._end:
            self._ended = True
            return Decision(Play.END)
        data = self._packets.pop(self._next, None)
        if data is not None:
            self._next += 1
            self._missing = self._waited = 0
            self.counts.played += 1
            return Decision(Play.PACKET, data, self._next - 1)
        if not self._packets and self._end is None:  # late, all that there is: its place waits
            self._waited += 1
            self._owed += 1
            return self._conceal()
        following = self._packets.get(self._next + 1)
        self._give_up()
        if self.fec and following is not None and carries_copy(following):
            self._missing = 0
            self.counts.lost -= 1
            self.counts.recovered += 1
            self._passed.discard(self._next - 1)
            return Decision(Play.RECOVER, following)
        return self._conceal()

    def _may_start(self, now_ms: float) -> bool:
        if not self._packets:
            return self._end is not None and self._next >= self._end
        whole = self._end is not None and self.held_ms >= (self._end - self._next) * self.frame_ms
        return whole or self.lag_ms(now_ms) >= self.target_ms

    def _catch_up(self, now_ms: float) -> None:
        """Back towards the target: places that were waited for in vain, what is beyond the bound, a frame at times."""
        s = self.settings
        while self._waited and self._packets and self._next not in self._packets:
            self._give_up()  # concealed already, while it was waited for
            self._waited -= 1
            self._owed -= 1
        self._since_left_out += 1
        while self._next in self._packets and self._next + 1 in self._packets:
            surplus_ms = self.lag_ms(now_ms) - self.target_ms if self.live else self._owed * self.frame_ms
            if surplus_ms < self.frame_ms:
                return
            beyond = surplus_ms > s.most_ms
            spare = self.held_ms >= self.target_ms + self.frame_ms
            if not spare or (not beyond and self._since_left_out < s.shrink_every):
                return
            del self._packets[self._next]
            self._next += 1
            self._owed = max(0, self._owed - 1)
            self.counts.left_out += 1
            self._since_left_out = 0

    def _give_up(self) -> None:
        self._passed.add(self._next)
        self.counts.lost += 1
        self._next += 1

    def _conceal(self) -> Decision:
        self._missing += 1
        self.counts.concealed += 1
        if self._missing <= self.settings.concealed_frames:
            return Decision(Play.CONCEAL)
        self.counts.comfort += 1
        return Decision(Play.COMFORT)
