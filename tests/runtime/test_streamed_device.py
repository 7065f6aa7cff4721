"""A live device with room for three of its encoder's blocks, on a real server: cuts, revisions, lost links."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from server_harness import RunningServer, make_settings, running
from weight_stream_harness import LyingServer, lying, raised_by, weight_server, weight_threads

from streamsplit.audio.windows import WindowStream
from streamsplit.edge.blocks import AudioBlock, SourceInfo
from streamsplit.edge.runtime import EdgeRuntime
from streamsplit.edge.settings import EdgeSettings
from streamsplit.edge.streamed_model import StreamedBlocksModel
from streamsplit.encoders.base import SplitEncoder
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.errors import ClosedError
from streamsplit.network.shaper import ShapedProxy
from streamsplit.network.trace import constant_trace
from streamsplit.server.encoder_storage import EncoderStorage
from streamsplit.server.models import weights_file
from streamsplit.server.refiner_messages import NewRevision
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.decision import Decision
from streamsplit.splitting.steady import fetch_bytes
from streamsplit.splitting.table import CutRow, CutTable, make_table
from streamsplit.weights.delta import make_delta, pack_full
from streamsplit.weights.revision import encoder_weights, load_weights, revision_of
from streamsplit.weights.streaming.encoder import chunk_encoder
from streamsplit.weights.streaming.manifest import Manifest
from streamsplit.wire.media import Encoding

SMALL = {"name": "mobilenet", "width": 0.25, "embedding_dim": 16, "bottlenecks": []}
L = 13


def plain_encoder() -> SplitEncoder:
    return make_encoder(EncoderSettings.from_mapping(SMALL))


def block_bytes(*blocks: int) -> int:
    encoder = plain_encoder()
    return sum(array.nbytes for block in blocks for array in encoder.block_weights(block).values())


def room_for_three() -> int:
    budget = block_bytes(1, 2, 3)
    assert all(block_bytes(block) <= budget for block in range(1, 7)) and budget < block_bytes(1, 2, 3, 4)
    return budget


class Fed:
    """Sound as the test gives it."""

    info = SourceInfo("synthetic", "fed", False, ())

    def __init__(self) -> None:
        self.sound = np.random.default_rng(5).normal(0, 0.1, 16_000 * 120).astype(np.float32)
        self._due: queue.Queue[bool] = queue.Queue()
        self._closed = False

    def give(self) -> None:
        self._due.put(True)

    def __iter__(self) -> Iterator[AudioBlock]:
        at = 0
        while self._due.get():
            yield AudioBlock(self.sound[at : at + 8000], at / 16, None, None)
            at += 8000

    def close(self) -> None:
        self._due.put(False)


class Wishes:
    """A policy that the test moves, and what it saw."""

    def __init__(self, block: int) -> None:
        self.block = block
        self.seen: list[Any] = []

    def decide(self, observation: Any, table: CutTable) -> Decision:
        self.seen.append(observation)
        return Decision(
            Cut(self.block, Encoding.FP32 if 0 < self.block < L else Encoding.EMBEDDING_FP16), 1.0, "wished"
        )


def table() -> CutTable:
    rows = [
        CutRow(Cut(0, Encoding.OPUS24), 1.0, 3.0, 1600.0, 1.0, 0.9),
        CutRow(Cut(0, Encoding.LOGMEL_FP16), 1.0, 3.0, 12_000.0, 1.0, 1.0),
    ]
    for block in range(1, L):
        total = float(block_bytes(*range(1, block + 1)))
        rows.append(CutRow(Cut(block, Encoding.FP32), 1.0, 1.0, 9000.0, 1.0, 1.0, fetch_bytes=total))
    last = float(block_bytes(*range(1, L + 1)))
    rows.append(CutRow(Cut(L, Encoding.EMBEDDING_FP16), 1.0, 0.1, 60.0, 1.0, 1.0, fetch_bytes=last))
    return make_table(CutTable("mobilenet", "host", 1.0, L, tuple(rows), {"encoder": SMALL}))


class Device:
    """The runtime with a policy in the test's hand, in the test's loop."""

    def __init__(self, folder: Path, main: str, wish: int, **weights: Any) -> None:
        settings = EdgeSettings.from_mapping({
            "device": {"id": "edge-1", "state_dir": str(folder)},
            "encoder": SMALL,
            "server": {"url": main, "first_backoff_s": 0.02, "longest_backoff_s": 0.1, "drain_s": 5.0},
            "splitting": {"gate": {"enabled": False}},
            "monitor": {"adapt_resolution": False, "report_s": 0.1},
            "sync": {"download_min_bps": 0.0},
            "weights": {"cache_bytes": room_for_three(), "wait_ms": 20_000.0, "retry_s": 0.1, **weights},
        })  # fmt: skip
        self.source = Fed()
        self.runtime = EdgeRuntime(settings, self.source, speed=0.0, table=table())
        self.policy = self.runtime.pipeline.policy = Wishes(wish)
        self.cuts: list[str] = []
        self.said: list[str] = []
        said = self.runtime.problem
        self.runtime.model.problem = lambda text: (self.said.append(text), said(text))

    @property
    def model(self) -> Any:
        return self.runtime.model

    async def window(self) -> str:
        """Half a second more; the cut of the window that this completes."""
        counters = self.runtime.counters
        seen = counters.windows_seen
        while counters.windows_seen == seen:
            self.source.give()
            with contextlib.suppress(AssertionError):
                await until(lambda: counters.windows_seen > seen, 1.0)
        await until(lambda: sum(counters.cuts.values()) > seen)
        self.cuts.append(counters.cut)
        return counters.cut

    async def windows_until(self, cut: str) -> None:
        deadline = time.monotonic() + 120
        while await self.window() != cut:
            assert time.monotonic() < deadline, self.cuts
            await asyncio.sleep(0.02)


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def listening(device: Device) -> AsyncIterator[Device]:
    run = asyncio.create_task(device.runtime.run())
    for _ in range(2):  # a window is a second and a little long
        device.source.give()
    try:
        yield device
    finally:
        device.runtime.stop()
        await asyncio.wait_for(run, 30)


def embeddings(server: RunningServer) -> dict[int, tuple[str, np.ndarray]]:
    """What the server has of each window: the cut that it came at, the embedding [d] fp16."""
    windows = server.get("/api/windows?embeddings=1&limit=1000").json()["windows"]
    assert not [w for w in windows if w["error"]]
    return {w["window"]: (w["cut"], np.frombuffer(base64.b64decode(w["embedding"]), "<f2")) for w in windows}


def whole(encoder: SplitEncoder, device: Device) -> list[np.ndarray]:
    """The whole encoder's embedding [d] fp16 of every window that the test asked for."""
    sound = device.source.sound[: 8000 * (len(device.cuts) + 3)]
    with torch.no_grad():
        return [
            encoder(torch.from_numpy(w.features)[None])[0].numpy().astype("<f2") for w in WindowStream().push(sound)
        ]


