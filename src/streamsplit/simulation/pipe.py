"""One direction of a simulated connection: WebSocket messages over a link, behind a modem that holds only so much."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from streamsplit.network.link import LinkDirection
from streamsplit.simulation.clock import EventClock
from streamsplit.transport.count import websocket_bytes


class Pipe:
    """What the live shaper does to one direction of its connections, on the same link object.

    Whoever writes must stop while `blocked`: more than `backlog_bytes` have been handed over and have not left. The
    object lives as long as the link; a new connection's bytes queue behind those that an old one left in the modem.
    """

    def __init__(self, clock: EventClock, link: LinkDirection, backlog_bytes: int, *, masked: bool) -> None:
        self.link = link
        self.bytes = 0  # handed to the socket, WebSocket headers included
        self._clock = clock
        self._backlog_bytes = backlog_bytes
        self._masked = masked
        self._modem: deque[tuple[float, int]] = deque()  # (leaves, bytes) of what has not left
        self._waiting = 0

    @property
    def blocked(self) -> bool:
        """Whether the modem is full now."""
        if self._waiting <= self._backlog_bytes:
            return False
        modem, now_s = self._modem, self._clock.now_s
        while modem and modem[0][0] <= now_s:
            self._waiting -= modem.popleft()[1]
        return self._waiting > self._backlog_bytes

    def room_at_s(self) -> float:
        """When a blocked modem takes more; inf on a dead link."""
        left = self._waiting
        for leaves_s, size in self._modem:
            left -= size
            if left <= self._backlog_bytes:
                return leaves_s
        return self._clock.now_s

    def send(self, message_bytes: int, arrive: Callable[..., None], *arguments: Any) -> None:
        """Sends one WebSocket message; `arrive(*arguments)` is called at the far end when its last byte is there."""
        self.send_bytes(websocket_bytes(message_bytes, masked=self._masked), arrive, *arguments)

    def send_bytes(self, size: int, arrive: Callable[..., None], *arguments: Any) -> None:
        """The same for bytes that are no message: the HTTP request that opens a connection, and its answer."""
        clock, modem = self._clock, self._modem
        now_s = clock.now_s
        self.bytes += size
        leaves_s, arrives_s = self.link.schedule(now_s, size)
        while modem and modem[0][0] <= now_s:
            self._waiting -= modem.popleft()[1]
        modem.append((leaves_s, size))
        self._waiting += size
        clock.at(arrives_s, arrive, *arguments)
