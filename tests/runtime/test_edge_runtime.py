"""The device runtime over real sockets against the tiny server: what is heard arrives, and it ends cleanly."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_server import TinyServer

from streamsplit.edge.blocks import AudioBlock, SourceInfo
from streamsplit.edge.journal import Journal, read_journal
from streamsplit.edge.queue import OfflineQueue
from streamsplit.edge.reconnecting import ReconnectingSource
from streamsplit.edge.runtime import EdgeRuntime
from streamsplit.edge.settings import EdgeSettings
from streamsplit.edge.sources import open_source
from streamsplit.errors import AudioError, ConnectionRefused
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.table import CutRow, CutTable, make_table
from streamsplit.wire.media import Encoding, unpack_media
from streamsplit.wire.messages import Error, Policy, Result, Stats


def table(num_blocks: int = 13) -> CutTable:
    rows = [
        CutRow(Cut(0, Encoding.PCM16), 1.0, 3.0, 16_000, 1.0, 1.0),
        CutRow(Cut(0, Encoding.LOGMEL_INT8), 1.0, 3.0, 6_430, 1.0, 0.99),
        CutRow(Cut(num_blocks, Encoding.EMBEDDING_FP16), 4.0, 0.1, 280, 1.0, 1.0),
        CutRow(Cut(num_blocks, Encoding.NONE), 4.0, 0.0, 0, 1.0, 1.0),
    ]
    return make_table(CutTable("mobilenet", "host", 1.0, num_blocks, tuple(rows), {}))


def settings(tmp_path: Path, url: str, **sections) -> EdgeSettings:
    values = {
        "device": {"id": "edge-1", "state_dir": str(tmp_path / "state")},
        "encoder": {"enabled": False},
        "server": {"url": url, "token": "secret", "first_backoff_s": 0.05, "longest_backoff_s": 0.2, "drain_s": 5.0},
        "splitting": {
            "agent": {"policy": "fixed", "cut": "0:logmel-int8"}, "gate": {"enabled": False},
        },
    }  # fmt: skip
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return EdgeSettings.from_mapping(values)


def runtime(config: EdgeSettings, source, speed: float = 0.0, journal: Path | None = None) -> EdgeRuntime:
    return EdgeRuntime(config, source, speed=speed, table=table(), journal=Journal(journal) if journal else None)


def test_a_finite_source_arrives_whole_and_the_run_ends(tmp_path: Path) -> None:
    async def run() -> None:
        async with TinyServer().running() as server:
            source = open_source("synthetic:20", speed=0)
            device = runtime(settings(tmp_path, server.url), source, journal=tmp_path / "j")
            summary = await asyncio.wait_for(device.run(), 120)
            count = summary.status.windows_seen
            assert count == 39  # 20 s in windows of 1 s (1.015 with the analysis), every half second; the last padded
            assert sorted(sequence for _, _, sequence in server.windows) == list(range(1, count + 1))
            assert (summary.left_in_queue, summary.status.results, summary.accepted_through) == (0, count, count)
            assert server.repeats == 0
            rows = list(read_journal(tmp_path / "j"))
            sent = [row for row in rows if row["kind"] == "window"]
            assert [row["sequence"] for row in sent] == list(range(1, count + 1))
            assert sum(row["kind"] == "result" for row in rows) == count
            assert all(row["label"] for row in sent)
            assert isinstance(server.messages[-1], Stats) and server.messages[-1].windows_sent == count

    asyncio.run(run())


def test_pieces_of_consecutive_windows_hold_only_what_is_new(tmp_path: Path) -> None:
    async def run() -> None:
        async with TinyServer().running() as server:
            device = runtime(settings(tmp_path, server.url), open_source("synthetic:6", speed=0))
            await asyncio.wait_for(device.run(), 120)
            headers = [unpack_media(frame.payload)[0] for _, frame in sorted(server.windows.items())]
            assert [header.new_frames for header in headers] == [100] + [50] * (len(headers) - 1)
            assert [header.window for header in headers] == list(range(len(headers)))

    asyncio.run(run())


def test_a_rejected_window_makes_the_next_one_whole(tmp_path: Path) -> None:
    async def run() -> None:
        async with TinyServer().running() as server:

            def answer(frame):
                if frame.sequence == 4:
                    return Error(code="bad_window", detail="missing_overlap: ...", sequence=4)
                return Result(sequence=frame.sequence, window=0, capture_ms=frame.timestamp_ms, uncertainty=1.0)

            server.result = answer
            device = runtime(settings(tmp_path, server.url), open_source("synthetic:30", speed=20), speed=20)
            summary = await asyncio.wait_for(device.run(), 120)
            assert summary.status.windows_rejected == 1
            assert summary.left_in_queue == 0 and summary.status.results == summary.accepted_through - 1
            new = [unpack_media(frame.payload)[0].new_frames for _, frame in sorted(server.windows.items())]
            assert new[:4] == [100, 50, 50, 50] and new[4:].count(100) == 1

    asyncio.run(run())


@pytest.mark.realtime
def test_real_time_is_real_time_and_latency_is_from_capture_to_result(tmp_path: Path) -> None:
    async def run() -> None:
        async with TinyServer().running() as server:
            device = runtime(settings(tmp_path, server.url), open_source("synthetic:60", speed=1), speed=1)
            started = time.monotonic()
            summary = await asyncio.wait_for(device.run(duration_s=3.0), 20)
            took = time.monotonic() - started
            assert 3.0 <= took < 4.5
            assert 3 <= summary.status.windows_seen <= 6
            assert 0 < summary.status.latency_ms < 500
            assert summary.status.results == summary.accepted_through

    asyncio.run(run())


def test_windows_of_an_outage_are_counted_and_those_behind_it_hold_no_sound_from_before(tmp_path: Path) -> None:
    """Two seconds, three without a microphone, two seconds: of the windows that end half a second apart eight are
    missed, and the next one is whole."""
    now_s = 0.0

    def microphone(level: float, *, lost: bool) -> Iterator[AudioBlock]:
        nonlocal now_s
        for place in range(20):
            now_s += 0.1
            yield AudioBlock(np.full(1_600, level, np.float32), 100.0 * place, None, None)
        if lost:
            now_s += 3.0
            raise AudioError("pulled out")

    class Microphone:
        info = SourceInfo("microphone", "fake", False, ())

        def __init__(self, level: float, lost: bool) -> None:
            self._blocks = microphone(level, lost=lost)

        def __iter__(self) -> Iterator[AudioBlock]:
            return self._blocks

        def close(self) -> None:
            pass

    async def run() -> None:
        async with TinyServer().running() as server:
            source = ReconnectingSource(
                lambda: Microphone(0.1, True), lambda: Microphone(0.2, False), longest_s=0.001, clock_s=lambda: now_s
            )
            config = settings(tmp_path, server.url, splitting={"agent": {"policy": "fixed", "cut": "0:pcm16"}})
            device = runtime(config, source, journal=tmp_path / "j")
            status = (await asyncio.wait_for(device.run(), 30)).status
            assert (status.windows_seen, status.windows_sent, status.windows_missed) == (5, 5, 8)
            assert (status.microphone_outages, status.microphone_gone_s) == (1, 3.0)
            assert status.dropped_audio_ms == 0 and status.problem == ""
            pieces = [unpack_media(frame.payload) for _, frame in sorted(server.windows.items())]
        assert [header.window for header, _ in pieces] == [0, 1, 2, 3, 4]
        assert [(header.new_frames, header.flags) for header, _ in pieces[:4]] == [(100, 1), (50, 0)] * 2
        levels = [set(np.round(np.frombuffer(sound, "<i2") / 32_768, 3)) for _, sound in pieces]
        assert levels == [{0.1}] * 2 + [{0.2}] * 2 + [{0.2, 0.0}]  # the last one is filled up
        rows = [row for row in read_journal(tmp_path / "j") if row["kind"] in ("device", "gap")]
        said = [(row["kind"], row.get("gone"), row.get("gone_s"), row.get("outage")) for row in rows]
        assert said == [("device", True, 0.0, None), ("device", False, 3.0, None), ("gap", None, None, True)]
        assert rows[0]["reason"].startswith("pulled out")

    asyncio.run(run())


def test_without_a_server_windows_wait_on_disk_and_go_up_later(tmp_path: Path) -> None:
    async def run() -> None:
        server = TinyServer()
        async with server.running():
            url = server.url
        config = settings(tmp_path, url, server={"drain_s": 0.2})
        first = await runtime(config, open_source("synthetic:10", speed=0)).run()
        assert first.left_in_queue == first.accepted_through == 19
        async with server.running():
            second = await asyncio.wait_for(runtime(config, open_source("synthetic:3", speed=0)).run(), 120)
        assert second.epoch == first.epoch and second.left_in_queue == 0
        assert sorted(s for _, _, s in server.windows) == list(range(1, second.accepted_through + 1))
        windows = [unpack_media(frame.payload)[0].window for _, frame in sorted(server.windows.items())]
        assert len(set(windows)) == len(windows)  # a restarted device does not reuse indices

    asyncio.run(run())


def test_a_full_queue_drops_loudly_and_the_device_goes_on(tmp_path: Path) -> None:
    async def run() -> None:
        config = settings(tmp_path, "ws://127.0.0.1:9/v1/stream", queue={"max_windows": 5}, server={"drain_s": 0.0})
        device = runtime(config, open_source("synthetic:10", speed=0))
        summary = await asyncio.wait_for(device.run(), 120)
        assert summary.accepted_through == 5 and summary.status.windows_dropped == 14
        assert "full" in summary.status.problem
        queue = OfflineQueue(config.queue_path)
        new = [unpack_media(row.payload)[0].new_frames for row in queue.after(0, 99)]
        assert new == [100, 50, 50, 50, 50]
        queue.close()

    asyncio.run(run())


def test_a_full_disk_is_reported_and_the_device_goes_on(tmp_path: Path) -> None:
    async def run() -> None:
        config = settings(tmp_path, "ws://127.0.0.1:9/v1/stream", server={"drain_s": 0.0})
        device = runtime(config, open_source("synthetic:20", speed=0))
        pages = device.queue._db.execute("PRAGMA page_count").fetchone()[0]
        device.queue._db.execute(f"PRAGMA max_page_count = {pages + 12}")
        summary = await asyncio.wait_for(device.run(), 120)
        assert summary.status.windows_seen == 39
        assert summary.status.windows_dropped == 39 - summary.accepted_through > 0
        assert "full" in summary.status.problem

    asyncio.run(run())


def test_a_refused_device_stops_with_the_servers_reason_and_keeps_its_windows(tmp_path: Path) -> None:
    async def run() -> None:
        async with TinyServer().running() as server:
            config = settings(tmp_path, server.url, server={"token": "wrong"})
            with pytest.raises(ConnectionRefused, match="bad_token"):
                await asyncio.wait_for(runtime(config, open_source("synthetic", speed=1), speed=1).run(), 120)
            OfflineQueue(config.queue_path).close()  # nobody holds it any more

    asyncio.run(run())


class BrokenSource:
    """Three seconds of sound, then the driver fails."""

    info = SourceInfo("microphone", "broken", True, ())

    def __iter__(self):
        for index in range(30):
            yield AudioBlock(np.full(1600, 0.01, np.float32), index * 100.0, None, None)
        raise AudioError("the microphone is gone; plug it in again")

    def close(self) -> None:
        pass


def test_a_failing_source_ends_the_run_with_its_error_after_what_was_heard_is_sent(tmp_path: Path) -> None:
    async def run() -> None:
        async with TinyServer().running() as server:
            with pytest.raises(AudioError, match="plug it in"):
                await asyncio.wait_for(runtime(settings(tmp_path, server.url), BrokenSource(), speed=1).run(), 120)
            assert len(server.windows) == 5

    asyncio.run(run())


class SpikySource(BrokenSource):
    """A driver that now and then gives NaN."""

    def __iter__(self):
        for index in range(60):
            samples = np.random.default_rng(index).normal(0, 0.1, 1600).astype(np.float32)
            if index == 25:
                samples[7] = np.nan
            yield AudioBlock(samples, index * 100.0, None, None)


def test_audio_that_is_not_finite_costs_its_window_only(tmp_path: Path) -> None:
    async def run() -> None:
        async with TinyServer().running() as server:
            config = settings(tmp_path, server.url, audio={"buffer_s": 60.0})
            summary = await asyncio.wait_for(runtime(config, SpikySource(), speed=1).run(), 120)
            assert "2500 ms left out" in summary.status.problem
            assert summary.left_in_queue == 0 and len(server.windows) == summary.status.windows_sent
            headers = [unpack_media(frame.payload)[0] for _, frame in sorted(server.windows.items())]
            assert [header.new_frames for header in headers[:8]] == [100, 50, 50, 100, 50, 50, 50, 50]

    asyncio.run(run())


def test_stop_from_another_thread_ends_in_good_order(tmp_path: Path) -> None:
    async def run() -> None:
        async with TinyServer().running() as server:
            device = runtime(settings(tmp_path, server.url), open_source("synthetic", speed=4), speed=4)
            threading.Timer(1.0, device.stop).start()
            started = time.monotonic()
            summary = await asyncio.wait_for(device.run(), 120)
            assert time.monotonic() - started < 4
            assert summary.left_in_queue == 0 and summary.status.connection == "ended"

    asyncio.run(run())


async def heard_as(device: EdgeRuntime, cut: str, more_than: int = 0) -> None:
    """Waits until windows have gone up at `cut`."""
    deadline = time.monotonic() + 120
    while device.counters.cuts[cut] <= more_than:
        assert time.monotonic() < deadline, device.counters.cuts
        await asyncio.sleep(0.02)


def test_the_server_may_change_the_policy_and_give_it_back(tmp_path: Path) -> None:
    async def run() -> None:
        async with TinyServer().running() as server:
            server.on_open = lambda session: session.send(Policy(policy="fixed", cut="0:pcm16"))
            config = settings(tmp_path, server.url, splitting={"agent": {"policy": "greedy"}})
            device = runtime(config, open_source("synthetic", speed=10), speed=10)
            running = asyncio.create_task(device.run())
            await heard_as(device, "0:pcm16", 3)
            before = device.counters.cuts["0:logmel-int8"]
            server.sessions[0].send(Policy(policy="own"))
            await heard_as(device, "0:logmel-int8", before)
            device.stop()
            await running

    asyncio.run(run())


def test_a_device_whose_cut_was_fixed_by_its_owner_does_not_take_another(tmp_path: Path) -> None:
    async def run() -> None:
        async with TinyServer().running() as server:
            server.on_open = lambda session: session.send(Policy(policy="fixed", cut="0:pcm16"))
            device = runtime(
                settings(tmp_path, server.url), open_source("synthetic:20", speed=0), journal=tmp_path / "j"
            )
            summary = await asyncio.wait_for(device.run(), 120)
            assert summary.cuts == {"0:logmel-int8": 39}
            told = [row for row in read_journal(tmp_path / "j") if row["kind"] == "policy"]
            assert told and all(row["refused"] for row in told)

    asyncio.run(run())


def test_results_with_embeddings_feed_the_memory_of_a_device_without_an_encoder(tmp_path: Path) -> None:
    async def run() -> None:
        async with TinyServer().running() as server:
            rng = np.random.default_rng(0)

            def answer(frame):
                z = rng.normal(size=128)
                z = (z / np.linalg.norm(z)).astype("<f2").tobytes()
                return Result(
                    sequence=frame.sequence, window=0, capture_ms=frame.timestamp_ms, uncertainty=1.0, embedding=z
                )

            server.result = answer
            device = runtime(settings(tmp_path, server.url), open_source("synthetic:60", speed=0))
            summary = await asyncio.wait_for(device.run(), 120)
            assert summary.status.results == summary.accepted_through
            assert device.model._mixture.observations == summary.status.results
            assert np.isfinite(device.model._last)

    asyncio.run(run())
