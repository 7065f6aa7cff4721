"""Weights cross a slow link beside windows and results: neither is in the other's way, in both directions."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from server_harness import RunningServer, embedding_window, make_settings, running, unit
from tiny_server import TinyServer

from streamsplit.edge.client import EdgeClient
from streamsplit.edge.counters import Counters
from streamsplit.edge.decisions import Decisions
from streamsplit.edge.downlink import Downlink
from streamsplit.edge.policies import DevicePolicy
from streamsplit.edge.queue import OfflineQueue
from streamsplit.edge.settings import EdgeSettings
from streamsplit.edge.sync import Arrived
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.network.shaper import ShapedProxy
from streamsplit.network.trace import constant_trace
from streamsplit.splitting.decision_log import DecisionLog
from streamsplit.splitting.device import device_profile
from streamsplit.splitting.link import LinkEstimator
from streamsplit.splitting.table import packaged_table
from streamsplit.weights.delta import pack_full
from streamsplit.weights.revision import encoder_weights, revision_of, revision_prefix
from streamsplit.weights.transfer import WeightTransfer
from streamsplit.wire.messages import Revision, WeightsRequest
from streamsplit.wire.types import FrameType

pytestmark = pytest.mark.realtime

DIM = 64
SMALL = {"width": 0.25, "embedding_dim": DIM}  # 0.95 MB
WINDOW_S = 0.1


class Device:
    """The device's own client and downlink, with a queue that the test fills and a model that adopts nothing."""

    def __init__(self, folder: Path, port: int) -> None:
        settings = EdgeSettings.from_mapping({
            "device": {"id": "edge-1", "state_dir": str(folder)},
            "server": {"url": f"ws://127.0.0.1:{port}/v1/stream", "token": "secret"},
        })  # fmt: skip
        folder.mkdir(exist_ok=True)
        self.queue = OfflineQueue(folder / "q.sqlite")
        self.latencies_ms: list[float] = []
        self.connected = False  # and all that belongs to a new connection has been sent
        self.problems: list[str] = []
        self.arrived: list[Arrived] = []  # whole transfers, handed over to be adopted
        model: Any = SimpleNamespace(revision="", name="mobilenet", adopt_mixture=lambda message: None)
        policies = DevicePolicy(settings, packaged_table("mobilenet"), self.problems.append)
        decisions = Decisions(
            DecisionLog(device_profile("host")), Counters(), policy=lambda: policies.policy,
            link=lambda: LinkEstimator().estimate(0.0), note=self._note,
        )  # fmt: skip
        self.downlink = Downlink(
            settings, self.queue, model, None, policies, decisions, Counters(),  # type: ignore[arg-type]
            hand_over=self._hand_over, note=self._note, problem=self.problems.append, software="test",
        )  # fmt: skip
        self.client = EdgeClient(settings.server, self.queue, self.downlink, LinkEstimator(), seed=1)
        self.downlink.client = self.client
        self.task = asyncio.create_task(self.client.run())

    def _hand_over(self, work: Any) -> None:
        if isinstance(work, partial) and work.args and isinstance(work.args[0], Arrived):
            self.arrived.append(work.args[0])

    def _note(self, kind: str, **values: Any) -> None:
        if kind == "result":
            self.latencies_ms.append(values["latency_ms"])
        if kind == "link":
            self.connected = values["up"]

    async def listen(self, prefix: int) -> None:
        """A window every 100 ms, for ever."""
        while True:
            window = self.queue.next_window
            payload = embedding_window(window, prefix, unit(window, DIM))
            self.queue.accept(FrameType.EMBEDDING, int(1000 * time.time()) & 0xFFFF_FFFF, window, payload)
            self.client.wake()
            await asyncio.sleep(WINDOW_S)


@contextlib.asynccontextmanager
async def device(folder: Path, port: int) -> AsyncIterator[Device]:
    made = Device(folder, port)
    try:
        yield made
    finally:
        await made.client.finish("test over")
        made.task.cancel()
        await asyncio.gather(made.task, return_exceptions=True)
        made.queue.close()


async def until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.005)


async def listened(made: Device, prefix: int, condition: Callable[[], bool], seconds: float) -> None:
    """Waits while windows go up and results come down."""
    task = asyncio.create_task(made.listen(prefix))
    try:
        await until(lambda: condition() or made.task.done(), seconds)
        if made.task.done():
            made.task.result()
    finally:
        task.cancel()


def p95(values: list[float]) -> float:
    return float(np.percentile(values, 95))


