"""Who is let in: what a HELLO must say, and how a connection then takes up, or takes over, its device's session.

Settings are checked in the order in which a device can do something about them.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import time
from collections.abc import Collection
from typing import NamedTuple

from streamsplit.errors import StoreError
from streamsplit.server.connection import Connection, Link, now_ms
from streamsplit.server.fleet import Device
from streamsplit.server.metrics import Metrics
from streamsplit.server.roster import Roster
from streamsplit.server.settings import ServerSettings
from streamsplit.server.store import Store
from streamsplit.server.weight_service import WeightService
from streamsplit.wire.messages import Hello
from streamsplit.wire.session import ServerState

LOG = logging.getLogger(__name__)


class Refusal(NamedTuple):
    """Why a device is turned away: a code of `wire.codes` and what to change."""

    code: str
    detail: str


def check_hello(hello: Hello, settings: ServerSettings, codecs: Collection[str]) -> Refusal | None:
    """None for a device that may come in; `codecs` are the ids of those whose codes can be decoded."""
    token = settings.auth.token_for(hello.device_id)
    if token and not hmac.compare_digest(hello.token.encode(), token.encode()):
        return Refusal("bad_token", f"the token of device '{hello.device_id}' is wrong; set server.token on the device")
    audio, encoder = settings.audio, settings.encoder
    for name, got, expected in (
        ("sample_rate_hz", hello.sample_rate_hz, audio.sample_rate),
        ("mel_bands", hello.mel_bands, audio.n_mels),
        ("window_frames", hello.window_frames, audio.window_frames),
        ("stride_frames", hello.stride_frames, audio.stride_frames),
    ):
        if got != expected:
            return Refusal("bad_settings", f"{name}: got {got}, expected {expected}; set it on the device")
    if hello.encoder and hello.encoder != encoder.name:
        return Refusal(
            "bad_settings", f"encoder: got '{hello.encoder}', expected '{encoder.name}'; set it on the device"
        )
    if hello.codec and hello.codec not in codecs:
        held = ", ".join(sorted(codecs)) or "none"
        return Refusal(
            "bad_settings",
            f"codec: got {hello.codec}, expected one of {held}; set codec.name on the device, or codecs on the server",
        )
    return None


class Doorkeeper:
    """Answers HELLO: refuses, resumes a session or accepts a new one."""

    def __init__(
        self, settings: ServerSettings, roster: Roster, *, weights: WeightService, store: Store, metrics: Metrics
    ) -> None:
        self.closing = False  # the server is going away: nobody is let in
        self._settings = settings
        self._roster = roster
        self._weights = weights
        self._store = store
        self._metrics = metrics

    async def admit(self, connection: Connection, hello: Hello) -> Link | None:
        """The device's link, with this connection on it; None when it was turned away or went away meanwhile."""
        session, links = connection.session, self._roster.links
        refusal = check_hello(hello, self._settings, self._roster.codecs.ids) or self._check_room(hello)
        if refusal is not None:
            self._reject(connection, hello, refusal)
            return None
        try:
            stream = await self._roster.stream(hello)
        except StoreError as error:
            self._reject(connection, hello, Refusal("internal", f"the server's database failed: {error}"))
            return None
        if session.state is not ServerState.DECIDING:  # gone or timed out while the database was asked
            return None
        link = links.get(hello.device_id)
        newest = self._weights.newest
        current = newest.revision if newest else ""
        if link is not None and link.session.can_resume(hello, now_ms()):
            self._drop_connection(link, resumed=True)
            link.session.resume(session, now_ms(), revision=current)
            connection.session = link.session
            resumed = True
        else:
            resumed = False
            if link is not None:
                self._drop_connection(link, resumed=False)
            token = secrets.token_bytes(16)
            welcome = session.accept(
                now_ms(),
                session_id=secrets.token_hex(8),
                resume_token=token,
                received_through=stream.through,
                revision=current,
            )
            if welcome is None:
                self._metrics.refused.labels("bad_epoch").inc()
                return None
            device = self._roster.devices.setdefault(hello.device_id, Device(hello.device_id))
            link = links[hello.device_id] = Link(device, session, stream)
        self._opened(connection, link, hello, resumed=resumed)
        return link

    def _check_room(self, hello: Hello) -> Refusal | None:
        if self.closing:
            return Refusal("shutting_down", "the server is going away; try again later")
        link, limit = self._roster.links.get(hello.device_id), self._settings.limits.max_devices
        if (link is None or link.connection is None) and self._roster.connected >= limit:
            return Refusal("server_full", f"{limit} devices are connected; try again later")
        return None

    def _opened(self, connection: Connection, link: Link, hello: Hello, *, resumed: bool) -> None:
        device = link.device
        connection.link = link
        connection.number = connection.session.connection
        connection.budget = 2 * self._settings.limits.max_windows_per_s
        link.connection = connection
        link.held_revision = hello.revision
        link.announced = ""
        link.steered = False
        link.policy_sent = 0
        link.takes_gradients = False
        device.hello = hello
        device.connected = True
        device.connections += 1
        device.connected_s = device.last_seen_s = time.time()
        device.address = connection.pipe.peer
        device.revision = hello.revision
        device.uplink_bytes += connection.unclaimed_bytes
        self._metrics.connections.labels("yes" if resumed else "no").inc()
        self._metrics.devices.set(self._roster.connected)
        self._store.record_device(hello.device_id, hello.device_class, hello.software, hello.encoder, hello.revision)
        LOG.info("%s %s from %s", hello.device_id, "resumed" if resumed else "connected", device.address)

    def _reject(self, connection: Connection, hello: Hello, refusal: Refusal) -> None:
        connection.session.reject(refusal.code, refusal.detail)
        self._metrics.refused.labels(refusal.code).inc()
        self._store.record_event("refused", f"{refusal.code}: {refusal.detail}", hello.device_id)

    def _drop_connection(self, link: Link, *, resumed: bool) -> None:
        """Ends the connection that a device had before, if it still stands."""
        old, link.connection = link.connection, None
        if old is not None:
            if resumed:
                old.replaced = True  # its session goes on with the new transport
            else:
                old.session.fail("replaced", "another connection with this device id took over")
            old.end(fatal=True)
        elif not resumed and link.session.state is not ServerState.CLOSED:
            link.session.close("a new session began")
