"""A device with an encoder over real sockets: it learns, takes up revisions, ships its learning, survives restarts."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest
from server_harness import make_settings, running
from tiny_server import TinyServer

from streamsplit.edge.emulation import Emulator
from streamsplit.edge.journal import Journal, read_journal
from streamsplit.edge.runtime import EdgeRuntime
from streamsplit.edge.settings import EdgeSettings
from streamsplit.edge.sources import open_source
from streamsplit.encoders.factory import make_encoder
from streamsplit.weights.delta import make_delta, pack_full
from streamsplit.weights.revision import Weights, encoder_weights, revision_of, revision_prefix
from streamsplit.weights.transfer import WeightTransfer, chunks
from streamsplit.wire.media import unpack_media
from streamsplit.wire.messages import Prototypes, Revision, Stats, WeightsRequest
from streamsplit.wire.types import FrameType

LEARNS = {
    "warm_start_windows": 16, "buffer_windows": 64, "learn_every_windows": 2, "accumulate": 2, "load_share": 1.0,
    "highest_cpu": 1.0,  # the machine that runs the tests may be busy
}  # fmt: skip


def settings(tmp_path: Path, url: str = "ws://127.0.0.1:9/v1/stream", **sections) -> EdgeSettings:
    values = {
        "device": {"id": "edge-1", "state_dir": str(tmp_path / "state")},
        "server": {"url": url, "token": "secret", "first_backoff_s": 0.05, "longest_backoff_s": 0.2, "drain_s": 5.0},
        "splitting": {"agent": {"policy": "fixed", "cut": "13:embedding-fp16"}, "gate": {"enabled": False}},
        "training": LEARNS,
    }  # fmt: skip
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return EdgeSettings.from_mapping(values)


def run(config: EdgeSettings, spec: str = "synthetic:40", speed: float = 0.0, journal: Path | None = None, **options):
    """A device and its run as a coroutine."""
    source = open_source(spec, speed=speed, seed=1)
    device = EdgeRuntime(config, source, speed=speed, journal=Journal(journal) if journal else None)
    return device, asyncio.wait_for(device.run(**options), 200)


async def until(condition, task: asyncio.Future) -> None:
    """Waits for something to become true while a device runs."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline and not task.done()
        await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def base() -> Weights:
    return encoder_weights(make_encoder(EdgeSettings().encoder))


def nudged(weights: Weights, seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)
    return {name: array + 1e-3 * rng.normal(size=array.shape).astype(np.float32) for name, array in weights.items()}


def serve_weights(server: TinyServer, announced: Revision, payload: bytes) -> None:
    """Announces on connection, and answers the device's requests."""

    def on_message(session, message) -> None:
        if isinstance(message, WeightsRequest) and message.offset == 0:  # later ones confirm
            server.send_chunks(session, list(chunks(payload, message.revision)))

    server.on_open = lambda session: session.send(announced)
    server.on_message = on_message


def test_a_device_alone_learns_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    config = settings(tmp_path, splitting={"enabled": False})

    async def twice() -> None:
        device, running = run(config, journal=tmp_path / "journal")
        first = await running
        assert first.status.learner_steps >= 5 and np.isfinite(first.status.loss)
        assert first.status.effective_rank > 1 and first.accepted_through == 0
        assert first.cuts == {"13:none": first.status.windows_seen}
        learned = encoder_weights(device.model.learner.query)
        again, running = run(config, "synthetic:2")
        restored = {}
        again.learning.heard = lambda window, outcome: None  # only look
        again.monitor.start()
        again.learning.restore()
        restored = encoder_weights(again.model.learner.query)
        assert all(np.array_equal(learned[name], restored[name]) for name in learned)
        assert again.model.learner.steps == first.status.learner_steps
        again.stop()
        await running

    asyncio.run(twice())
    kinds = [row["kind"] for row in read_journal(tmp_path / "journal")]
    assert kinds.count("learn") >= 10