def test_results_come_in_time_while_weights_come_down_a_slow_link(tmp_path: Path) -> None:
    weights = encoder_weights(make_encoder(EncoderSettings(**SMALL)))
    revision = revision_of(weights)

    async def main(server: RunningServer) -> None:
        link = constant_trace(1e6, 100.0)
        async with (
            ShapedProxy(("127.0.0.1", server.port), link, link) as proxy,
            device(tmp_path / "device", proxy.address[1]) as made,
        ):
            await until(lambda: made.downlink.download.under_way, 5)
            before, started = proxy.downlink_bytes, time.monotonic()
            await listened(made, revision_prefix(revision), lambda: bool(made.arrived), 20)
            seconds = time.monotonic() - started
            used = 8 * (proxy.downlink_bytes - before) / 1e6 / seconds
            size = made.downlink.download.received_bytes
            print(f"{size} bytes in {seconds:.1f} s, {used:.2f} of the link; p95 {p95(made.latencies_ms):.0f} ms, "
                  f"max {max(made.latencies_ms):.0f} ms of {len(made.latencies_ms)}")  # fmt: skip
            assert size > 700_000 and len(made.latencies_ms) > 0.8 * seconds / WINDOW_S
            assert used > 0.6
            assert p95(made.latencies_ms) < 600
            assert revision_of(made.arrived[0].finish({})) == revision
            assert not made.problems
            transfers = server.backend.metrics.transfers.labels("down")
            await until(lambda: transfers._value.get() == 1, 5)  # counted when the last confirmation has come

    settings = make_settings(tmp_path / "server", encoder=SMALL, synchronisation={"gmm_every_windows": 30})
    with running(settings) as server:
        asyncio.run(main(server))


def test_weights_come_down_a_fast_link_at_once(tmp_path: Path) -> None:
    revision = revision_of(encoder_weights(make_encoder()))

    async def main(port: int) -> None:
        started = time.monotonic()
        async with device(tmp_path / "device", port) as made:
            await until(lambda: bool(made.arrived), 10)
            seconds, size = time.monotonic() - started, made.downlink.download.received_bytes
            print(f"{size} bytes in {seconds:.2f} s")
            assert size > 2_000_000 and seconds < 2.0
            assert revision_of(made.arrived[0].finish({})) == revision

    with running(make_settings(tmp_path / "server")) as server:
        asyncio.run(main(server.port))


def test_results_come_in_time_while_local_learning_goes_up_a_slow_link(tmp_path: Path) -> None:
    weights = {"a": np.random.default_rng(0).standard_normal(300_000).astype(np.float32)}
    packed = pack_full(weights)
    revision = revision_of(packed.result)
    receivers: list[WeightTransfer] = []

    async def main() -> None:
        link = constant_trace(1e6, 100.0)
        async with (
            TinyServer().running() as server,
            ShapedProxy(("127.0.0.1", server.port), link, link) as proxy,
            device(tmp_path / "device", proxy.address[1]) as made,
        ):

            def on_message(session, message) -> None:
                if isinstance(message, Revision):
                    if not receivers:
                        receivers.append(WeightTransfer(message.revision, message.total_bytes))
                    confirm(session)

            def on_media(session, frame) -> None:
                before = receivers[-1].received
                receivers[-1].add(frame.payload)
                if receivers[-1].received > before:
                    confirm(session)

            def confirm(session) -> None:
                session.send(WeightsRequest(revision=revision, base="0" * 64, offset=receivers[-1].received))

            server.on_message, server.on_media = on_message, on_media
            await until(lambda: made.connected, 5)
            upload = made.downlink.upload
            made.client.send(upload.offer(packed, revision, "0" * 64, samples=10))
            before, started = proxy.uplink_bytes, time.monotonic()
            await listened(made, 0, lambda: not upload.under_way, 20)
            seconds = time.monotonic() - started
            used = 8 * (proxy.uplink_bytes - before) / 1e6 / seconds
            print(f"{upload.sent_bytes} bytes in {seconds:.1f} s, {used:.2f} of the link; "
                  f"p95 {p95(made.latencies_ms):.0f} ms, max {max(made.latencies_ms):.0f} ms")  # fmt: skip
            assert upload.sent_bytes == len(packed.payload) > 500_000  # nothing twice
            assert used > 0.6 and p95(made.latencies_ms) < 600
            assert revision_of(receivers[-1].finish()) == revision
            assert not made.problems

    asyncio.run(main())
