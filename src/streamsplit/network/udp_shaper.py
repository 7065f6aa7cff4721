"""A UDP proxy that makes a loopback connection behave like a link that loses packets: bursts, delay, jitter, rate.

It runs in user space and needs no privileges, as the TCP one (`shaper`) does; here packets are lost, and may overtake
each other. Sizes are those of UDP payloads and 28 bytes of headers.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from streamsplit.errors import PortInUseError
from streamsplit.network.in_thread import InThread
from streamsplit.network.packets import PacketDirection, PacketLinkSettings

_HEADER_BYTES = 28
_QUIET_S = 120.0  # a client that has sent nothing for so long is forgotten
_MOST_CLIENTS = 1_024


class LossyProxy(InThread):
    """Listens on `listen` and forwards to `target` over a link with the settings of `up` and `down`."""

    def __init__(
        self,
        target: tuple[str, int],
        up: PacketLinkSettings,
        down: PacketLinkSettings | None = None,
        *,
        listen: tuple[str, int] = ("127.0.0.1", 0),
        seed: int = 0,
    ) -> None:
        """`down`: None is the same as `up`; each direction draws from its own seed."""
        self.target, self.listen = target, listen
        self.up = PacketDirection(up, 2 * seed)
        self.down = PacketDirection(up if down is None else down, 2 * seed + 1)
        self._front: asyncio.DatagramTransport | None = None
        self._clients: dict[Any, _Client] = {}

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) to send to."""
        return self.listen

    async def start(self) -> LossyProxy:
        """Opens the socket; raises PortInUseError."""
        self._loop = asyncio.get_running_loop()
        try:
            self._front, _ = await self._loop.create_datagram_endpoint(lambda: _Front(self), local_addr=self.listen)
        except OSError as error:
            raise PortInUseError(f"{self.listen[0]}:{self.listen[1]}: {error.strerror}; choose another port") from error
        self.listen = self._front.get_extra_info("sockname")[:2]
        return self

    async def stop(self) -> None:
        """Closes every socket; what is under way is lost."""
        if self._front is not None:
            self._front.close()
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self._front = self._loop = None

    def _came(self, data: bytes, address: Any) -> None:
        client = self._clients.get(address)
        if client is None:
            self._forget_quiet()
            if len(self._clients) >= _MOST_CLIENTS:
                return
            client = self._clients[address] = _Client(self, address)
            client.opening = asyncio.ensure_future(client.open())
        client.heard_s = time.monotonic()
        self._carry(self.up, data, client.send)

    def _forget_quiet(self) -> None:
        now_s = time.monotonic()
        for address in [a for a, client in self._clients.items() if now_s - client.heard_s > _QUIET_S]:
            self._clients.pop(address).close()

    def _carry(self, direction: PacketDirection, data: bytes, hand_over: Any) -> None:
        now_s = time.monotonic()
        arrives_s = direction.arrival_s(now_s, len(data) + _HEADER_BYTES)
        if arrives_s is not None and self._loop is not None:
            self._loop.call_later(arrives_s - now_s, hand_over, data)

    def _answer(self, data: bytes, address: Any) -> None:
        if self._front is not None and not self._front.is_closing():
            self._front.sendto(data, address)


class _Front(asyncio.DatagramProtocol):
    def __init__(self, proxy: LossyProxy) -> None:
        self._proxy = proxy

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._proxy._came(data, addr)


class _Client(asyncio.DatagramProtocol):
    """One client's socket towards the target."""

    def __init__(self, proxy: LossyProxy, address: Any) -> None:
        self.heard_s = time.monotonic()
        self.opening: asyncio.Future[None] | None = None
        self._proxy, self._address = proxy, address
        self._transport: asyncio.DatagramTransport | None = None
        self._early: list[bytes] = []  # what arrived before the socket was there

    async def open(self) -> None:
        """Connects to the target."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, remote_addr=self._proxy.target)
        for data in self._early:
            self.send(data)
        self._early.clear()

    def send(self, data: bytes) -> None:
        """Hands a packet over to the target."""
        if self._transport is None:
            self._early.append(data)
        elif not self._transport.is_closing():
            self._transport.sendto(data)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._proxy._carry(self._proxy.down, data, lambda data: self._proxy._answer(data, self._address))

    def close(self) -> None:
        """Ends it."""
        if self.opening is not None:
            self.opening.cancel()
        if self._transport is not None:
            self._transport.close()
