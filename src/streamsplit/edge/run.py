"""Runs one device from settings: opens the source, handles Ctrl-C, returns what the run came to."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from pathlib import Path

from streamsplit.edge.counters import EdgeStatus, RunSummary
from streamsplit.edge.journal import Journal
from streamsplit.edge.runtime import EdgeRuntime
from streamsplit.edge.settings import EdgeSettings
from streamsplit.edge.sources import open_source

_LOOK_S = 0.5


async def run_device(
    settings: EdgeSettings,
    *,
    speed: float = 1.0,
    duration_s: float | None = None,
    journal: str | Path | None = None,
    on_status: Callable[[EdgeStatus], None] | None = None,
) -> RunSummary:
    """Runs until the source ends, `duration_s` is over, or Ctrl-C; see `EdgeRuntime.run` for what it raises."""
    audio = settings.audio
    source = open_source(audio.source, speed=speed, seed=audio.seed, loop=audio.loop, block_ms=audio.block_ms)
    runtime = EdgeRuntime(settings, source, speed=speed, journal=Journal(journal) if journal else None)
    loop = asyncio.get_running_loop()
    handled: list[signal.Signals] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(
            NotImplementedError, RuntimeError, ValueError
        ):  # not in the main thread, not on Windows
            loop.add_signal_handler(number, runtime.stop)
            handled.append(number)
    watcher = asyncio.create_task(_watch(runtime, on_status)) if on_status is not None else None
    try:
        return await runtime.run(duration_s)
    finally:
        if watcher is not None:
            watcher.cancel()
        for number in handled:
            loop.remove_signal_handler(number)


def run_edge(
    settings: EdgeSettings,
    *,
    speed: float = 1.0,
    duration_s: float | None = None,
    journal: str | Path | None = None,
    on_status: Callable[[EdgeStatus], None] | None = None,
) -> RunSummary:
    """`run_device` in a loop of its own; Ctrl-C ends the run in good order."""
    return asyncio.run(run_device(settings, speed=speed, duration_s=duration_s, journal=journal, on_status=on_status))


async def _watch(runtime: EdgeRuntime, on_status: Callable[[EdgeStatus], None]) -> None:
    while True:
        on_status(runtime.status())
        await asyncio.sleep(_LOOK_S)
