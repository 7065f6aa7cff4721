"""The refiner beside the server: learns, publishes, hands out weights, merges, resumes, survives a full disk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from server_harness import RunningServer, TestDevice, device, embedding_window, make_settings, media, running, unit

from streamsplit.codec.features import pack_features
from streamsplit.encoders.base import SplitEncoder
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.errors import CheckpointError
from streamsplit.refinement.refiner import Refiner
from streamsplit.server import refiner_loop
from streamsplit.server.jobs import Sample
from streamsplit.weights.delta import make_delta
from streamsplit.weights.revision import Weights, encoder_weights, revision_of, revision_prefix
from streamsplit.weights.transfer import WeightTransfer, chunks
from streamsplit.wire.media import Encoding
from streamsplit.wire.messages import Error, Gmm, Prototypes, Revision, Stats, WeightsRequest
from streamsplit.wire.types import FrameFlag, FrameType

WIDTH = 0.25  # a small encoder, so that learning and transfers are quick


def first_encoder() -> SplitEncoder:
    """What the server of these tests starts with."""
    return make_encoder(EncoderSettings(width=WIDTH))


FIRST = encoder_weights(first_encoder())
FIRST_REVISION = revision_of(FIRST)
DEADLINE_S = 40.0


def learning(folder: Path, **training: Any) -> Any:
    """Settings with a quick refiner."""
    values = {
        "enabled": True, "worker": "thread", "warm_start_windows": 24, "batch_size": 8, "step_interval_s": 0.0,
        "publish_steps": 2, "publish_interval_s": 0.0, "checkpoint_interval_s": 0.5,
    }  # fmt: skip
    return make_settings(
        folder, training={**values, **training}, encoder={"width": WIDTH},
        aggregation={"min_devices_per_update": 1}, limits={"max_in_flight": 16},
    )  # fmt: skip


def feature_window(window: int) -> bytes:
    """A whole window of features that differ in level and colour."""
    rng = np.random.default_rng(window)
    slope = rng.uniform(-3, 3) * np.linspace(-1, 1, 128, dtype=np.float32)[:, None]
    features = -7 + rng.uniform(-2, 2) + slope + rng.standard_normal((128, 100)).astype(np.float32)
    payload = pack_features(features.astype(np.float32), Encoding.LOGMEL_INT8)
    return media(window, 0, 0, Encoding.LOGMEL_INT8, payload, 100)


async def feed(d: TestDevice, windows: range) -> None:
    """Sends features and waits for the answers."""
    for window in windows:
        await d.send(feature_window(window), FrameType.FEATURES)
    await d.until(lambda: not d.queue)


async def fetch(d: TestDevice, offer: Revision, base: Weights | None, *, in_two_parts: bool = False) -> Weights:
    """Downloads an announced revision; oracle: the transfer's own hash check."""
    transfer = WeightTransfer(offer.revision, offer.total_bytes, offer.base)
    d.media.clear()
    await d.say(WeightsRequest(revision=offer.revision, base=offer.base))
    done = False
    while not done:
        await d.until(lambda: bool(d.media))
        while d.media and not done:
            frame = d.media.pop(0).frame
            assert len(frame.payload) <= 32 << 10
            done = transfer.add(frame.payload)
            assert bool(frame.flags & FrameFlag.FINAL) is done
            await d.say(WeightsRequest(revision=offer.revision, base=offer.base, offset=transfer.received))
            if in_two_parts and transfer.received > offer.total_bytes // 2:
                in_two_parts = False
                await d.cut()
                d.media.clear()
                await d.connect()
                await d.say(WeightsRequest(revision=offer.revision, base=offer.base, offset=transfer.received))
    return transfer.finish(base)


def offers(d: TestDevice) -> list[Revision]:
    return [m for m in d.messages if isinstance(m, Revision)]


