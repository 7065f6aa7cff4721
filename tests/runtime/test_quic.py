"""Devices over QUIC: who is let in and who is believed, what goes where, hostile datagrams, restarts, back-pressure."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from server_harness import RunningServer, embedding_window, make_settings, now_ms, running

from streamsplit.edge.client import EdgeClient
from streamsplit.edge.queue import OfflineQueue
from streamsplit.edge.settings import ServerLinkSettings
from streamsplit.edge.transport import open_pipe
from streamsplit.errors import ConfigError, ConnectionRefused, MissingExtraError, PortInUseError
from streamsplit.network.packets import PacketLinkSettings
from streamsplit.network.udp_shaper import LossyProxy
from streamsplit.server.certificate import certificate_files
from streamsplit.server.settings import ServerSettings
from streamsplit.splitting.link import LinkEstimator
from streamsplit.transport import quic as quic_pipe
from streamsplit.transport.count import UdpByteCount
from streamsplit.wire.dialogue import Kind, Utterance, pack_utterance, unpack_utterance
from streamsplit.wire.events import Closed, Event, MediaReceived, MessageReceived, Opened
from streamsplit.wire.frame import Frame, encode_frame
from streamsplit.wire.messages import Error, Hello, Result, Revision, WeightsRequest
from streamsplit.wire.session import ClientSession
from streamsplit.wire.types import FrameFlag, FrameType

DEADLINE_S = 15.0
SILENCE = bytes(640)  # a frame of PCM


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One that echoes, and asks 'pi' for a token."""
    settings = make_settings(
        tmp_path_factory.mktemp("server"),
        server={"quic_port": 0},
        limits={"hello_timeout_s": 1.0},
        auth={"device_tokens": {"guarded": "secret"}},
        dialogue={"responder": "echo", "learn": False},
    )
    with running(settings) as made:
        yield made


def link(server: RunningServer, **changes: Any) -> ServerLinkSettings:
    listener = server.app.state.quic
    values = {"url": f"quic://127.0.0.1:{listener.port}", "tls_fingerprint": listener.fingerprint, **changes}
    return ServerLinkSettings.from_mapping(values)


class Device:
    """A session over QUIC, and everything that came of it."""

    def __init__(self, name: str, **hello: Any) -> None:
        self.session = ClientSession(now_ms=now_ms(), refuses=frozenset())
        self.hello = Hello(
            **{
                "protocol": 1, "device_id": name, "token": "", "epoch": 7, "oldest_sequence": 1, "next_sequence": 1,
                **hello,
            }
        )  # fmt: skip
        self.events: list[Event] = []
        self.pipe: Any = None
        self._changed = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    async def connect(self, settings: ServerLinkSettings, *, greet: bool = True) -> Device:
        self.pipe = await open_pipe(settings, UdpByteCount())
        self._reading = asyncio.create_task(self._read())
        if greet:
            self.session.hello(self.hello, now_ms())
            await self.flush()
            await self.until(lambda: self.has(Opened) or self.has(Closed))
        return self

    async def flush(self) -> None:
        while batch := self.session.bytes_to_send(now_ms=now_ms()):
            for data in batch:
                await self.pipe.send(data)

    def has(self, kind: type) -> bool:
        return any(isinstance(event, kind) for event in self.events)

    def media(self, kind: FrameType) -> list[bytes]:
        frames = [event.frame for event in self.events if isinstance(event, MediaReceived)]
        return [frame.payload for frame in frames if frame.type is kind]

    def messages(self, kind: type) -> list[Any]:
        received = [event.message for event in self.events if isinstance(event, MessageReceived)]
        return [message for message in received if isinstance(message, kind)]

    async def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, f"timed out after {self.events}"
            self._changed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 0.1)

    async def ask(self, number: int, first: int, frames: int, *, live: bool = True, final: bool = False) -> None:
        piece = Utterance(number, first, Kind.PCM16, 20.0, (SILENCE,) * frames, 0, live)
        flags = FrameFlag.FINAL if final else FrameFlag.NONE
        self.session.send_media(FrameType.DIALOGUE, pack_utterance(piece), None, flags, 1)
        await self.flush()

    def answers(self, number: int) -> list[tuple[Utterance, bool]]:
        found = []
        for event in self.events:
            if isinstance(event, MediaReceived) and event.frame.type is FrameType.DIALOGUE:
                piece = unpack_utterance(event.frame.payload)
                if piece.utterance == number:
                    found.append((piece, bool(event.frame.flags & FrameFlag.FINAL)))
        return found

    def ended(self, number: int) -> int:
        """Frames that the answer had, by its end; -1 while it goes on."""
        return next((piece.first + len(piece.frames) for piece, final in self.answers(number) if final), -1)

    async def close(self) -> None:
        if self.pipe is not None:
            await self.pipe.finish()
            self.pipe.abort()
        if self._reading is not None:
            await self._reading

    async def _read(self) -> None:
        while (received := await self.pipe.receive()) is not None:
            received.give(self.session, now_ms())
            self.events += self.session.events()
            await self.flush()
            self._changed.set()
        self.session.disconnected(now_ms())
        self.events += self.session.events()
        self._changed.set()


