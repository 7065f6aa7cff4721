"""A real device and a real server at the cuts that need fitted weights: bottlenecks and early exits."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path

from server_harness import make_settings, running

from streamsplit.edge.runtime import EdgeRuntime
from streamsplit.edge.settings import EdgeSettings
from streamsplit.edge.sources import open_source
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.policy import FixedPolicy
from streamsplit.wire.media import Encoding

NARROWED, EARLY = Cut.parse("5:bottleneck-int8"), Cut.parse("7:exit-fp16")


async def until(condition, task: asyncio.Future) -> None:
    """Waits for something to become true while a device runs."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline and not task.done()
        await asyncio.sleep(0.02)


def test_a_first_revision_brings_bottlenecks_and_exits_that_both_ends_then_use(tmp_path: Path) -> None:
    server_settings = make_settings(
        tmp_path / "server", aggregation={"min_devices_per_update": 1}, encoder={"width": 0.25},
        training={
            "enabled": True, "worker": "thread", "warm_start_windows": 24, "batch_size": 8, "step_interval_s": 0.0,
            "publish_steps": 1_000_000, "publish_interval_s": 0.0,
        },
    )  # fmt: skip

    async def go(url: str) -> None:
        config = EdgeSettings.from_mapping(
            {
                "device": {"id": "edge-1", "state_dir": str(tmp_path / "state")},
                "encoder": {"width": 0.25},
                "server": {"url": url, "token": "secret", "drain_s": 20.0},
                "splitting": {"agent": {"policy": "fixed", "cut": "0:logmel-int8"}, "gate": {"enabled": False}},
                "training": {"enabled": False},
                "sync": {"download_min_bps": 0.0},
            }
        )
        device = EdgeRuntime(config, open_source("synthetic", speed=10.0, seed=1), speed=10.0)
        assert not device.model.ready_for(NARROWED) and not device.model.ready_for(EARLY)
        task = asyncio.ensure_future(asyncio.wait_for(device.run(duration_s=600.0), 120))
        await until(lambda: device.model.ready_for(NARROWED) and device.model.ready_for(EARLY), task)
        for cut, count in ((NARROWED, 15), (EARLY, 80)):
            device.pipeline.policy = FixedPolicy(cut)
            seen = device.counters.windows_seen
            await until(lambda wanted=seen + count: device.counters.windows_seen > wanted, task)
        device.stop()
        await task

    with running(server_settings) as server:
        asyncio.run(go(f"ws://127.0.0.1:{server.port}/v1/stream"))
    path = tmp_path / "server" / "server.sqlite"
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT block, encoding, error, length(embedding) FROM windows").fetchall()
    assert {error for _, _, error, _ in rows} == {""} and {size for *_, size in rows} == {2 * 128}
    cuts = [Cut(block, Encoding(encoding)) for block, encoding, _, _ in rows]
    assert cuts.count(NARROWED) >= 10
    assert cuts.count(EARLY) >= 5  # where the exit was sure
    assert cuts.count(Cut(13, Encoding.EMBEDDING_FP16)) >= 20  # where it was not, or warmed up
