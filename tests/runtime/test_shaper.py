"""The shaped proxy over real loopback sockets: rate, delay, order, outages."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress

import numpy as np
import pytest

from streamsplit.errors import PortInUseError
from streamsplit.network.fine_loop import run_finely
from streamsplit.network.shaper import ShapedProxy
from streamsplit.network.trace import BandwidthTrace, constant_trace, make_trace

pytestmark = pytest.mark.realtime


@asynccontextmanager
async def sink(echo: bool = False) -> AsyncIterator[tuple[tuple[str, int], list[tuple[float, bytes]]]]:
    """A server that notes (time, bytes) as they arrive, and echoes if asked."""
    got: list[tuple[float, bytes]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            got.append((time.monotonic(), data))
            if echo:
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname(), got
    finally:
        server.close()


async def wait_for(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.005)


def test_the_rate_follows_the_trace_and_bytes_keep_their_order() -> None:
    async def run() -> None:
        data = os.urandom(500_000)
        async with sink() as (target, got):
            trace = make_trace([0.0, 1.0], [1e6, 3e6], 0.0, duration_s=100.0)
            async with ShapedProxy(target, trace) as proxy:
                _, writer = await asyncio.open_connection(*proxy.address)
                started = time.monotonic()
                writer.write(data)
                await wait_for(lambda: sum(len(d) for _, d in got) == len(data))
                took = got[-1][0] - started
                assert took == pytest.approx(1.0 + 3e6 / 3e6, rel=0.07)  # 1 Mbit in the first second, 3 Mbit after
                in_first = sum(len(d) for at, d in got if at - started < 0.9)
                assert in_first == pytest.approx(0.9 * 1e6 / 8, rel=0.1)
                assert hashlib.sha256(b"".join(d for _, d in got)).digest() == hashlib.sha256(data).digest()
                assert proxy.uplink_bytes == len(data)
                writer.close()

    asyncio.run(run())


def test_a_round_trip_takes_the_links_delay() -> None:
    async def run() -> None:
        async with (
            sink(echo=True) as (target, _),
            ShapedProxy(target, constant_trace(100e6, rtt_ms=120.0)) as proxy,
        ):
            reader, writer = await asyncio.open_connection(*proxy.address)
            writer.write(b"first")  # waits for the emulated handshake too
            await reader.readexactly(5)
            trips = []
            for _ in range(5):
                started = time.monotonic()
                writer.write(b"x" * 100)
                await reader.readexactly(100)
                trips.append((time.monotonic() - started) * 1000)
            assert sorted(trips)[2] == pytest.approx(120.0, rel=0.1)
            writer.close()

    asyncio.run(run())


def test_a_slow_link_is_felt_by_the_sender() -> None:
    async def run() -> None:
        async with (
            sink() as (target, _),
            ShapedProxy(target, constant_trace(0.2e6, 0.0), backlog_bytes=16 << 10) as proxy,
        ):
            _, writer = await asyncio.open_connection(*proxy.address)
            sent = 0
            deadline = time.monotonic() + 1.0
            while time.monotonic() < deadline:
                writer.write(bytes(8192))
                sent += 8192
                try:
                    await asyncio.wait_for(writer.drain(), deadline - time.monotonic())
                except asyncio.TimeoutError:
                    break
            assert proxy.uplink_bytes == pytest.approx(0.2e6 / 8, rel=0.25)
            assert (
                sent < 8_000_000
            )  # system buffers (Linux: up to 4 MiB on a side), not all that one can write in a second
            writer.transport.abort()

    asyncio.run(run())


def test_a_tunnel_delays_and_loses_nothing() -> None:
    async def run() -> None:
        async with sink() as (target, got), ShapedProxy(target, constant_trace(10e6, 10.0)) as proxy:
            _, writer = await asyncio.open_connection(*proxy.address)
            writer.write(b"before")
            await wait_for(lambda: len(got) == 1)
            proxy.cut(0.6, reset=False)
            await asyncio.sleep(0)
            started = time.monotonic()
            writer.write(b"during")
            await wait_for(lambda: len(got) == 2)
            assert got[1][0] - started == pytest.approx(0.6, abs=0.1)
            writer.close()

    asyncio.run(run())


def test_a_cut_breaks_connections_and_refuses_new_ones_until_it_ends() -> None:
    async def run() -> None:
        async with sink(echo=True) as (target, _), ShapedProxy(target, constant_trace(10e6, 10.0)) as proxy:
            reader, writer = await asyncio.open_connection(*proxy.address)
            writer.write(b"hello")
            await reader.readexactly(5)
            proxy.cut(0.5)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                reader, writer = await asyncio.open_connection(*proxy.address)
                await reader.readexactly(1)
            await asyncio.sleep(0.55)
            reader, writer = await asyncio.open_connection(*proxy.address)
            writer.write(b"again")
            assert await reader.readexactly(5) == b"again"
            writer.close()

    asyncio.run(run())


def test_it_runs_in_a_thread_of_its_own_and_stops() -> None:
    async def run() -> None:
        async with sink(echo=True) as (target, _):
            proxy = ShapedProxy(target, constant_trace(5e6, 0.0)).start_in_thread()
            try:
                reader, writer = await asyncio.open_connection(*proxy.address)
                writer.write(b"ping")
                assert await reader.readexactly(4) == b"ping"
            finally:
                await asyncio.to_thread(proxy.stop_thread)
            with pytest.raises(OSError):
                await asyncio.open_connection(*proxy.address)

    asyncio.run(run())


def test_a_taken_port_is_a_clear_error() -> None:
    async def run() -> None:
        async with sink() as (target, _):
            with pytest.raises(PortInUseError, match="choose another port"):
                await ShapedProxy(target, constant_trace(1e6), listen=target).start()

    asyncio.run(run())


WITHIN = (
    0.05  # of what the trace says; each figure is a median of three, so that a hiccup of the machine does not count
)
FIRST_S = 0.3  # of a measurement is left out: the connection opens and buffers fill


async def arrivals(trace: BandwidthTrace, seconds: float) -> list[tuple[float, int]]:
    """(the link's time, bytes) as they arrive while a sender gives all it can."""
    async with sink() as (target, got), ShapedProxy(target, trace) as proxy:
        _, writer = await asyncio.open_connection(*proxy.address)
        zero_s = time.monotonic() - proxy.elapsed_s
        while (left_s := seconds - proxy.elapsed_s) > 0:
            writer.write(bytes(16384))
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(writer.drain(), left_s)
        writer.transport.abort()
        return [(at - zero_s, len(data)) for at, data in got]


def median_of_three(measure: Callable[[], Coroutine[None, None, float]]) -> float:
    return statistics.median(run_finely(measure()) for _ in range(3))  # as a proxy in a thread of its own is run


@pytest.mark.parametrize("mbps", [0.5, 4.0, 30.0])
def test_the_measured_rate_is_the_traces(mbps: float) -> None:
    async def measure() -> float:
        steady = [(at, size) for at, size in await arrivals(constant_trace(mbps * 1e6, 20.0), 1.2) if at > FIRST_S]
        return sum(size for _, size in steady[1:]) * 8e-6 / (steady[-1][0] - steady[0][0])

    assert median_of_three(measure) == pytest.approx(mbps, rel=WITHIN)


@pytest.mark.parametrize("rtt_ms", [20.0, 55.0, 120.0])
def test_the_measured_round_trip_is_the_traces(rtt_ms: float) -> None:
    async def measure() -> float:
        async with sink(echo=True) as (target, _), ShapedProxy(target, constant_trace(100e6, rtt_ms)) as proxy:
            reader, writer = await asyncio.open_connection(*proxy.address)
            trips = []
            for _ in range(8):  # the first waits for the connection too
                started = time.monotonic()
                writer.write(b"x" * 100)
                await reader.readexactly(100)
                trips.append((time.monotonic() - started) * 1000)
            writer.transport.abort()
            return min(trips)  # a busy machine only ever adds

    assert median_of_three(measure) == pytest.approx(rtt_ms, rel=WITHIN)


def test_the_measured_silence_of_an_outage_is_the_traces() -> None:
    async def measure() -> float:
        trace = make_trace([0.0, 0.5, 1.0], [8e6, 0.0, 8e6], 20.0, duration_s=100.0)
        times = [at for at, _ in await arrivals(trace, 1.2)]
        silences = [after - before for before, after in itertools.pairwise(times)]
        return max(silences) - statistics.median(silences)

    assert median_of_three(measure) == pytest.approx(0.5, rel=WITHIN)


def test_a_lost_segment_is_late_on_the_wire_too_and_nothing_overtakes_it() -> None:
    async def run() -> None:
        trace = make_trace([0.0, 0.3, 0.5], 8e6 * np.ones(3), 40.0, [0.0, 1.0, 0.0], duration_s=100.0)
        data = os.urandom(400_000)
        async with sink() as (target, got), ShapedProxy(target, trace, seed=1) as proxy:
            _, writer = await asyncio.open_connection(*proxy.address)
            zero_s = time.monotonic() - proxy.elapsed_s
            for start in range(0, len(data), 10_000):
                writer.write(data[start : start + 10_000])
                await writer.drain()
            await wait_for(lambda: sum(len(piece) for _, piece in got) == len(data))
            assert b"".join(piece for _, piece in got) == data
            times = [at - zero_s for at, _ in got]
            longest = max(range(1, len(times)), key=lambda index: times[index] - times[index - 1])
            assert times[longest] - times[longest - 1] > 0.03  # at least about a round trip of silence
            assert 0.3 < times[longest - 1] < 0.9
            writer.close()

    asyncio.run(run())