def test_a_live_device_with_room_for_three_blocks_goes_through_cuts_2_6_and_1(tmp_path: Path) -> None:
    async def run(server: RunningServer) -> Device:
        device = Device(tmp_path / "device", f"ws://127.0.0.1:{server.port}/v1/stream", wish=2)
        async with listening(device):
            await until(lambda: device.model.revision != "")
            await device.windows_until("2:fp32")
            assert device.model.held_blocks == 2
            device.policy.block = 6
            assert [await device.window() for _ in range(3)] == ["6:fp32"] * 3
            held, received = device.model.held_blocks, device.model.received_bytes
            assert held < 4
            device.policy.block = 1
            assert await device.window() == "1:fp32"
            device.policy.block = 6
            await device.window()
            once = device.model.received_bytes - received
            assert block_bytes(*range(held + 2, 7)) < once < 2 * block_bytes(*range(held + 1, 7))  # again, each time
        return device

    with running(make_settings(tmp_path / "server", encoder=SMALL)) as server:
        device = asyncio.run(run(server))
        there = embeddings(server)
    expected = whole(plain_encoder(), device)
    assert {cut for cut, _ in there.values()} >= {"2:fp32", "6:fp32", "1:fp32"}
    for window, cut in enumerate(device.cuts):
        assert there[window][0] == cut
        if not cut.startswith("0:"):
            assert np.array_equal(there[window][1], expected[window]), (window, cut)
    seen = [(o.blocks, o.room) for o in device.policy.seen]
    assert seen[-1][1] == 3 and {blocks for blocks, _ in seen} <= {0, 1, 2, 3} and not device.said
    six = table().row(Cut(6, Encoding.FP32))
    assert fetch_bytes(six, table(), 2) == block_bytes(3, 4, 5, 6)  # what the policy counts with


