"""Who is known to the gateway: devices, their links, the positions of their streams; and when each is forgotten."""

from __future__ import annotations

import asyncio

from streamsplit.server.codecs import CodecShelf
from streamsplit.server.connection import Link
from streamsplit.server.fleet import Device
from streamsplit.server.jobs import DeviceStream
from streamsplit.server.settings import ServerSettings
from streamsplit.server.store import Store
from streamsplit.wire.messages import Hello


class Roster:
    """All devices seen lately, and the links of those that are connected or may resume; used in the event loop only."""

    def __init__(self, settings: ServerSettings, store: Store, codecs: CodecShelf) -> None:
        self.devices: dict[str, Device] = {}
        self.links: dict[str, Link] = {}
        self._settings = settings
        self._store = store
        self.codecs = codecs
        self._streams: dict[tuple[str, int], DeviceStream] = {}

    @property
    def connected(self) -> int:
        """Devices connected now."""
        return sum(link.connection is not None for link in self.links.values())

    async def stream(self, hello: Hello) -> DeviceStream:
        """The stream that this HELLO goes on with, from memory or the database; raises StoreError."""
        key = (hello.device_id, hello.epoch)
        if key not in self._streams:
            position = await asyncio.to_thread(self._store.position, *key)
            through = position.received_through if position.known else hello.oldest_sequence - 1
            self._streams.setdefault(
                key,
                DeviceStream.start(*key, through, position.beyond, position.overlap, self._settings.audio, self.codecs),
            )
            if not position.known:
                self._store.open_stream(*key, hello.oldest_sequence)
        stream = self._streams[key]
        if hello.oldest_sequence - 1 > stream.through and hello.oldest_sequence <= hello.next_sequence:
            self._store.open_stream(*key, hello.oldest_sequence)
            stream.begin_at(hello.oldest_sequence)
        return stream

    def forget(self, link: Link) -> None:
        """Drops a link whose session is over, unless the device has a newer one."""
        if self.links.get(link.device.id) is link:
            del self.links[link.device.id]

    def prune(self) -> None:
        """Drops streams that nobody uses and, beyond twice `max_devices`, the devices away for longest."""
        for stream in [s for s in self._streams.values() if not s.pending]:
            owner = self.links.get(stream.device)
            if owner is None or owner.stream is not stream:
                del self._streams[stream.device, stream.epoch]
        surplus = len(self.devices) - 2 * self._settings.limits.max_devices
        if surplus > 0:
            gone = sorted((d for d in self.devices.values() if d.id not in self.links), key=lambda d: d.last_seen_s)
            for device in gone[:surplus]:
                del self.devices[device.id]
