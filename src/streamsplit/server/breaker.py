"""A circuit breaker: what has just failed is left alone for a while, and then tried by one caller alone."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """Of a breaker."""

    CLOSED = "closed"  # in use
    OPEN = "open"  # left alone until its pause is over
    TRYING = "trying"  # one caller finds out


class CircuitBreaker:
    """Ask `allows` before every use, then say how it went; pauses double from the first to the longest."""

    def __init__(self, *, first_pause_s: float = 1.0, longest_pause_s: float = 30.0) -> None:
        self.state = State.CLOSED
        self.pause_s = first_pause_s  # of the present or next time that it is open
        self._first_pause_s, self._longest_pause_s = first_pause_s, longest_pause_s
        self._again_s = 0.0

    def allows(self, now_s: float) -> bool:
        """Whether the caller may use it; after a pause True for one caller, who must say how it went."""
        if self.state is State.OPEN and now_s >= self._again_s:
            self.state = State.TRYING
            return True
        return self.state is State.CLOSED

    def succeeded(self) -> bool:
        """It worked; True if it had not before. What began before it opened says nothing any more."""
        if self.state is not State.TRYING:
            return False
        self.state, self.pause_s = State.CLOSED, self._first_pause_s
        return True

    def failed(self, now_s: float) -> bool:
        """It did not work; True if it had before."""
        if self.state is State.OPEN:  # one of several that were under way together
            return False
        new = self.state is State.CLOSED
        if not new:
            self.pause_s = min(2 * self.pause_s, self._longest_pause_s)
        self.state, self._again_s = State.OPEN, now_s + self.pause_s
        return new