@contextlib.asynccontextmanager
async def device(settings: ServerLinkSettings, name: str = "pi", **hello: Any) -> AsyncIterator[Device]:
    made = Device(name, **hello)
    try:
        yield await made.connect(settings)
    finally:
        await made.close()


def test_windows_are_acknowledged_and_answered_and_counted_as_over_a_websocket(server: RunningServer) -> None:
    async def run() -> None:
        async with device(link(server), "windows", encoder="mobilenet", next_sequence=4) as made:
            prefix = int(server.backend.revision[:8], 16)
            for sequence in range(1, 4):
                payload = embedding_window(sequence, prefix)
                assert made.session.send_window(FrameType.EMBEDDING, sequence, 500.0 * sequence, payload)
            await made.flush()
            await made.until(lambda: made.session.acked_through == 3 and len(made.messages(Result)) == 3)
            count = made.pipe.count
            row = next(row for row in server.status()["devices"] if row["device"] == "windows")
            assert row["windows"] == 3 and row["address"] == "127.0.0.1"
            assert 3 * 256 < row["uplink_bytes"] <= count.up and row["downlink_bytes"] > 0
            assert count.packet_bytes[0] > count.up

    asyncio.run(run())


def test_a_weight_of_a_megabyte_comes_down_the_stream_whole(server: RunningServer) -> None:
    """Many times what may wait unsent here, chunk by chunk as over a WebSocket."""

    async def run() -> None:
        async with device(link(server), "bulk", encoder="mobilenet") as made:
            await made.until(lambda: bool(made.messages(Revision)))
            revision = made.messages(Revision)[0]
            held = seen = 0
            while held < revision.total_bytes:
                request = WeightsRequest(revision=revision.revision, base=revision.base, offset=held)
                made.session.send(request)
                await made.flush()
                await made.until(lambda seen=seen: len(made.media(FrameType.WEIGHTS)) > seen)
                chunks = made.media(FrameType.WEIGHTS)
                held, seen = sum(len(chunk) - 8 for chunk in chunks), len(chunks)
            assert held == revision.total_bytes > 1_000_000

    asyncio.run(run())


def test_a_wrong_token_is_refused_and_an_id_is_taken_over_as_over_a_websocket(server: RunningServer) -> None:
    async def run() -> None:
        async with device(link(server), "guarded", token="wrong") as made:
            assert [e.code for e in made.events if isinstance(e, Closed)] == ["bad_token"]
        async with device(link(server), "twice") as first, device(link(server), "twice", epoch=8) as second:
            await first.until(lambda: first.has(Closed))
            assert [e.code for e in first.events if isinstance(e, Closed)] == ["replaced"]
            assert second.session.is_open

    asyncio.run(run())


def test_whoever_says_nothing_is_shown_the_door(server: RunningServer) -> None:
    async def run() -> None:
        made = await Device("silent").connect(link(server), greet=False)
        assert await asyncio.wait_for(made.pipe.receive(), DEADLINE_S) is None
        await made.close()

    asyncio.run(run())