@pytest.fixture
def held_back(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The server's storage gives no block before the event is set."""
    may = threading.Event()
    read = EncoderStorage.read

    async def patient(self: Any, digest: str, offset: int, length: int) -> bytes:
        block = any(c.digest == digest and c.role == "layer" for c in (await self.manifest()).chunks)
        while block and not may.is_set():
            await asyncio.sleep(0.005)
        return await read(self, digest, offset, length)

    monkeypatch.setattr(EncoderStorage, "read", patient)
    return may


@pytest.mark.parametrize("held", ["resident", "passing block", "nothing"])
def test_a_close_ends_whoever_waits_for_weights_and_leaves_no_thread(tmp_path: Path, held: str) -> None:
    plain, before, asked = plain_encoder(), weight_threads(), threading.Event()
    manifest = chunk_encoder(plain, EncoderSettings.from_mapping(SMALL), tmp_path / "chunks")
    deep = [chunk.digest for chunk in manifest.chunks if chunk.name == "block.5"]
    silent = {"resident": [manifest.chunk("resident").digest], "passing block": deep, "nothing": []}[held]

    def reply(session: Any, request: int, digest: str, data: bytes) -> list[bytes | None]:
        if digest in silent:
            asked.set()
            return []
        return LyingServer.honest(session, request, digest, data)

    with lying(tmp_path / "chunks", manifest) as (server, at):
        server.reply = reply
        weights = {"cache_bytes": room_for_three(), "wait_ms": 60_000.0, "url": f"{at.url}/v1/weights"}
        model = StreamedBlocksModel(EdgeSettings.from_mapping({"encoder": SMALL, "weights": weights}))
        said: list[str] = []
        model.problem = said.append
        features = np.zeros((128, 100), np.float32)
        opened = threading.Event()

        def run() -> None:
            model.adopt_revision(model.fetch_revision())
            while model.reach(6) < 6:
                time.sleep(0.002)
            model.forward_to(features, 6)
            model.fetch_revision()  # nobody adopts it
            opened.set()

        def close() -> None:
            assert (opened if held == "nothing" else asked).wait(60)
            model.close()
            assert weight_threads() == before and model.held_blocks == 0

        raised = raised_by(run, close, close)
    assert raised[1:] == [None, None] and not said
    assert raised[0] is None if held == "nothing" else isinstance(raised[0], ClosedError)
    for use in (lambda: model.reach(1), lambda: model.forward_to(features, 1), model.fetch_revision):
        with pytest.raises(ClosedError, match="streamed encoder is closed"):
            use()
    assert weight_threads() == before


def test_while_blocks_are_on_their_way_windows_go_up_shallower_and_deeper_when_they_are_there(
    tmp_path: Path, held_back: threading.Event
) -> None:
    async def run(server: RunningServer) -> None:
        device = Device(tmp_path / "device", f"ws://127.0.0.1:{server.port}/v1/stream", wish=3)
        async with listening(device):
            await until(lambda: device.model.revision != "")
            for _ in range(4):
                assert (await device.window()).startswith("0:")
            await until(lambda: device.runtime.counters.results == 4)  # the server has them: nothing waits
            held_back.set()
            await device.windows_until("3:fp32")
            assert device.model.held_blocks == 3 and not device.said

    with running(make_settings(tmp_path / "server", encoder=SMALL)) as server:
        asyncio.run(run(server))


def publish(server: RunningServer, nudge: float) -> SplitEncoder:
    """A new revision, as the refiner makes it: every weight moved a little, the delta rounded to int8."""
    backend, encoder = server.backend, plain_encoder()
    rng = np.random.default_rng(3)
    weights = backend.files.weights(backend.revision)
    moved = {name: a + nudge * rng.standard_normal(a.shape).astype(np.float32) for name, a in weights.items()}
    delta, exact = make_delta(weights, moved)
    full, _ = pack_full(exact, "fp32")
    revision, base = revision_of(exact), backend.revision
    backend.files.write(revision, weights_file(exact), full, delta, base)
    new = NewRevision(
        revision=revision, base=base, breaks_space=False, space=backend.space, steps=1, effective_rank=1.0,
        merged_devices=0, mixture=None, alignment={},
    )  # fmt: skip
    backend._in_loop(backend._on_refiner, new)
    load_weights(encoder, exact)
    return encoder


def test_a_revision_of_the_server_reaches_the_device_as_deltas_of_the_blocks_that_it_holds(tmp_path: Path) -> None:
    async def run(server: RunningServer) -> tuple[Device, int, SplitEncoder]:
        device = Device(tmp_path / "device", f"ws://127.0.0.1:{server.port}/v1/stream", wish=3)
        async with listening(device):
            await until(lambda: device.model.revision != "")
            await device.windows_until("3:fp32")
            first, received = device.model.revision, device.model.received_bytes
            refined = publish(server, 0.01)
            await until(lambda: device.model.revision not in ("", first))
            assert device.model.revision == revision_of(encoder_weights(refined))
            changed = len(device.cuts)
            await device.windows_until("3:fp32")
            manifest = server.backend.encoder_chunks._newest
            fetched = device.model.received_bytes - received - len(server.backend.streamed.encoder.manifest_bytes)
            steps, held = held_sizes(manifest)
            assert steps < 0.5 * held and steps < fetched < steps + 4096
            device.policy.block = 6
            await device.windows_until("6:fp32")
            assert not device.said
        return device, changed, refined

    with running(make_settings(tmp_path / "server", encoder=SMALL)) as server:
        device, changed, refined = asyncio.run(run(server))
        there = embeddings(server)
    before, after = whole(plain_encoder(), device), whole(refined, device)
    for window, cut in enumerate(device.cuts):
        if not cut.startswith("0:"):
            expected = after if window >= changed else before
            assert np.array_equal(there[window][1], expected[window]), (window, cut)
    assert not np.array_equal(before[changed], after[changed])


def held_sizes(manifest: Manifest) -> tuple[int, int]:
    """Bytes of the deltas to what a device with three blocks holds; of the same as whole chunks."""
    chunks = [chunk for chunk in manifest.chunks if chunk.name in ("resident", "block.1", "block.2", "block.3")]
    steps = {delta.target: delta.stored_bytes for delta in manifest.deltas}
    return sum(steps[chunk.digest] for chunk in chunks), sum(chunk.stored_bytes for chunk in chunks)


def test_a_delta_that_leads_elsewhere_is_not_used_and_the_block_comes_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = plain_encoder()
    weights = encoder_weights(encoder)
    storage = EncoderStorage(EncoderSettings.from_mapping(SMALL))
    storage.adopt(weights, 0)
    x = np.random.default_rng(1).normal(-6, 1, (128, 100)).astype(np.float32)
    with weight_server(storage) as server:
        model = StreamedBlocksModel(EdgeSettings.from_mapping({
            "encoder": SMALL, "weights": {"cache_bytes": room_for_three(), "url": server.url},
        }))  # fmt: skip
        try:
            for number in range(3):
                before = model.received_bytes
                fetched = model.fetch_revision()
                old, _ = model.adopt_revision(fetched)
                if old is not None:
                    old.close()
                deadline = time.monotonic() + 30
                while model.reach(3) < 3:
                    assert time.monotonic() < deadline
                    time.sleep(0.001)
                with torch.no_grad():
                    expected = encoder.forward_to(torch.from_numpy(x)[None], 3)
                assert torch.equal(model.forward_to(x, 3).crossing.h, expected.h)
                received = model.received_bytes - before
                if number:
                    steps, held = held_sizes(fetched.blocks.manifest)
                    came = steps + (held if number == 2 else 0)
                    assert steps < 0.5 * held and came < received < came + 30_000  # and the manifest
                if number == 1:
                    hand_out_wrong_deltas(monkeypatch)
                revision = revision_of(weights)
                delta, weights = make_delta(weights, {name: a + np.float32(0.01) for name, a in weights.items()})
                storage.adopt(weights, 0, revision, delta)
                load_weights(encoder, weights)
        finally:
            model.close()


def hand_out_wrong_deltas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deltas of the size and hash that the manifest says, which lead elsewhere: as a faulty publisher would make."""
    from streamsplit.server import encoder_storage

    good = encoder_storage.with_deltas

    def wrong(*args: Any) -> tuple[Manifest, dict[str, bytes]]:
        manifest, stored = good(*args)
        made, deltas = {}, []
        for delta in manifest.deltas:
            data = stored[delta.digest][:-1] + bytes([stored[delta.digest][-1] ^ 1])
            deltas.append(msgspec.structs.replace(delta, digest=hashlib.sha256(data).hexdigest()))
            made[deltas[-1].digest] = data
        return msgspec.structs.replace(manifest, deltas=tuple(deltas)), made

    monkeypatch.setattr(encoder_storage, "with_deltas", wrong)


def test_a_lost_weight_stream_keeps_the_device_shallow_is_said_once_and_may_come_back(tmp_path: Path) -> None:
    async def run(server: RunningServer) -> None:
        fast = constant_trace(1e9, rtt_ms=0.1)
        proxy = await ShapedProxy(("127.0.0.1", server.port), fast).start()
        url = f"ws://127.0.0.1:{proxy.address[1]}/v1/weights/encoder"
        device = Device(tmp_path / "device", f"ws://127.0.0.1:{server.port}/v1/stream", wish=2, url=url)
        async with listening(device):
            await until(lambda: device.model.revision != "")
            await device.windows_until("2:fp32")
            await proxy.stop()
            device.policy.block = 6
            for _ in range(6):
                assert int((await device.window()).partition(":")[0]) <= 2
            assert len(device.said) == 1 and "no blocks from the server" in device.said[0]
            async with ShapedProxy(("127.0.0.1", server.port), fast, listen=proxy.address):
                await device.windows_until("6:fp32")
            assert len(device.said) == 1

    with running(make_settings(tmp_path / "server", encoder=SMALL)) as server:
        asyncio.run(run(server))
