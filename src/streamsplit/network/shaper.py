"""A TCP proxy that makes a loopback connection behave like a mobile link: rate, delay, jitter and outages.

It runs in user space, needs no privileges and no `tc`. Rates count application bytes on the TCP connection (WebSocket
headers included, TCP/IP headers not); order is always kept; bytes are never lost, only late, as TCP presents a link.
"""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any

from streamsplit.errors import PortInUseError, StreamSplitError
from streamsplit.network.bandwidth import DOWNLINK_FACTOR, BandwidthTrace
from streamsplit.network.in_thread import InThread
from streamsplit.network.link import LinkDirection

_PIECE_S = 0.010  # a link hands data over in pieces of about this long
_PIECE_BYTES = (1448, 16384)
_LATEST_S = 0.001  # lateness of timers beyond this is a busy machine's, which nobody can foresee
_SOCKET_BUFFER = 32 << 10  # small, so that a full link is felt by the sender as on a real modem


def _piece_bytes(direction: LinkDirection, now_s: float) -> int:
    return int(min(max(direction.rate_bps(now_s) / 8 * _PIECE_S, _PIECE_BYTES[0]), _PIECE_BYTES[1]))


class ShapedProxy(InThread):
    """Listens on `listen` and forwards to `target` as if over the link of `uplink` and `downlink`.

    The trace starts when the proxy does and repeats. Half of a trace's round-trip time delays each direction.
    Use inside a running loop (`async with ShapedProxy(...)`), or `start_in_thread()` / `stop_thread()`. Delays are as
    fine as the loop's timers: a millisecond each way on Linux's usual loop, a tenth in a thread of its own.
    """

    def __init__(
        self,
        target: tuple[str, int],
        uplink: BandwidthTrace,
        downlink: BandwidthTrace | None = None,
        *,
        listen: tuple[str, int] = ("127.0.0.1", 0),
        jitter_ms: float = 0.0,
        backlog_bytes: int = 64 << 10,
        seed: int = 0,
    ) -> None:
        self.target = target
        self.listen = listen
        self._backlog_bytes = backlog_bytes
        self._up = LinkDirection(uplink, jitter_ms, seed)
        self._down = LinkDirection(downlink or uplink.scaled(DOWNLINK_FACTOR), jitter_ms, seed + 1)
        self._server: asyncio.Server | None = None
        self._started = 0.0
        self._dead_until = -math.inf
        self._late_s = 0.0
        self._refusing = False
        self._connections: set[asyncio.Task[None]] = set()
        self._transports: set[asyncio.WriteTransport] = set()

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) to connect to."""
        return self.listen

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start, which is the trace's time."""
        return time.monotonic() - self._started

    @property
    def current_rtt_ms(self) -> float:
        """Round-trip time of the uplink's trace now."""
        return self._up.rtt_ms(self.elapsed_s)

    @property
    def uplink_bytes(self) -> int:
        """Bytes delivered to the server."""
        return self._up.bytes

    @property
    def downlink_bytes(self) -> int:
        """Bytes delivered to the device."""
        return self._down.bytes

    def cut(self, seconds: float, *, reset: bool = True) -> None:
        """Kills the link for a while; safe from any thread.

        With `reset`, open connections break and new ones are refused (a modem without a network); without it they hang
        and go on afterwards (a tunnel: TCP repeats what was lost).
        """
        if self._loop is None:
            raise StreamSplitError("the shaped link has not been started; start it before cutting it")
        self._loop.call_soon_threadsafe(self._cut, seconds, reset)

    def change(self, uplink: BandwidthTrace, downlink: BandwidthTrace | None = None) -> None:
        """Another link from now on, for what is not under way yet; safe from any thread."""
        if self._loop is None:
            raise StreamSplitError("the shaped link has not been started; start it before changing it")
        self._loop.call_soon_threadsafe(self._up.change, uplink)
        self._loop.call_soon_threadsafe(self._down.change, downlink or uplink.scaled(DOWNLINK_FACTOR))

    async def start(self) -> ShapedProxy:
        """Opens the listening socket; raises PortInUseError."""
        self._loop = asyncio.get_running_loop()
        opened = socket.socket(socket.AF_INET6 if ":" in self.listen[0] else socket.AF_INET)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER)
        try:
            opened.bind(self.listen)
        except OSError as error:
            opened.close()
            raise PortInUseError(f"{self.listen[0]}:{self.listen[1]}: {error.strerror}; choose another port") from error
        self.listen = opened.getsockname()[:2]
        self._started = time.monotonic()
        self._server = await asyncio.start_server(self._serve, sock=opened, limit=_SOCKET_BUFFER)
        return self

    async def stop(self) -> None:
        """Closes the socket and every connection."""
        if self._server is not None:
            self._server.close()
        for transport in list(self._transports):
            transport.abort()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self._server = None
        self._loop = None

    def _cut(self, seconds: float, reset: bool) -> None:
        self._dead_until = max(self._dead_until, self.elapsed_s + seconds)
        self._refusing = self._refusing or reset
        for direction in (self._up, self._down):
            direction.hold_until(self._dead_until)
        if reset:
            for transport in list(self._transports):
                transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.elapsed_s < self._dead_until and self._refusing:
            writer.transport.abort()
            return
        if self.elapsed_s >= self._dead_until:
            self._refusing = False
        self._transports.add(writer.transport)
        upstream: asyncio.StreamWriter | None = None
        task = asyncio.current_task()
        assert task is not None  # start_server runs this callback as a task
        self._connections.add(task)
        try:
            await asyncio.sleep(self.current_rtt_ms / 1000)  # TCP's own handshake crosses the link once
            try:
                server_reader, upstream = await asyncio.open_connection(*self.target, limit=_SOCKET_BUFFER)
            except OSError:  # the server is down: the device sees its connection break
                return
            self._transports.add(upstream.transport)
            for end in (writer, upstream):
                end.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await _first_to_end(self._pump(reader, upstream, self._up), self._pump(server_reader, writer, self._down))
        except (asyncio.CancelledError, ConnectionError):
            pass  # cut or stopped
        finally:
            for end in filter(None, (writer, upstream)):
                self._transports.discard(end.transport)
                end.transport.abort()
            self._connections.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: LinkDirection) -> None:
        """Moves one direction until its end closes; at most about `backlog_bytes` wait in the modem."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        landing = asyncio.create_task(self._land(under_way, writer, direction))
        modem: deque[tuple[float, int]] = deque()  # (leaves, bytes) of what has not left yet
        waiting = 0
        try:
            while data := await reader.read(_piece_bytes(direction, self.elapsed_s)):
                leaves, arrives = direction.schedule(self.elapsed_s, len(data))
                under_way.put_nowait((arrives, data))
                modem.append((leaves, len(data)))
                waiting += len(data)
                while modem and (waiting > self._backlog_bytes or modem[0][0] <= self.elapsed_s):
                    leaves, size = modem.popleft()
                    await self._sleep_until(leaves)
                    waiting -= size
                if landing.done():
                    break
            under_way.put_nowait((0.0, b""))
            await landing
        finally:
            landing.cancel()

    async def _land(
        self, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, direction: LinkDirection
    ) -> None:
        """Hands pieces over in order, each when it arrives; an empty piece is the end."""
        while True:
            arrives, data = await under_way.get()
            if not data:
                return
            await self._sleep_until(arrives)
            writer.write(data)
            direction.bytes += len(data)
            await writer.drain()

    async def _sleep_until(self, time_s: float) -> None:
        """Wakes that much before `time_s` by which waking was late of late."""
        slept = False
        while True:
            wait = max(time_s - self._late_s, self._dead_until) - self.elapsed_s
            if wait <= 0:
                break
            slept = True
            await asyncio.sleep(min(wait, 0.5))  # a cut may come while waiting
        if slept:
            self._late_s += (min(-wait, _LATEST_S) - self._late_s) / 10


async def _first_to_end(*pumps: Coroutine[Any, Any, None]) -> None:
    """Runs both directions until one ends; an end's error is raised, the other direction is stopped."""
    tasks = [asyncio.create_task(pump) for pump in pumps]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