@pytest.mark.realtime
def test_learning_runs_beside_listening_in_real_time(tmp_path: Path) -> None:
    async def go() -> None:
        async with TinyServer().running() as server:
            device, running = run(settings(tmp_path, server.url), "synthetic", speed=4.0, duration_s=30.0)
            task = asyncio.ensure_future(running)
            await until(lambda: device.counters.learner_steps >= 2, task)
            device.stop()
            summary = await task
            assert summary.left_in_queue == 0 and summary.status.dropped_audio_ms == 0
            assert any(isinstance(m, Stats) and m.learner_steps for m in server.messages)

    asyncio.run(go())


def test_a_server_revision_is_fetched_checked_and_used(tmp_path: Path, base: Weights) -> None:
    packed = make_delta(base, nudged(base))
    revision = revision_of(packed.result)
    announced = Revision(revision=revision, base=revision_of(base), kind="delta", total_bytes=len(packed.payload))

    async def go() -> None:
        async with TinyServer().running() as server:
            serve_weights(server, announced, packed.payload)
            server.on_open = lambda session: asyncio.get_running_loop().call_later(1.0, session.send, announced)
            config = settings(tmp_path, server.url, training={**LEARNS, "enabled": False})
            device, running = run(config, "synthetic", speed=4.0, duration_s=3.0)
            summary = await running
            assert summary.status.revision == revision
            used = encoder_weights(device.model.learner.key)
            assert all(np.array_equal(used[name], packed.result[name]) for name in used)
            prefixes = [unpack_media(frame.payload)[0].revision for _, frame in sorted(server.windows.items())]
            assert prefixes[0] == revision_prefix(revision_of(base))
            assert prefixes[-1] == revision_prefix(revision)
            assert server.hellos[0].revision == revision_of(base)
            assert [m.revision for m in server.messages if isinstance(m, Stats)][-1] == revision

    asyncio.run(go())


def test_a_download_goes_on_after_a_lost_connection(tmp_path: Path, base: Weights) -> None:
    packed = pack_full(nudged(base))
    announced = Revision(
        revision=revision_of(packed.result), base="", kind="full", total_bytes=len(packed.payload), breaks_space=True
    )
    asked: list[tuple[int, int]] = []  # (connection, offset), confirmations included

    async def go() -> None:
        async with TinyServer().running() as server:

            def on_message(session, message) -> None:
                if not isinstance(message, WeightsRequest):
                    return
                first_here = session.connection not in [connection for connection, _ in asked]
                asked.append((session.connection, message.offset))
                if first_here:
                    pieces = list(chunks(packed.payload, message.revision, message.offset))
                    server.send_chunks(session, pieces[:20] if len(asked) == 1 else pieces)
                elif message.offset > 500_000 and session.connection == asked[0][0]:
                    for connection in server.connections:
                        connection.transport.abort()

            server.on_open = lambda session: session.send(announced) if not asked else None
            server.on_message = on_message
            device, running = run(settings(tmp_path, server.url), "synthetic", speed=4.0, duration_s=30.0)
            task = asyncio.ensure_future(running)
            await until(lambda: device.model.revision == announced.revision, task)
            device.stop()
            await task
            later = [offset for connection, offset in asked if connection != asked[0][0]]
            assert asked[0][1] == 0 and later[0] > 400_000  # not from the beginning

    asyncio.run(go())


def test_damaged_weights_are_refused_and_the_device_goes_on(tmp_path: Path, base: Weights) -> None:
    packed = make_delta(base, nudged(base))
    broken = bytearray(packed.payload)
    broken[-10] ^= 0x55
    revision = revision_of(packed.result)
    announced = Revision(revision=revision, base=revision_of(base), kind="delta", total_bytes=len(broken))

    async def go() -> None:
        async with TinyServer().running() as server:
            serve_weights(server, announced, bytes(broken))
            _, running = run(settings(tmp_path, server.url), "synthetic", speed=4.0, duration_s=2.0)
            summary = await running
            assert summary.status.revision == revision_of(base)
            assert "not adopted" in summary.status.problem
            assert summary.left_in_queue == 0 and summary.status.results == summary.accepted_through

    asyncio.run(go())