class Owner:
    """What a device's client asks of whoever it works for."""

    def __init__(self, queue: OfflineQueue) -> None:
        self.queue = queue
        self.opened_times = 0
        self.reasons: list[str] = []

    def hello(self) -> Hello:
        return Hello(
            protocol=1, device_id="queued", token="", epoch=self.queue.epoch, encoder="mobilenet",
            oldest_sequence=self.queue.oldest_sequence, next_sequence=self.queue.next_sequence,
        )  # fmt: skip

    async def opened(self, welcome: Any) -> None:
        self.opened_times += 1

    async def message(self, message: Any) -> None:
        pass

    async def media(self, frame: Any) -> None:
        pass

    async def acked(self, event: Any) -> None:
        pass

    def next_chunk(self) -> None:
        return None

    def closed(self, reason: str) -> None:
        self.reasons.append(reason)


def test_a_devices_queue_goes_up_once_across_a_restart_of_the_server(tmp_path: Path) -> None:
    async def run() -> None:
        settings = make_settings(tmp_path / "server", server={"quic_port": 0})
        first = await asyncio.to_thread(RunningServer, settings)
        port, prefix = first.app.state.quic.port, int(first.backend.revision[:8], 16)
        queue = OfflineQueue(tmp_path / "queue.sqlite")
        owner = Owner(queue)
        reached = link(first, first_backoff_s=0.05, longest_backoff_s=0.2)
        client = EdgeClient(reached, queue, owner, LinkEstimator(), seed=1)
        running_client = asyncio.create_task(client.run())

        def accept(count: int) -> None:
            for _ in range(count):
                payload = embedding_window(queue.next_window, prefix)
                assert queue.accept(FrameType.EMBEDDING, 1_000, queue.next_window, payload) is not None
            client.wake()

        try:
            accept(5)
            await _eventually(lambda: queue.pending == 0)
            await asyncio.to_thread(first.stop)
            accept(5)
            again = make_settings(tmp_path / "server", server={"quic_port": port})
            second = await asyncio.to_thread(RunningServer, again)
            try:
                await _eventually(lambda: queue.pending == 0)
                stored = second.backend.store.recent_windows("queued", 100)
                assert [record.sequence for record in stored] == list(range(1, 11))
                assert owner.opened_times == 2 and not any(record.error for record in stored)
                assert client.bytes.up > 10 * 256 and client.bytes.packet_bytes[0] > client.bytes.up
            finally:
                await client.finish("done")
                await asyncio.to_thread(second.stop)
        finally:
            running_client.cancel()
            await asyncio.gather(running_client, return_exceptions=True)
            queue.close()

    asyncio.run(run())


