"""The inlet: paced audio is dropped loudly when nobody takes it, unpaced audio waits."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from streamsplit.edge.blocks import AudioBlock, SourceInfo
from streamsplit.edge.inlet import AudioInlet
from streamsplit.errors import AudioError


class Blocks:
    """`count` blocks of 100 ms at once; then an error, if given."""

    info = SourceInfo("synthetic", "blocks", False, ())

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.count, self.error, self.given, self.closed = count, error, 0, threading.Event()

    def __iter__(self):
        for index in range(self.count):
            if self.closed.is_set():
                return
            self.given += 1
            yield AudioBlock(np.zeros(1600, np.float32), index * 100.0, None, None)
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.closed.set()


def started(source: Blocks, *, paced: bool, buffer_s: float = 1.0) -> AudioInlet:
    inlet = AudioInlet(source, paced=paced, buffer_s=buffer_s, wall_ms=lambda: 1234)
    inlet.start()
    return inlet


def take_all(inlet: AudioInlet) -> list:
    taken = []
    while not inlet.finished:
        heard = inlet.get(1.0)
        if heard is not None:
            taken.append(heard)
    return taken


def test_unpaced_audio_waits_and_nothing_is_lost() -> None:
    source = Blocks(50)
    inlet = started(source, paced=False)
    deadline = time.monotonic() + 5
    while inlet.waiting_ms < 1000 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert source.given <= 12  # a second's worth, and the one in hand
    heard = take_all(inlet)
    assert [h.block.start_ms for h in heard] == [100.0 * i for i in range(50)]
    assert inlet.dropped_ms == 0 and not any(h.gap for h in heard)
    assert heard[0].captured_ms == 1234


def test_paced_audio_that_nobody_takes_is_dropped_oldest_first_and_the_gap_is_marked() -> None:
    inlet = started(Blocks(25), paced=True)
    inlet.join(5)
    heard = take_all(inlet)
    assert [h.block.start_ms for h in heard] == [100.0 * i for i in range(15, 25)]
    assert [h.gap for h in heard] == [True] + [False] * 9
    assert inlet.dropped_ms == 1500


def test_what_the_source_lost_is_a_gap_too() -> None:
    class Jumping(Blocks):
        def __iter__(self):
            for block in super().__iter__():
                yield block._replace(start_ms=block.start_ms + (300.0 if block.start_ms >= 200.0 else 0.0))

    inlet = started(Jumping(4), paced=False)
    heard = take_all(inlet)
    assert [h.block.start_ms for h in heard] == [0.0, 100.0, 500.0, 600.0]
    assert [h.gap for h in heard] == [False, False, True, False] and inlet.dropped_ms == 300


def test_an_error_of_the_source_is_kept_and_what_was_heard_before_can_be_taken() -> None:
    inlet = started(Blocks(3, AudioError("unplugged")), paced=True)
    assert len(take_all(inlet)) == 3
    with pytest.raises(AudioError, match="unplugged"):
        raise inlet.error


def test_closing_ends_a_waiting_source() -> None:
    source = Blocks(1000)
    inlet = started(source, paced=False)
    time.sleep(0.05)
    inlet.close()
    inlet.join(5)
    assert source.closed.is_set() and source.given < 20
    assert len(take_all(inlet)) >= 10