async def eventually(condition: Callable[[], Any]) -> None:
    """Waits for something that the server's HTTP side tells."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "timed out"
        await asyncio.sleep(0.05)


def failed_checkpoints(server: RunningServer) -> float:
    name = 'streamsplit_checkpoints_total{outcome="failed"} '
    found = [line for line in server.get("/metrics").text.splitlines() if line.startswith(name)]
    return float(found[0].removeprefix(name)) if found else 0.0


def kinds(server: RunningServer) -> list[str]:
    return [event["kind"] for event in server.status()["events"]]


def test_windows_become_a_new_space_then_deltas_and_a_restart_goes_on_from_there(tmp_path: Path) -> None:
    async def first(server: RunningServer) -> tuple[str, Weights]:
        async with device(server.port, revision=FIRST_REVISION) as d:
            await feed(d, range(40))
            await d.until(lambda: bool(offers(d)))
            offer = offers(d)[0]
            assert (offer.kind, offer.base, offer.breaks_space) == ("full", "", True)
            whole = offer.total_bytes
            held = await fetch(d, offer, None, in_two_parts=True)
            assert revision_of(held) == offer.revision != FIRST_REVISION
            d.messages.clear()
            await d.say(Stats(revision=offer.revision))
            for _ in range(50):
                await feed(d, range(40 + d.next, 40 + d.next + 2))
                if offers(d):
                    break
            offer = offers(d)[-1]
            if offer.kind == "full":  # more than one revision went by meanwhile: no delta leads there
                new = await fetch(d, offer, None)
            else:
                assert offer.base == revision_of(held) and offer.total_bytes < 0.6 * whole
                new = await fetch(d, offer, held)
            assert not offer.breaks_space
            return offer.revision, new

    settings = learning(tmp_path)
    with running(settings) as server:
        revision, weights = asyncio.run(first(server))
        status = server.status()
        assert status["refiner"]["state"] == "running" and status["refiner"]["steps"] >= 2
        assert status["refiner"]["effective_rank"] > 1 and status["space"] == 1
        assert "warm_start" in kinds(server)
        current = server.get("/api/revision").headers["X-Revision"]
    assert (tmp_path / "checkpoints" / "refiner.safetensors").exists()

    async def second(port: int) -> None:
        async with device(port, "other", revision=revision) as d:
            await d.send(embedding_window(0, revision_prefix(revision)))
            await d.until(lambda: len(d.results) == 1)
            assert not any(e.code == "unknown_revision" for e in d.errors)

    with running(settings) as server:
        asyncio.run(eventually_running(server))
        again = server.get("/api/revision").headers["X-Revision"]
        assert server.status()["space"] == 1 and server.status()["refiner"]["state"] == "running"
        assert again == current or "revision" in kinds(server)
        asyncio.run(second(server.port))
    assert revision_of(weights) == revision


async def eventually_running(server: RunningServer) -> None:
    await eventually(lambda: server.status()["refiner"]["state"] == "running")


def test_what_a_device_learned_goes_up_in_chunks_and_into_the_next_revision(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    learned = {n: (a + 1e-3 * rng.standard_normal(a.shape)).astype(np.float32) for n, a in FIRST.items()}
    packed = make_delta(FIRST, learned)
    offer = Revision(
        revision=revision_of(packed.result),
        base=FIRST_REVISION,
        kind="local",
        total_bytes=len(packed.payload),
        samples=50,
    )

    async def main(server: RunningServer) -> None:
        async with device(server.port, revision=FIRST_REVISION) as d:
            await d.say(offer)
            await d.until(lambda: any(isinstance(m, WeightsRequest) for m in d.messages))
            request = next(m for m in d.messages if isinstance(m, WeightsRequest))
            assert (request.revision, request.base, request.offset) == (offer.revision, FIRST_REVISION, 0)
            pieces = list(chunks(packed.payload, offer.revision))
            for number, piece in enumerate(pieces):
                last = FrameFlag.FINAL if number == len(pieces) - 1 else FrameFlag.NONE
                d.session.send_media(FrameType.WEIGHTS, piece, flags=last)
                await d.flush()
            await d.until(lambda: bool(offers(d)))
            announced = offers(d)[0]
            assert announced.kind == "delta" and announced.base == FIRST_REVISION
            merged = await fetch(d, announced, FIRST)
            gain = sum(float(((merged[n] - FIRST[n]) * (learned[n] - FIRST[n])).sum()) for n in FIRST)
            assert gain > 0  # the revision moved where the device went

    with running(learning(tmp_path, warm_start_windows=0)) as server:
        asyncio.run(eventually_running(server))
        asyncio.run(main(server))
        assert "local_learning" in kinds(server)


def test_prototypes_come_down_with_the_mixture_to_devices_that_ask(tmp_path: Path) -> None:
    """Oracle: embeddings in five tight groups; every prototype lies at one of them, and every group has one."""
    groups = [unit(seed) for seed in range(5)]

    async def send(d: TestDevice, windows: range) -> None:
        for window in windows:
            z = groups[window % 5] + 0.01 * unit(100 + window)
            await d.send(embedding_window(window, revision_prefix(FIRST_REVISION), z / np.linalg.norm(z)))
        await d.until(lambda: not d.queue)

    async def main(port: int) -> None:
        async with device(port, "asks", want_prototypes=True) as d, device(port, "other") as other:
            for start in range(0, 3000, 20):
                await send(d, range(start, start + 20))
                if any(isinstance(m, Prototypes) for m in d.messages):
                    break
                await asyncio.sleep(0.02)
            await send(other, range(20))
            await other.until(lambda: any(isinstance(m, Gmm) for m in other.messages))
            await send(other, range(20, 40))
            assert not any(isinstance(m, Prototypes) for m in other.messages)
            message = next(m for m in d.messages if isinstance(m, Prototypes))
        assert (message.revision, message.count, message.dim) == (FIRST_REVISION, 50, 128)
        centres = np.frombuffer(message.data, "<f2").astype(np.float32).reshape(50, 128)
        distances = np.linalg.norm(centres[:, None] - np.stack(groups)[None], axis=2)
        assert distances.min(axis=1).max() < 0.05 and set(distances.argmin(axis=1)) == set(range(5))

    settings = make_settings(
        tmp_path, training={"enabled": True, "worker": "thread", "warm_start_windows": 0}, encoder={"width": WIDTH},
        synchronisation={"gmm_every_windows": 10},
    )  # fmt: skip
    with running(settings) as server:
        asyncio.run(eventually_running(server))
        asyncio.run(main(server.port))


def test_every_cut_fills_the_buffer_and_a_revision_reports_how_far_apart_devices_are(tmp_path: Path) -> None:
    async def main(server: RunningServer) -> None:
        async with device(server.port, "near") as one, device(server.port, "far") as other:
            for start in range(0, 400, 8):
                await feed(one, range(start, start + 8))
                await feed(other, range(5000 + start, 5008 + start))
                if server.status()["refiner"]["alignment"]:
                    break
        found = server.status()["refiner"]
        assert set(found["alignment"]) == {"near", "far"} and found["laplacian"] > 0
        distance = found["alignment"]["near"]
        assert 0 < distance < 2 and found["alignment"]["far"] == pytest.approx(distance)
        line = next(x for x in server.get("/metrics").text.splitlines() if x.startswith("streamsplit_refiner_device"))
        assert float(line.split()[1]) > 0

    with running(learning(tmp_path)) as server:
        asyncio.run(eventually_running(server))
        asyncio.run(main(server))


def test_labels_given_over_http_reach_the_windows_that_are_learned_from(tmp_path: Path) -> None:
    named = [3, 4, 9]

    async def main(server: RunningServer) -> None:
        async with device(server.port) as d:
            await feed(d, range(40))
            await eventually(lambda: server.status()["refiner"]["collected"] >= 40)
            windows = [{"device": "pi", "epoch": 7, "sequence": window + 1} for window in named]
            answer = httpx.post(f"{server.url}/api/labels", json={"label": "rain", "windows": windows})
            assert answer.status_code == 200 and answer.json()["windows"] == 3

    with running(learning(tmp_path, warm_start_windows=0)) as server:
        asyncio.run(eventually_running(server))
        asyncio.run(main(server))
    again = Refiner(first_encoder())
    again.restore((tmp_path / "checkpoints" / "refiner.safetensors").read_bytes())
    labels = {item.window: item.label for item in again.reservoir.items()}
    assert labels == {window: "rain" if window in named else "" for window in range(40)}


def test_learning_on_an_unknown_base_is_refused_and_so_is_a_chunk_out_of_place(tmp_path: Path) -> None:
    async def main(port: int) -> None:
        async with device(port) as d:
            await d.say(Revision(revision="1" * 64, base="2" * 64, kind="local", total_bytes=100, samples=1))
            await d.until(lambda: len(d.errors) == 1)
            d.session.send_media(FrameType.WEIGHTS, next(chunks(b"x" * 10, "1" * 64)))
            await d.flush()
            await d.until(lambda: len(d.errors) == 2)
            await d.say(WeightsRequest(revision="3" * 64))
            await d.until(lambda: len(d.errors) == 3)
            assert all(isinstance(e, Error) and e.code == "bad_transfer" and not e.fatal for e in d.errors)
            await d.send(embedding_window(0, revision_prefix(FIRST_REVISION)))
            await d.until(lambda: len(d.results) == 1)

    with running(make_settings(tmp_path, encoder={"width": WIDTH})) as server:
        asyncio.run(main(server.port))


def test_a_checkpoint_that_the_disk_refuses_is_reported_and_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(server: RunningServer) -> None:
        await eventually_running(server)
        await eventually(lambda: server.status()["refiner"]["last_checkpoint_unix_s"])
        before = (tmp_path / "checkpoints" / "refiner.safetensors").read_bytes()

        def refuse(path: Path, data: bytes) -> None:
            raise CheckpointError(f"{path}: cannot be written (No space left on device); the old file is unchanged")

        monkeypatch.setattr(refiner_loop, "write_atomic", refuse)
        async with device(server.port) as d:
            await feed(d, range(6))
            await eventually(lambda: "checkpoint_failed" in kinds(server))
            await eventually(lambda: failed_checkpoints(server) >= 3)
            assert kinds(server).count("checkpoint_failed") == 1  # told on change only
            assert (tmp_path / "checkpoints" / "refiner.safetensors").read_bytes() == before
            monkeypatch.undo()
            await feed(d, range(6, 10))
            await eventually(lambda: (tmp_path / "checkpoints" / "refiner.safetensors").read_bytes() != before)
            await eventually(lambda: "checkpoint_written" in kinds(server))
            assert len(d.results) == 10

    with running(learning(tmp_path)) as server:
        asyncio.run(main(server))


def test_the_refiners_own_process_starts_learns_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    async def main(server: RunningServer) -> None:
        await eventually_running(server)
        async with device(server.port) as d:
            await feed(d, range(30))
            await eventually(lambda: server.status()["space"] == 1)

    with running(learning(tmp_path, worker="process")) as server:
        asyncio.run(main(server))
    assert refiner_loop.current_revision(tmp_path) is not None


def test_the_mark_of_a_new_stretch_gets_to_the_reservoir(tmp_path: Path) -> None:
    ours, theirs = Pipe()
    loop = refiner_loop._Loop(theirs, learning(tmp_path))
    features = np.random.default_rng(0).standard_normal((128, 100)).astype(np.float16)
    z = np.eye(128, dtype=np.float32)[0]
    samples = [
        Sample("pi", window, 0, loop._refiner.revision, 0, 0, features, None, None, z, window == 2)
        for window in range(4)
    ]
    loop._learn(samples)
    assert [(item.window, item.starts) for item in loop._refiner.reservoir.items()] == [
        (0, False), (1, False), (2, True), (3, False),
    ]  # fmt: skip
    ours.close()
    theirs.close()


def test_a_refiner_that_dies_leaves_the_server_answering(tmp_path: Path) -> None:
    async def main(server: RunningServer) -> None:
        await eventually_running(server)
        server.backend.refiner._runner.kill()
        await eventually(lambda: server.status()["refiner"]["state"] == "failed")
        async with device(server.port) as d:
            await feed(d, range(3))
            await d.until(lambda: len(d.results) == 3)
        assert "refiner_failed" in kinds(server) and server.get("/readyz").status_code == 200

    with running(learning(tmp_path, worker="process")) as server:
        asyncio.run(main(server))