def test_the_certificate_decides_before_anything_is_said(server: RunningServer, tmp_path: Path) -> None:
    before = server.status()["totals"]["uplink_bytes"]
    url = link(server).url
    for settings, text in (
        ({"tls_fingerprint": "ab" * 32}, "got a certificate with the fingerprint"),
        ({}, "is not trusted"),
    ):
        with pytest.raises(ConnectionRefused, match=text):
            asyncio.run(open_pipe(ServerLinkSettings(url=url, **settings), UdpByteCount()))
    assert server.status()["totals"]["uplink_bytes"] == before
    (tmp_path / "no.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match=r"server\.tls_ca_file.*no PEM file"):
        asyncio.run(open_pipe(ServerLinkSettings(url=url, tls_ca_file=str(tmp_path / "no.pem")), UdpByteCount()))
    colons = ":".join(server.app.state.quic.fingerprint[at : at + 2].upper() for at in range(0, 64, 2))

    async def comes_in(**trust: Any) -> bool:
        async with device(ServerLinkSettings(url=url, **trust), "trusting") as made:
            return made.session.is_open

    assert asyncio.run(comes_in(tls_fingerprint=colons)) and asyncio.run(comes_in(tls_unverified=True))


def test_a_live_question_with_holes_is_answered_to_its_length(server: RunningServer) -> None:
    """Frames 3 to 5 and the last two never come; the echo's end says how many there were."""

    async def run() -> None:
        async with device(link(server), "holes") as made:
            await made.ask(41, 0, 1)
            for first in (1, 2, 6, 7, 8):
                await made.ask(41, first, 1)
            await made.ask(41, 11, 0, final=True)
            await made.until(lambda: made.ended(41) >= 0)
            assert made.ended(41) == 11
            assert sorted(p.first for p, final in made.answers(41) if not final) == [0, 1, 2, 6, 7, 8]
            assert not made.messages(Error)
            frames = server.status()["dialogue"]["frames"]
            assert frames["received"] >= 6 and frames["recovered"] + frames["concealed"] >= 5

    asyncio.run(run())


def test_a_datagram_begins_a_question_whose_beginning_it_has_overtaken(server: RunningServer) -> None:
    async def run() -> None:
        async with device(link(server), "overtaken") as made:
            for first in (2, 1, 0, 3):
                await made.ask(77, first, 1)
            await made.ask(77, 4, 0, final=True)
            await made.until(lambda: made.ended(77) >= 0)
            assert made.ended(77) == 4 and len(made.answers(77)) == 5

    asyncio.run(run())


def test_what_does_not_fit_into_a_datagram_goes_on_the_stream(server: RunningServer) -> None:
    async def run() -> None:
        async with device(link(server), "large") as made:
            await made.ask(5, 0, 3)
            await made.ask(5, 3, 3)  # live, 1,966 bytes
            assert not made.pipe._quic._datagrams_pending
            await made.ask(5, 6, 0, final=True)
            await made.until(lambda: made.ended(5) >= 0)
            assert made.ended(5) == 6

    asyncio.run(run())


def test_hostile_datagrams_change_nothing(server: RunningServer) -> None:
    """Before HELLO, random, frames that have no business there; then the session works as ever."""
    rng = random.Random(5)
    live = Utterance(9, 4, Kind.PCM16, 20.0, (SILENCE,), 0, True)
    good = encode_frame(Frame(FrameType.DIALOGUE, FrameFlag.NONE, 1, 0, pack_utterance(live)))

    async def run() -> None:
        made = Device("hostile")
        await made.connect(link(server), greet=False)
        try:
            hostile = [good, b"", b"\x00" * 1_000, encode_frame(Frame(FrameType.BYE, FrameFlag.NONE, 0, 0, b"\x80"))]
            for _ in range(40):
                damaged = bytearray(good)
                damaged[rng.randrange(34)] = rng.randrange(256)
                hostile += [bytes(damaged), rng.randbytes(rng.randrange(200))]
            for datagram in hostile[:4]:
                made.pipe._quic.send_datagram_frame(datagram)
            made.session.hello(made.hello, now_ms())
            await made.flush()
            await made.until(lambda: made.has(Opened))
            for datagram in hostile[1:]:
                made.pipe._quic.send_datagram_frame(datagram)
                made.pipe.transmit()
            await made.ask(10, 0, 1)
            await made.ask(10, 1, 0, final=True)
            await made.until(lambda: made.ended(10) >= 0)
            assert made.ended(10) == 1 and made.session.is_open
        finally:
            await made.close()

    asyncio.run(run())


def test_a_question_cut_by_a_restart_of_the_server_is_answered_once(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, server={"quic_port": 0}, dialogue={"responder": "echo", "learn": False})
    with running(settings) as first:
        port, fingerprint = first.app.state.quic.port, first.app.state.quic.fingerprint
        reached = link(first)

        async def begin() -> None:
            async with device(reached, "restarted") as made:
                await made.ask(3, 0, 1)
                await made.ask(3, 1, 1)
                await made.until(lambda: len(made.answers(3)) >= 1)
                await asyncio.to_thread(first.stop)
                await made.until(lambda: made.has(Closed))
                assert [e.code for e in made.events if isinstance(e, Closed)] == ["shutting_down"]

        asyncio.run(begin())
    again = make_settings(tmp_path, server={"quic_port": port}, dialogue={"responder": "echo", "learn": False})
    with running(again) as second:
        assert second.app.state.quic.fingerprint == fingerprint  # kept in the data folder

        async def finish() -> None:
            async with device(reached, "restarted") as made:
                dialogues = second.backend.dialogues
                for answered in (1, 2):  # whole, as after a lost link; then once more, as if its answer had been lost
                    await made.ask(3, 0, 4, live=False)
                    await made.ask(3, 4, 0, live=False, final=True)
                    await _eventually(lambda answered=answered: _ends(made, 3) == answered and dialogues.idle)
                assert sum(len(piece.frames) for piece, _ in made.answers(3)) == 4

        asyncio.run(finish())
        assert second.backend.dialogues.questions == 1


def test_a_server_that_does_not_read_slows_the_sender_down(server: RunningServer, monkeypatch: Any) -> None:
    """The reader stands still: at most so much is held here, the rest stays with the sender; then all of it comes."""
    monkeypatch.setattr(quic_pipe, "UNREAD_BYTES", 64 << 10)

    async def run() -> None:
        listener = server.app.state.quic
        held: list[Any] = []
        release = asyncio.Event()
        total = 1 << 20

        async def serve(pipe: Any) -> None:
            held.append(pipe)
            await release.wait()
            got = 0
            while got < total and (received := await pipe.receive()) is not None:
                got += len(received.data)
            held.append(got)

        from streamsplit.server.quic import QuicListener

        files = certificate_files("", "", server.settings.data_path)
        mine = await QuicListener.open("127.0.0.1", 0, files, serve)
        trust = ServerLinkSettings(url=f"quic://127.0.0.1:{mine.port}", tls_fingerprint=listener.fingerprint)
        pipe = await open_pipe(trust, UdpByteCount())
        ping = encode_frame(Frame(FrameType.AUDIO, FrameFlag.NUMBERED, 1, 0, bytes(16 << 10)))
        sent = 0

        async def send() -> None:
            nonlocal sent
            while sent < total:
                await pipe.send(ping)
                sent += len(ping)

        sending = asyncio.create_task(send())
        await _eventually(lambda: bool(held) and held[0]._unread > 64 << 10)
        await asyncio.sleep(0.3)  # long enough for all of it, were nothing in the way
        assert held[0]._unread < (64 << 10) + 2_000 and sent < total
        release.set()
        await asyncio.wait_for(sending, DEADLINE_S)
        await _eventually(lambda: len(held) == 2)
        assert held[1] >= total
        await pipe.finish()
        pipe.abort()
        await mine.close()

    asyncio.run(run())


def _ends(made: Device, number: int) -> int:
    return [final for _, final in made.answers(number)].count(True)


async def _eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "timed out"
        await asyncio.sleep(0.01)


def test_a_port_where_nobody_answers_is_one_line() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as mute:
        mute.bind(("127.0.0.1", 0))
        port = mute.getsockname()[1]
        settings = ServerLinkSettings(url=f"quic://127.0.0.1:{port}", tls_unverified=True, connect_timeout_s=0.3)
        with pytest.raises(ConnectionError, match=r"127\.0\.0\.1: no answer over UDP within .* does UDP get through\?"):
            asyncio.run(open_pipe(settings, UdpByteCount()))
    with pytest.raises(ConnectionError, match=f"nobody listens on UDP port {port}"):
        asyncio.run(open_pipe(settings, UdpByteCount()))


def test_every_address_of_a_host_is_tried_in_order_until_one_answers(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the resolver's answers are made up: nobody is at 127.0.0.3, and 127.0.0.2 says nothing."""
    port = server.app.state.quic.port
    addresses = ["127.0.0.3", "127.0.0.1"]

    async def resolved(self: Any, host: str, port: int, **_: Any) -> list[Any]:
        assert host == "server.test"
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (address, port)) for address in addresses]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolved)
    settings = link(server, url=f"quic://server.test:{port}")

    async def reach() -> None:
        async with device(settings, "many-homed") as made:
            assert made.session.is_open and made.pipe.peer == "127.0.0.1"

    asyncio.run(reach())
    addresses[:] = ["127.0.0.2", "127.0.0.3"]
    with socket.socket(type=socket.SOCK_DGRAM) as mute, pytest.raises(ConnectionError) as raised:
        mute.bind(("127.0.0.2", port))
        asyncio.run(open_pipe(settings.replace(connect_timeout_s=0.2), UdpByteCount()))
    told = str(raised.value)
    assert told.startswith(f"no QUIC connection to server.test:{port} (127.0.0.2: no answer over UDP within 0.1 s; ")
    assert f"127.0.0.3: nobody listens on UDP port {port})" in told and "\n" not in told


