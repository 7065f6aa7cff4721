"""The device's client against a tiny server over real sockets: delivery, resuming, backoff, refusals, byte counts."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from tiny_server import TinyServer

from streamsplit.edge.client import EdgeClient
from streamsplit.edge.queue import OfflineQueue
from streamsplit.edge.settings import ServerLinkSettings
from streamsplit.errors import ConnectionRefused
from streamsplit.network.shaper import ShapedProxy
from streamsplit.network.trace import constant_trace
from streamsplit.splitting.link import LinkEstimator
from streamsplit.transport.count import PACKET_HEADER_BYTES, ByteCount
from streamsplit.wire.messages import Hello, Result, Stats, Throttle
from streamsplit.wire.types import FrameType


class Owner:
    """Greets, and writes down what it is told."""

    def __init__(self, queue: OfflineQueue, token: str = "secret") -> None:
        self.queue, self.token = queue, token
        self.opened_at: list[float] = []
        self.messages: list = []
        self.chunks: list[tuple[bytes, bool]] = []
        self.media_frames: list = []
        self.acks: list[int] = []
        self.reasons: list[str] = []

    def hello(self) -> Hello:
        return Hello(
            protocol=1, device_id="edge-1", token=self.token, epoch=self.queue.epoch,
            oldest_sequence=self.queue.oldest_sequence, next_sequence=self.queue.next_sequence,
        )  # fmt: skip

    async def opened(self, welcome) -> None:
        self.opened_at.append(time.monotonic())

    async def message(self, message) -> None:
        self.messages.append(message)

    async def media(self, frame) -> None:
        self.media_frames.append(frame)

    async def acked(self, event) -> None:
        self.acks.append(event.through)

    def next_chunk(self):
        return self.chunks.pop(0) if self.chunks else None

    def closed(self, reason: str) -> None:
        self.reasons.append(reason)


async def until(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.005)


def fill(queue: OfflineQueue, count: int, size: int = 500) -> None:
    for _ in range(count):
        assert queue.accept(FrameType.FEATURES, 1000, queue.next_window, bytes(size)) is not None


class Rig:
    """Queue, owner and client of one device, running against a URL."""

    def __init__(self, tmp_path: Path, url: str, token: str = "secret", **settings) -> None:
        self.queue = OfflineQueue(tmp_path / "q.sqlite")
        self.owner = Owner(self.queue, token)
        self.link = LinkEstimator()
        settings = {"first_backoff_s": 0.05, "longest_backoff_s": 0.2, **settings}
        self.client = EdgeClient(ServerLinkSettings(url=url, **settings), self.queue, self.owner, self.link, seed=1)

    async def __aenter__(self) -> Rig:
        self.task = asyncio.create_task(self.client.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.finish("test over")
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.queue.close()


def sequences(server: TinyServer) -> list[int]:
    return sorted(sequence for _, _, sequence in server.windows)


def test_windows_arrive_in_order_and_leave_the_queue_and_results_come_back(tmp_path: Path) -> None:
    async def run() -> None:
        began_s = time.monotonic()
        async with TinyServer().running() as server, Rig(tmp_path, server.url) as rig:
            fill(rig.queue, 30)
            rig.client.wake()
            await until(lambda: rig.queue.pending == 0)
            await until(lambda: sum(isinstance(m, Result) for m in rig.owner.messages) == 30)
            await until(lambda: rig.owner.acks[-1] == 30)  # told after the queue has forgotten them
            assert sequences(server) == list(range(1, 31)) and server.repeats == 0
            took_ms = (time.monotonic() - began_s) * 1000
            assert 0 < rig.link.estimate(time.monotonic() * 1000).rtt_ms < took_ms

    asyncio.run(run())


def test_a_lost_connection_resumes_and_nothing_is_doubled_or_lost(tmp_path: Path) -> None:
    async def run() -> None:
        async with TinyServer().running() as server, Rig(tmp_path, server.url) as rig:
            for _ in range(6):
                fill(rig.queue, 10)
                rig.client.wake()
                await until(lambda: len(server.windows) > 3)
                opened = len(rig.owner.opened_at)
                for connection in list(server.connections):
                    connection.transport.abort()
                await until(lambda opened=opened: len(rig.owner.opened_at) > opened)
            await until(lambda: rig.queue.pending == 0)
            await until(lambda: len({m.sequence for m in rig.owner.messages if isinstance(m, Result)}) == 60)
            assert sequences(server) == list(range(1, 61)) and server.repeats == 0
            assert len(server.sessions) == 1  # always the same session

    asyncio.run(run())


def test_windows_not_acknowledged_are_sent_again_after_a_restart_of_the_device(tmp_path: Path) -> None:
    async def run() -> None:
        async with TinyServer().running() as server:
            server.acknowledging = False
            async with Rig(tmp_path, server.url) as rig:
                fill(rig.queue, 5)
                rig.client.wake()
                await until(lambda: len(server.windows) == 5)
                assert rig.queue.pending == 5
            server.windows.clear()
            server.acknowledging = True
            async with Rig(tmp_path, server.url) as rig:
                await until(lambda: rig.queue.pending == 0)
            assert sequences(server) == [1, 2, 3, 4, 5]

    asyncio.run(run())


def test_it_connects_when_the_server_comes_up_later(tmp_path: Path) -> None:
    async def run() -> None:
        server = TinyServer()
        async with server.running():
            url = server.url
        async with Rig(tmp_path, url) as rig:
            fill(rig.queue, 3)
            await until(lambda: len(rig.owner.reasons) >= 3)
            assert not rig.client.is_open
            async with server.running():
                await until(lambda: rig.queue.pending == 0)
                assert sequences(server) == [1, 2, 3]

    asyncio.run(run())


def test_attempts_back_off_exponentially_with_jitter_and_a_bound(tmp_path: Path, monkeypatch) -> None:
    delays: list[float] = []
    real_sleep = asyncio.sleep

    async def note(seconds: float, *args: object) -> None:
        if seconds > 0.02:
            delays.append(seconds)
            seconds = 0.0
        await real_sleep(seconds)

    async def run() -> None:
        monkeypatch.setattr("streamsplit.edge.client.asyncio.sleep", note)
        async with Rig(tmp_path, "ws://127.0.0.1:9/v1/stream", first_backoff_s=0.5, longest_backoff_s=8.0):
            while len(delays) < 12:
                await real_sleep(0.01)

    asyncio.run(run())
    for attempt, delay in enumerate(delays[:12]):
        longest = min(0.5 * 2**attempt, 8.0)
        assert 0.5 * longest <= delay <= longest
    assert len({round(delay / 8.0, 3) for delay in delays[5:12]}) > 3  # not in step with other devices


def test_a_wrong_token_ends_it_with_one_clear_error(tmp_path: Path) -> None:
    async def run() -> None:
        async with TinyServer().running() as server:
            rig = Rig(tmp_path, server.url, token="wrong")
            with pytest.raises(ConnectionRefused, match="bad_token"):
                await asyncio.wait_for(rig.client.run(), 5)
            assert len(server.hellos) == 1

    asyncio.run(run())


def test_a_url_that_is_no_stream_ends_it_with_one_clear_error(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectionRefused, match=r"HTTP 404.*v1/stream"):
            await asyncio.wait_for(Rig(tmp_path, f"ws://127.0.0.1:{port}/other").client.run(), 5)
        server.close()

    asyncio.run(run())


def test_a_server_that_knows_other_windows_gets_a_new_epoch(tmp_path: Path) -> None:
    async def run() -> None:
        async with TinyServer().running() as server, Rig(tmp_path, server.url) as rig:
            first = rig.queue.epoch
            fill(rig.queue, 5)
            rig.client.wake()
            await until(lambda: rig.queue.pending == 0)
            server.windows[("edge-1", first, 9)] = next(iter(server.windows.values()))  # as if ours were an old copy
            server.sessions.clear()
            fill(rig.queue, 2)
            for connection in list(server.connections):
                connection.transport.abort()
            await until(lambda: rig.queue.epoch != first and rig.queue.pending == 0)
            assert sorted(s for _, epoch, s in server.windows if epoch == rig.queue.epoch) == [1, 2]

    asyncio.run(run())


def test_bytes_are_those_on_the_socket(tmp_path: Path) -> None:
    async def run() -> None:
        async with TinyServer().running() as server:
            target = ("127.0.0.1", server.port)
            async with (
                ShapedProxy(target, constant_trace(50e6, 2.0)) as proxy,
                Rig(tmp_path, f"ws://127.0.0.1:{proxy.address[1]}/v1/stream") as rig,
            ):
                for size in (10, 100, 200, 70_000):
                    fill(rig.queue, 1, size)
                rig.client.wake()
                await until(lambda: sum(isinstance(m, Result) for m in rig.owner.messages) == 4)
                await asyncio.sleep(0.1)
                assert rig.client.bytes.up == proxy.uplink_bytes > 70_310
                assert rig.client.bytes.down == proxy.downlink_bytes > 0
                up, down = rig.client.bytes.packet_bytes
                assert up > rig.client.bytes.up + 49 * PACKET_HEADER_BYTES and down > rig.client.bytes.down

    asyncio.run(run())


def test_packet_bytes_add_headers_of_segments_and_of_acknowledgements() -> None:
    count = ByteCount()
    count.sent(1448 * 2)
    count.received(100)
    assert count.packet_bytes == (2896 + 2 * 52, 100 + 52 + 52)


def test_a_throttled_device_spaces_its_windows(tmp_path: Path) -> None:
    async def run() -> None:
        async with TinyServer().running() as server, Rig(tmp_path, server.url) as rig:
            server.on_open = lambda session: session.send(Throttle(max_in_flight=1, min_interval_ms=60))
            await until(lambda: any(isinstance(m, Throttle) for m in rig.owner.messages))
            started = time.monotonic()
            fill(rig.queue, 6)
            rig.client.wake()
            await until(lambda: rig.queue.pending == 0)
            assert time.monotonic() - started > 5 * 0.055

    asyncio.run(run())


def test_a_full_uplink_does_not_delay_what_comes_down(tmp_path: Path) -> None:
    async def run() -> None:
        async with TinyServer().running() as server:
            target = ("127.0.0.1", server.port)
            slow, fast = constant_trace(0.4e6, 10.0), constant_trace(50e6, 10.0)
            async with (
                ShapedProxy(target, slow, fast, backlog_bytes=8 << 10) as proxy,
                Rig(tmp_path, f"ws://127.0.0.1:{proxy.address[1]}/v1/stream") as rig,
            ):
                await until(lambda: rig.client.is_open)
                fill(rig.queue, 8, 60_000)  # ten seconds of uplink
                rig.client.wake()
                await asyncio.sleep(0.5)
                session = server.sessions[-1]
                started = time.monotonic()
                session.send(Throttle(max_in_flight=4))
                for connection in server.connections:
                    await server._flush(session, connection)
                await until(lambda: any(isinstance(m, Throttle) for m in rig.owner.messages), 3)
                assert time.monotonic() - started < 1.0

    asyncio.run(run())


def test_messages_and_uploads_go_up_beside_windows(tmp_path: Path) -> None:
    async def run() -> None:
        async with TinyServer().running() as server, Rig(tmp_path, server.url) as rig:
            await until(lambda: rig.client.is_open)
            rig.owner.chunks = [(b"a" * 32_000, False), (b"b" * 100, True)]
            assert rig.client.send(Stats(cpu=0.5))
            await until(lambda: len(server.media) == 2 and server.messages)
            assert server.messages[0].cpu == 0.5
            assert [len(frame.payload) for frame in server.media] == [32_000, 100]
            assert [bool(frame.flags) for frame in server.media] == [False, True]

    asyncio.run(run())


def test_without_a_connection_messages_are_not_queued(tmp_path: Path) -> None:
    async def run() -> None:
        async with Rig(tmp_path, "ws://127.0.0.1:9/v1/stream") as rig:
            assert rig.client.send(Stats()) is False

    asyncio.run(run())