def test_what_a_device_learned_goes_up_when_the_link_is_good(tmp_path: Path, base: Weights) -> None:
    offers: list[Revision] = []
    receivers: list[WeightTransfer] = []

    async def go() -> None:
        async with TinyServer().running() as server:

            def on_message(session, message) -> None:
                if isinstance(message, Revision) and not offers:
                    offers.append(message)
                    receivers.append(WeightTransfer(message.revision, message.total_bytes, message.base))
                    session.send(WeightsRequest(revision=message.revision, base=message.base, offset=0))

            def on_media(session, frame) -> None:
                transfer = receivers[0]
                if frame.type is FrameType.WEIGHTS and not transfer.complete:
                    transfer.add(frame.payload)
                    session.send(
                        WeightsRequest(revision=transfer.revision, base=transfer.base, offset=transfer.received)
                    )

            server.on_message, server.on_media = on_message, on_media
            sync = {"upload_interval_s": 1.0, "upload_min_steps": 1, "upload_min_bps": 1.0}
            config = settings(
                tmp_path, server.url, sync=sync,
                splitting={"agent": {"policy": "fixed", "cut": "0:logmel-int8"}, "gate": {"enabled": False}},
            )  # fmt: skip
            device, running = run(config, "synthetic", speed=10.0, duration_s=30.0)
            task = asyncio.ensure_future(running)
            await until(lambda: bool(receivers) and receivers[0].complete, task)
            device.stop()
            await task
            offer = offers[0]
            assert offer.kind == "local" and offer.base == revision_of(base) and offer.samples >= 16
            learned = receivers[0].finish(base)
            assert any(np.abs(learned[name] - base[name]).max() > 0 for name in base)

    asyncio.run(go())


@pytest.mark.realtime
def test_an_emulated_pi_takes_as_long_as_a_pi(tmp_path: Path) -> None:
    async def go() -> None:
        async with TinyServer().running() as server:
            config = settings(
                tmp_path, server.url, device={"type": "pi4"}, emulation={"enabled": True},
                training={**LEARNS, "enabled": False},
            )  # fmt: skip
            device, running = run(config, "synthetic", speed=1.0, duration_s=4.0)
            assert isinstance(device.device, Emulator)
            summary = await running
            assert summary.status.edge_ms > 11.7 * 2.0  # an encoder forward is 3 ms and more here
            assert 0.01 < summary.status.cpu < 1.0
            assert summary.status.latency_ms >= summary.status.edge_ms * 0.8
            headers = [unpack_media(frame.payload)[0] for frame in server.windows.values()]
            assert all(header.edge_ms > 11.7 * 2.0 for header in headers)

    asyncio.run(go())


def test_a_full_disk_costs_the_snapshot_only(tmp_path: Path) -> None:
    config = settings(tmp_path, splitting={"enabled": False})

    async def go() -> None:
        config.device.folder.mkdir(parents=True)
        (config.device.folder / "learner.snapshot.new").mkdir()  # what cannot be written, as on a full disk
        _, running = run(config, "synthetic:15")
        summary = await running
        assert "snapshot" in summary.status.problem and "not written" in summary.status.problem
        assert summary.status.windows_seen == 29

    asyncio.run(go())


def test_a_snapshot_that_does_not_fit_is_reported_and_learning_starts_anew(tmp_path: Path) -> None:
    config = settings(tmp_path, splitting={"enabled": False})

    async def go() -> None:
        config.device.folder.mkdir(parents=True)
        (config.device.folder / "learner.snapshot").write_bytes(b"no snapshot at all")
        started = time.monotonic()
        _, running = run(config, "synthetic:15", journal=tmp_path / "journal")
        await running
        assert time.monotonic() - started < 30
        problems = [row["text"] for row in read_journal(tmp_path / "journal") if row["kind"] == "problem"]
        assert any("snapshot is not used" in text for text in problems)

    asyncio.run(go())


