"""What the server remembers of voice clients' questions: each is taken once, and the memory has a bound."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from streamsplit.server.connection import Link
from streamsplit.server.dialogue import exchange
from streamsplit.server.dialogue.exchange import Dialogues
from streamsplit.server.dialogue.question import Named
from streamsplit.server.dialogue.responders import Echo
from streamsplit.server.dialogue.settings import DialogueSettings
from streamsplit.server.fleet import Device
from streamsplit.wire.dialogue import Kind, Utterance, pack_utterance
from streamsplit.wire.frame import Frame
from streamsplit.wire.session import ServerSession
from streamsplit.wire.types import FrameFlag, FrameType


async def unnamed(device: str, sound: np.ndarray, learn: bool) -> Named:
    raise AssertionError(f"{device}: nobody asked for a name")


def ask(dialogues: Dialogues, device: str, number: int) -> None:
    """A whole question of one 20 ms frame, from a device that is gone before it is answered."""
    link = Link(Device(device), ServerSession(0.0), stream=None)  # type: ignore[arg-type]  # no windows here
    piece = Utterance(number, 0, Kind.PCM16, 20.0, (bytes(640),))
    dialogues.on_frame(link, Frame(FrameType.DIALOGUE, FrameFlag.FINAL, 1, 0, pack_utterance(piece)))


def test_beyond_the_bound_the_devices_silent_for_longest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MOST_DEVICES", 2)

    async def scenario() -> list[int]:
        dialogues = Dialogues(DialogueSettings(learn=False), Echo(), unnamed)
        taken = []
        for device in ("a", "b", "a", "c", "a", "b"):  # the second 'a' is its question again; 'c' pushes 'b' out
            ask(dialogues, device, 7)
            taken.append(dialogues.questions)
            await asyncio.sleep(0.05)
        dialogues.close()
        return taken

    assert asyncio.run(scenario()) == [1, 2, 2, 3, 3, 4]
