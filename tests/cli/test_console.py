"""Enter at a terminal: every line is one press, and a terminal that goes away ends it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from streamsplit.cli.console import on_enter


def test_every_enter_is_a_press_until_the_terminal_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()

    async def scenario() -> None:
        pressed = asyncio.Semaphore(0)
        with os.fdopen(slave) as terminal:
            monkeypatch.setattr(sys, "stdin", terminal)
            loop = asyncio.get_running_loop()
            on_enter(loop, pressed.release)
            for _ in range(2):
                os.write(master, b"\n")
                await asyncio.wait_for(pressed.acquire(), 10.0)
            os.write(master, b"\x04")  # end of file
            while terminal.fileno() in loop._selector.get_map():  # type: ignore[attr-defined]
                await asyncio.sleep(0.001)

    try:
        asyncio.run(asyncio.wait_for(scenario(), 30.0))
    finally:
        os.close(master)


def test_without_a_terminal_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        with Path(os.devnull).open() as nothing:
            monkeypatch.setattr(sys, "stdin", nothing)
            on_enter(asyncio.get_running_loop(), lambda: pytest.fail("nobody pressed anything"))
            await asyncio.sleep(0)

    asyncio.run(scenario())