def test_a_taken_port_and_a_certificate_that_is_none_are_one_line(tmp_path: Path) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        with (
            pytest.raises(PortInUseError, match=r"UDP port \d+ on .* is taken"),
            running(make_settings(tmp_path, server={"quic_port": taken.getsockname()[1]})),
        ):
            pass
    (tmp_path / "a.pem").write_text("nothing")
    files = {"quic_port": 0, "quic_certificate": str(tmp_path / "a.pem"), "quic_key": str(tmp_path / "a.pem")}
    with pytest.raises(ConfigError, match="quic_certificate"), running(make_settings(tmp_path, server=files)):
        pass
    with pytest.raises(ConfigError, match="expected both or neither"):
        ServerSettings.from_mapping({"server": {"quic_certificate": "a.pem"}})


def test_the_key_that_is_made_is_for_its_owner_only(tmp_path: Path) -> None:
    first = certificate_files("", "", tmp_path / "data")
    assert certificate_files("", "", tmp_path / "data") == first and len(first.fingerprint) == 64
    assert first.key.stat().st_mode & 0o077 == 0


def test_without_aioquic_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for name in [name for name in sys.modules if name.startswith(("aioquic", "streamsplit.transport.quic"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "streamsplit.server.quic", raising=False)
    for name in ("aioquic", "aioquic.asyncio.protocol", "aioquic.asyncio.server", "aioquic.quic.configuration"):
        monkeypatch.setitem(sys.modules, name, None)  # what an import of something missing finds
    with pytest.raises(MissingExtraError, match=r"quic.* needs the extra 'quic': pip install -e '\.\[quic\]'"):
        asyncio.run(open_pipe(ServerLinkSettings(url="quic://127.0.0.1:1", tls_unverified=True), UdpByteCount()))
    with (
        pytest.raises(MissingExtraError, match=r"server\.quic_port.* needs the extra 'quic'"),
        running(make_settings(tmp_path, server={"quic_port": 0})),
    ):
        pass


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"url": "quic://host"}, "quic://host:port"),
        ({"url": "quic://host:1/v1/stream"}, "quic://host:port"),
        ({"url": "ws://host:1", "tls_fingerprint": "ab" * 32}, "is for quic:// only"),
        ({"url": "quic://host:1", "tls_fingerprint": "ab"}, "expected 64 hex digits"),
        ({"url": "quic://host:1", "tls_unverified": True, "tls_ca_file": "x"}, "one way to know the server"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        ServerLinkSettings.from_mapping(values)


def test_the_lossy_proxy_loses_delays_and_carries_both_ways() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        got: list[tuple[bytes, float]] = []

        class Echo(asyncio.DatagramProtocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport

            def datagram_received(self, data: bytes, addr: Any) -> None:
                self.transport.sendto(data, addr)

        class Sender(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: Any) -> None:
                got.append((data, time.monotonic()))

        echo, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
        settings = PacketLinkSettings(one_way_ms=15.0, loss=0.2)
        async with LossyProxy(echo.get_extra_info("sockname"), settings, seed=3) as proxy:
            sender, _ = await loop.create_datagram_endpoint(Sender, remote_addr=proxy.address)
            sent = {}
            for place in range(200):
                data = place.to_bytes(4, "little")
                sent[data] = time.monotonic()
                sender.sendto(data)
                await asyncio.sleep(0)
            await _eventually(lambda: len(got) + proxy.up.lost + proxy.down.lost == 200)
            assert proxy.up.lost > 15 and proxy.down.lost > 10 and proxy.down.packets == 200 - proxy.up.lost
            assert min(at - sent[data] for data, at in got) >= 0.029
            sender.close()
        echo.close()

    asyncio.run(run())


def test_the_command_says_where_devices_come_in_over_quic_and_ends_in_order(tmp_path: Path) -> None:
    import json
    import signal
    import subprocess

    config = tmp_path / "server.yaml"
    listen = {"port": 0, "quic_port": 0, "data_dir": str(tmp_path)}
    config.write_text(json.dumps({"server": listen, "training": {"enabled": False}}))
    process = subprocess.Popen(
        [sys.executable, "-m", "streamsplit.cli.main", "server", "--config", str(config), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["event"] == "ready" and len(ready["quic"]["fingerprint"]) == 64
        settings = ServerLinkSettings(
            url=f"quic://127.0.0.1:{ready['quic']['port']}", tls_fingerprint=ready["quic"]["fingerprint"]
        )

        async def until_it_ends() -> list[str]:
            async with device(settings, "visitor") as made:
                process.send_signal(signal.SIGTERM)
                await made.until(lambda: made.has(Closed))
                return [e.code for e in made.events if isinstance(e, Closed)]

        assert asyncio.run(until_it_ends()) == ["shutting_down"]
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()
