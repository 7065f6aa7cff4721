"""Whether the live shaper does what its trace says: rate, round trip, outage and losses measured from outside.

python -m benchmarks.shaper [--seconds 3]

Real loopback sockets through the proxy, as a device has them. Every figure is a median of repeats and stands beside
what the trace asked for; the deviation is allowed to be 5 %. Round trips are less the same exchange without the proxy.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress

import numpy as np

from benchmarks.record import record
from streamsplit.network.fine_loop import run_finely
from streamsplit.network.shaper import ShapedProxy
from streamsplit.network.statistics import binned_mbps
from streamsplit.network.trace import BandwidthTrace, constant_trace, generate_trace, make_trace

ALLOWED = 0.05
REPEATS = 3
RATES_BPS = (0.2e6, 1e6, 5e6, 20e6, 60e6)
RTTS_MS = (10.0, 55.0, 120.0, 400.0)
OUTAGES_S = (0.3, 1.0, 3.0)
SEED = 0

Arrivals = list[tuple[float, int]]
Measure = Callable[[float], Coroutine[None, None, float]]


@asynccontextmanager
async def shaped(trace: BandwidthTrace, echo: bool = False) -> AsyncIterator[tuple[ShapedProxy, Arrivals]]:
    """A server behind a shaped link, and what has arrived there: (monotonic time, bytes)."""
    got: Arrivals = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.CancelledError):
            while data := await reader.read(1 << 16):
                got.append((time.monotonic(), len(data)))
                if echo:
                    writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        async with ShapedProxy(server.sockets[0].getsockname(), trace, seed=SEED) as proxy:
            yield proxy, got
    finally:
        server.close()


async def send_for(proxy: ShapedProxy, seconds: float) -> float:
    """Sends as much as goes until the link's time is `seconds`; gives the monotonic time of its start."""
    _, writer = await asyncio.open_connection(*proxy.address)
    zero_s = time.monotonic() - proxy.elapsed_s
    try:
        while (left_s := seconds - proxy.elapsed_s) > 0:
            writer.write(bytes(16384))
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(writer.drain(), left_s)
    finally:
        writer.transport.abort()
    return zero_s


async def rate_bps(asked_bps: float, seconds: float) -> float:
    """Payload rate between the first arrival after a fifth of the time and the last."""
    async with shaped(constant_trace(asked_bps, 20.0)) as (proxy, got):
        zero_s = await send_for(proxy, seconds)
        steady = [(at, size) for at, size in got if at - zero_s > seconds / 5]
        return sum(size for _, size in steady[1:]) * 8 / (steady[-1][0] - steady[0][0])


async def rtt_ms(asked_ms: float) -> float:
    """What the link adds to an exchange of 100 bytes: the least of fifteen over it and of fifteen without it."""
    async with shaped(constant_trace(100e6, asked_ms), echo=True) as (proxy, _):
        return await exchange_ms(proxy.address) - await exchange_ms(proxy.target)


async def exchange_ms(address: tuple[str, int]) -> float:
    """The least of fifteen, as a busy machine only adds; one before them waits for the connection too."""
    reader, writer = await asyncio.open_connection(*address)
    trips = []
    for _ in range(16):
        started = time.monotonic()
        writer.write(bytes(100))
        await reader.readexactly(100)
        trips.append((time.monotonic() - started) * 1000)
    writer.transport.abort()
    return min(trips[1:])


async def outage_s(asked_s: float) -> float:
    """How much longer the silence of a link that stands still for a while is than the usual one between pieces."""
    trace = make_trace([0.0, 0.7, 0.7 + asked_s], [5e6, 0.0, 5e6], 20.0, duration_s=100.0)
    async with shaped(trace) as (proxy, got):
        await send_for(proxy, 1.4 + asked_s)
        silences_s = np.diff([at for at, _ in got])
        return float(silences_s.max() - np.median(silences_s))


async def following(seconds: float) -> tuple[float, float]:
    """(median, 90th percentile) deviation of a link like the measured drives from its trace in bins of 2 s."""
    trace = generate_trace(seconds, SEED, level=0.5, rate_scale=0.5)
    trace = trace._replace(loss=None)  # losses move bytes between bins, as they should
    async with shaped(trace) as (proxy, got):
        zero_s = await send_for(proxy, seconds)
        edges = np.arange(0, seconds - 1, 2.0)
        found, _ = np.histogram([at - zero_s for at, _ in got], edges, weights=[size * 8e-6 / 2 for _, size in got])
    # What leaves the modem arrives half a round trip later; bins are long beside that.
    asked = binned_mbps(trace, 2.0)[: len(found)]
    deviation = np.abs(found - asked)[1:] / np.maximum(asked, 0.2)[1:]
    return float(np.median(deviation)), float(np.percentile(deviation, 90))


def table(
    name: str, unit: str, asked: tuple[float, ...], measure: Measure, scale: float = 1.0
) -> list[dict[str, float]]:
    """Rows of asked, measured (median of repeats) and deviation; printed as they come."""
    rows = []
    for value in asked:
        found = statistics.median(run_finely(measure(value)) for _ in range(REPEATS))
        rows.append({f"asked_{unit}": value * scale, f"measured_{unit}": found * scale, "deviation": found / value - 1})
        print(f"{name} {value * scale:g} {unit}: {found * scale:.4g} ({found / value - 1:+.2%})", flush=True)
    return rows


def main() -> None:
    """Measures, prints, writes benchmarks/results/shaper.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of sending for each rate (default 3)")
    arguments = parser.parse_args()
    figures = {
        "rate": table("rate", "mbps", RATES_BPS, lambda value: rate_bps(value, arguments.seconds), 1e-6),
        "round_trip": table("round trip", "ms", RTTS_MS, rtt_ms),
        "outage": table("outage", "s", OUTAGES_S, outage_s),
    }
    middle, high = run_finely(following(20.0))
    print(f"following a changing link, bins of 2 s: median deviation {middle:.2%}, p90 {high:.2%}")
    worst = max(abs(row["deviation"]) for rows in figures.values() for row in rows)
    print(f"worst deviation {worst:.2%}, allowed {ALLOWED:.0%}")
    settings = {"seconds": arguments.seconds, "repeats": REPEATS, "allowed": ALLOWED}
    followed = {"bin_s": 2.0, "seconds": 20.0, "median_deviation": middle, "p90_deviation": high}
    print(record("shaper", {**figures, "following": followed, "worst_deviation": worst}, settings, [SEED]))


if __name__ == "__main__":
    main()