def test_v1_prototypes_come_over_the_wire_and_move_the_uncertainty(tmp_path: Path, base: Weights) -> None:
    centres = np.random.default_rng(0).standard_normal((50, 128)).astype("<f2")
    message = Prototypes(revision=revision_of(base), count=50, dim=128, data=centres.tobytes())

    async def go(cut: str, folder: Path) -> None:
        async with TinyServer().running() as server:
            server.on_open = lambda session: session.send(message)
            config = settings(
                folder, server.url, training={"uncertainty": "v1", "enabled": False},
                splitting={"agent": {"policy": "fixed", "cut": cut}, "gate": {"enabled": False}},
            )  # fmt: skip
            device, running = run(config, "synthetic:6", speed=4.0, journal=folder / "journal")
            await running
            assert server.hellos[0].want_prototypes
            assert np.array_equal(device.model.learner.prototypes.prototypes, centres)

    for cut in ("0:logmel-int8", "5:int8", "13:embedding-fp16"):
        folder = tmp_path / cut.replace(":", "-")
        folder.mkdir()
        asyncio.run(go(cut, folder))
        rows = list(read_journal(folder / "journal"))
        assert [row["count"] for row in rows if row["kind"] == "prototypes"] == [50]
        windows = [row for row in rows if row["kind"] == "window"]
        assert len({row["uncertainty"] for row in windows}) > 5
        assert {row["resolution"] for row in windows} <= {0, 1}


def test_devices_that_do_not_use_prototypes_do_not_ask_for_them(tmp_path: Path) -> None:
    async def go() -> None:
        async with TinyServer().running() as server:
            _, running = run(settings(tmp_path, server.url, training={"enabled": False}), "synthetic:2")
            await running
            assert not server.hellos[0].want_prototypes

    asyncio.run(go())


def test_the_bank_of_a_small_device_follows_its_free_memory(tmp_path: Path) -> None:
    config = settings(
        tmp_path, splitting={"enabled": False}, device={"type": "pi4", "memory_mb": 0.1},
        emulation={"enabled": True, "memory": 0.4}, memory_bank={"kind": "bank"},
    )  # fmt: skip

    async def go() -> None:
        device, running = run(config, "synthetic:15", journal=tmp_path / "journal")
        bank = device.model.learner.memory.bank
        assert bank.size == 512
        await running
        assert bank.size == 117  # 0.6 x 100,000 bytes / (4 x 128)

    asyncio.run(go())
    learned = [row for row in read_journal(tmp_path / "journal") if row["kind"] == "learn"]
    assert learned and learned[-1]["sigma2"] > 0


def test_a_real_servers_prototypes_reach_a_device_that_uses_them(tmp_path: Path) -> None:
    server_settings = make_settings(
        tmp_path / "server", synchronisation={"gmm_every_windows": 10}, aggregation={"min_devices_per_update": 1},
        encoder={"width": 0.25},
        training={
            "enabled": True, "worker": "thread", "warm_start_windows": 24, "batch_size": 8, "step_interval_s": 0.0,
            "publish_steps": 1_000, "publish_interval_s": 0.0,
        },
    )  # fmt: skip

    async def go(url: str) -> None:
        config = settings(
            tmp_path, url, training={"uncertainty": "v1", "enabled": False}, sync={"download_min_bps": 0.0},
            splitting={"agent": {"policy": "fixed", "cut": "0:logmel-int8"}, "gate": {"enabled": False}},
            encoder={"width": 0.25},
        )  # fmt: skip
        device, going = run(config, "synthetic", speed=10.0, duration_s=1200.0, journal=tmp_path / "journal")
        task = asyncio.ensure_future(going)
        await until(lambda: len(device.model.learner.prototypes.prototypes), task)
        seen = device.counters.windows_seen
        await until(lambda: device.counters.windows_seen > seen + 20, task)
        device.stop()
        await task
        centres = device.model.learner.prototypes.prototypes
        assert len(centres) >= 10 and np.unique(centres, axis=0).shape == centres.shape

    with running(server_settings) as server:
        asyncio.run(go(f"ws://127.0.0.1:{server.port}/v1/stream"))
    rows = list(read_journal(tmp_path / "journal"))
    came = next(i for i, row in enumerate(rows) if row["kind"] == "prototypes")
    after = [row["uncertainty"] for row in rows[came:] if row["kind"] == "window"]
    assert len(set(after)) >= 20
