"""Split training over real sockets: a device learns from gradients that the server returns; older peers go on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from server_harness import RunningServer, TestDevice, make_settings, media, now_ms, running
from tiny_server import TinyServer

from streamsplit.edge.runtime import EdgeRuntime
from streamsplit.edge.settings import EdgeSettings
from streamsplit.edge.sources import open_source
from streamsplit.encoders.crossing import Crossing, pack_crossing
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.learning.returned import unpack_gradient
from streamsplit.weights.revision import encoder_weights, revision_of, revision_prefix
from streamsplit.wire.frame import Frame
from streamsplit.wire.gradient import OFFER
from streamsplit.wire.media import Encoding
from streamsplit.wire.session import ClientSession
from streamsplit.wire.types import FrameType

CUT = 5
WIDTH = 0.25  # a small encoder: the machine that runs the tests may be busy


def learning_server(folder: Path, **training: object) -> object:
    values = {
        "enabled": True, "worker": "thread", "warm_start_windows": 0, "batch_size": 8, "step_interval_s": 0.2,
        "publish_interval_s": 3600.0,
    }  # fmt: skip
    return make_settings(
        folder, training={**values, **training}, aggregation={"min_devices_per_update": 1}, encoder={"width": WIDTH}
    )


def device_settings(folder: Path, url: str, **training: object) -> EdgeSettings:
    learns = {
        "warm_start_windows": 16, "buffer_windows": 64, "learn_every_windows": 2, "accumulate": 2, "load_share": 1.0,
        "highest_cpu": 1.0, "trained": "all",
    }  # fmt: skip
    return EdgeSettings.from_mapping(
        {
            "device": {"id": "edge-1", "state_dir": str(folder / "state")},
            "server": {
                "url": url,
                "first_backoff_s": 0.05,
                "longest_backoff_s": 0.2,
                "drain_s": 5.0,
                "token": "secret",
            },
            "splitting": {"agent": {"policy": "fixed", "cut": f"{CUT}:fp16"}, "gate": {"enabled": False}},
            "encoder": {"width": WIDTH},
            "training": {**learns, **training},
        }
    )


async def run_until(config: EdgeSettings, condition):
    """A device and its summary: endless sound, as fast as it goes, until something is true of it."""
    device = EdgeRuntime(config, open_source("synthetic", speed=0.0, seed=1), speed=0.0)
    task = asyncio.ensure_future(asyncio.wait_for(device.run(duration_s=120.0), 150))
    deadline = time.monotonic() + 100
    while not condition(device):
        assert time.monotonic() < deadline and not task.done(), device.counters
        await asyncio.sleep(0.02)
    device.stop()
    return device, await task


def gradient_count(server: RunningServer, outcome: str) -> float:
    name = f'streamsplit_gradients_total{{outcome="{outcome}"}} '
    found = [line for line in server.get("/metrics").text.splitlines() if line.startswith(name)]
    return float(found[0].removeprefix(name)) if found else 0.0


def test_a_device_learns_from_gradients_that_come_back(tmp_path: Path) -> None:
    with running(learning_server(tmp_path / "server")) as server:
        config = device_settings(tmp_path, f"ws://127.0.0.1:{server.port}/v1/stream")
        taken: list[int] = []

        def learned(device: EdgeRuntime) -> bool:
            learner = device.model.learner
            if not taken:
                take = learner.take_gradient
                learner.take_gradient = lambda *a: (taken.append(learner.steps), take(*a))[1]
                taken.append(-1)
            return device.counters.gradients_applied >= 3 and learner.steps > max(taken) >= 0

        device, summary = asyncio.run(run_until(config, learned))
        status = summary.status
        assert status.gradients_asked >= status.gradients_applied >= 3
        assert device.counters.gradients_refused == device.counters.gradients_stale == 0
        assert status.results == summary.accepted_through and summary.left_in_queue == 0
        assert gradient_count(server, "returned") >= status.gradients_applied
        assert server.status()["refiner"]["steps"] > 0
        base, own = device.model.learner.base, encoder_weights(device.model.learner.query)
        assert any(not np.array_equal(base[name], own[name]) for name in base if name.startswith("blocks.0."))


@pytest.mark.parametrize("older", ["knows of no gradients", "does not learn"])
def test_a_server_that_returns_none_is_not_asked(tmp_path: Path, older: str) -> None:
    async def tiny() -> None:
        async with TinyServer().running() as server:
            device, summary = await run_until(device_settings(tmp_path, server.url), lambda d: d.counters.results >= 30)
            assert {frame.type for frame in server.windows.values()} == {FrameType.FEATURES}
            assert not server.media and device.counters.gradients_asked == 0
            assert "unsupported" not in summary.status.problem

    if older == "knows of no gradients":
        asyncio.run(tiny())
        return
    with running(learning_server(tmp_path / "server", return_gradients=False)) as server:
        config = device_settings(tmp_path, f"ws://127.0.0.1:{server.port}/v1/stream")
        device, summary = asyncio.run(run_until(config, lambda d: d.counters.results >= 30))
        assert device.counters.gradients_asked == 0 and "unsupported" not in summary.status.problem


def test_windows_that_waited_for_gradients_go_to_an_older_server_without_the_wish(tmp_path: Path) -> None:
    """They were queued for one that returns gradients; their bytes are the same."""

    async def go() -> None:
        async with TinyServer().running() as server:
            config = device_settings(tmp_path, server.url)
            device = EdgeRuntime(config, open_source("synthetic:4", speed=0.0, seed=1), speed=0.0)
            accept = device.queue.accept
            device.queue.accept = lambda kind, *rest: accept(FrameType.GRADIENT, *rest)
            summary = await asyncio.wait_for(device.run(), 30)
            assert {frame.type for frame in server.windows.values()} == {FrameType.FEATURES}
            assert summary.status.results == summary.accepted_through > 0

    asyncio.run(go())


async def connected(server: RunningServer, *, offers: bool) -> TestDevice:
    d = TestDevice(server.port, "pi")
    if offers:
        d.session = ClientSession(now_ms=now_ms(), refuses=frozenset({FrameType.DIALOGUE}))
    await d.connect()
    return d


def windows_that_ask(count: int) -> list[bytes]:
    encoder = make_encoder(EncoderSettings(width=WIDTH))
    prefix = revision_prefix(revision_of(encoder_weights(encoder)))
    found = []
    for window in range(count):
        x = np.random.default_rng(window).standard_normal((1, 128, 100)).astype(np.float32) * 2 - 7
        with torch.no_grad():
            crossing = encoder.forward_to(torch.from_numpy(x), CUT)
        found.append(media(window, prefix, CUT, Encoding.FP16, pack_crossing(crossing, Encoding.FP16)))
    return found


def gradients(d: TestDevice) -> list[Frame]:
    return [
        event.frame for event in d.media if event.frame.type is FrameType.GRAD_BACK and event.frame.payload != OFFER
    ]


@pytest.mark.parametrize("offers", [True, False])
def test_gradients_go_to_connections_that_offered_to_take_them(tmp_path: Path, offers: bool) -> None:
    async def main(server: RunningServer) -> None:
        d = await connected(server, offers=offers)
        if offers:
            assert d.session.send_media(FrameType.GRAD_BACK, OFFER)
            await d.flush()
            await d.until(lambda: bool(d.media))
            assert d.media.pop().frame.payload == OFFER
        for payload in windows_that_ask(40):
            await d.send(payload, FrameType.GRADIENT)
        await d.until(lambda: len(d.results) == 40)
        if offers:
            await d.until(lambda: len(gradients(d)) >= 3)
            shapes = {tuple(unpack_gradient(frame.payload).gradient.h.shape[1:]) for frame in gradients(d)}
            assert shapes == {tuple(make_encoder(EncoderSettings(width=WIDTH)).block_costs()[CUT - 1].output_shape)}
            assert all(isinstance(unpack_gradient(frame.payload).gradient, Crossing) for frame in gradients(d))
        else:
            end = time.monotonic() + 20
            while gradient_count(server, "left_out") < 1:
                assert time.monotonic() < end
                await asyncio.sleep(0.05)
            assert not d.media and not d.errors
        await d.close()

    with running(learning_server(tmp_path)) as server:
        asyncio.run(main(server))
