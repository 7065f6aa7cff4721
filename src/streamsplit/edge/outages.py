"""How often and how long a sound device was gone, and who is told of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

MICROPHONE, LOUDSPEAKER = "microphone", "loudspeaker"


class DeviceChange(NamedTuple):
    """A sound device went away, or is back."""

    device: str  # MICROPHONE or LOUDSPEAKER
    reason: str  # why it is gone; "" where it is back
    gone_s: float = 0.0  # how long it was, where it is back


class Outages:
    """Of one device. One thread says what happens; any may look."""

    def __init__(self, device: str, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.device = device
        self.reason = ""  # why the device is gone right now; "" while it is there
        self._clock_s = clock_s
        self._count = 0
        self._past_s = self._since_s = 0.0
        self._watchers: list[Callable[[DeviceChange], None]] = []

    def watch(self, told: Callable[[DeviceChange], None]) -> None:
        """Tells `told` of every loss and every return, in the thread of the device."""
        self._watchers.append(told)

    @property
    def figures(self) -> dict[str, Any]:
        """How often and how long it was gone so far: `<device>_outages` and `<device>_gone_s`, for summaries."""
        gone_s = round(self._past_s + self.under_way_s, 3)
        return {f"{self.device}_outages": self._count, f"{self.device}_gone_s": gone_s}

    @property
    def under_way_s(self) -> float:
        """Since the device is gone; 0 while it is there."""
        return self._clock_s() - self._since_s if self.reason else 0.0

    def begin(self, reason: str, since_s: float) -> None:
        """The device is gone, since `since_s` of the clock."""
        self._since_s, self.reason = since_s, reason
        self._count += 1
        self._tell(DeviceChange(self.device, reason))

    def end(self, until_s: float) -> None:
        """The device is back, since `until_s` of the clock."""
        gone_s = max(0.0, until_s - self._since_s)
        self._past_s, self.reason = self._past_s + gone_s, ""
        self._tell(DeviceChange(self.device, "", gone_s))

    def _tell(self, change: DeviceChange) -> None:
        for told in self._watchers:
            told(change)


class Backoff:
    """Waits between tries: each twice as long as the one before it, up to `longest_s`; the first again after a device
    that stayed for `longest_s`."""

    def __init__(self, longest_s: float, first_s: float = 0.5) -> None:
        self._first_s, self._longest_s = min(first_s, longest_s), longest_s
        self._next_s = self._first_s

    def lost(self, stayed_s: float) -> None:
        """The device is gone once more, after it was there for so long."""
        if stayed_s >= self._longest_s:
            self._next_s = self._first_s

    def wait_s(self) -> float:
        """The next wait."""
        wait_s, self._next_s = self._next_s, min(2.0 * self._next_s, self._longest_s)
        return wait_s


def often(longest_s: float) -> str:
    """How often a device is tried again, in words."""
    return f"at least every {longest_s:g} s"
