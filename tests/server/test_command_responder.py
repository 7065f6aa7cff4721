"""The hook that is a command: however much it complains, it is heard to its end."""

from __future__ import annotations

import asyncio
import sys

import numpy as np
import pytest

from streamsplit.errors import AudioError
from streamsplit.server.dialogue.question import Named, Question
from streamsplit.server.dialogue.responders import Command
from streamsplit.wire.dialogue import Kind, Utterance

COMPLAINS = "import sys; sys.stdin.buffer.read(); sys.stderr.write('x' * 400_000 + 'the end'); sys.exit({code})"


async def unnamed(sound: np.ndarray) -> Named:
    return Named("", 0.0, 0)


def ask(code: int) -> list[np.ndarray]:
    async def run() -> list[np.ndarray]:
        piece = Utterance(1, 0, Kind.PCM16, 20.0, (bytes(640),))
        question = Question("pi", piece, unnamed)
        question.add(piece, 0.0)
        question.finish()
        command = Command((sys.executable, "-c", COMPLAINS.format(code=code)))
        return [reply async for reply in command.respond(question)]

    return asyncio.run(asyncio.wait_for(run(), 60.0))


def test_a_command_that_fills_its_errors_does_not_stand_still() -> None:
    assert ask(0) == []
    with pytest.raises(AudioError, match="the command ended with code 3: xxx"):
        ask(3)
