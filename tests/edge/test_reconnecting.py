"""A microphone that goes away and comes back: time goes on behind the gap, it is said once, nothing is left over."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from streamsplit.edge.blocks import AudioBlock, SourceInfo
from streamsplit.edge.outages import Backoff, DeviceChange
from streamsplit.edge.reconnecting import ReconnectingSource
from streamsplit.errors import AudioError, DriverError

BLOCK_S = 0.1


class World:
    """Microphones by script: how many blocks each gives before it fails; None cannot be opened, and takes a second."""

    def __init__(self, *script: int | None, error: Exception | None = None) -> None:
        self.script, self.error = list(script), error or AudioError("pulled out")
        self.now_s = 1_000.0
        self.opened = self.closed = 0

    def clock_s(self) -> float:
        return self.now_s

    def open(self) -> Microphone:
        count = self.script.pop(0)
        self.now_s += 1.0
        if count is None:
            raise AudioError("not there")
        self.opened += 1
        return Microphone(self, count)

    def source(self) -> ReconnectingSource:
        return ReconnectingSource(self.open, self.open, longest_s=0.001, clock_s=self.clock_s)


class Microphone:
    info = SourceInfo("microphone", "fake", True, ())

    def __init__(self, world: World, count: int) -> None:
        self.world, self.count = world, count

    def __iter__(self) -> Iterator[AudioBlock]:
        try:
            for place in range(self.count):
                self.world.now_s += BLOCK_S
                yield AudioBlock(np.full(1_600, 0.1, np.float32), 100.0 * place, None, None)
            raise self.world.error
        finally:
            self.world.closed += 1

    def close(self) -> None:
        pass


def test_time_goes_on_behind_a_gap_that_is_as_long_as_the_device_was_gone() -> None:
    """Two blocks; one try in vain and one that opens, of a second each; two blocks; the same with no block between."""
    world = World(2, None, 2, 0, 1)
    source = world.source()
    told: list[DeviceChange] = []
    source.outages.watch(told.append)
    blocks = []
    for block in source:
        blocks.append((round(block.start_ms, 6), block.outage))
        if len(blocks) == 5:
            source.close()
    assert blocks == [(0.0, False), (100.0, False), (2_200.0, True), (2_300.0, False), (4_400.0, True)]
    assert [change.device for change in told] == ["microphone"] * 4
    reason = "pulled out; it is tried again at least every 0.001 s"
    assert [change.reason for change in told] == [reason, "", reason, ""]
    assert [round(change.gone_s, 6) for change in told] == [0.0, 2.0, 0.0, 2.0]
    assert source.outages.figures == {"microphone_outages": 2, "microphone_gone_s": 4.0}
    assert world.opened == world.closed == 4


def test_many_cycles_leave_no_thread_and_no_device_behind() -> None:
    world, threads = World(*[1, None] * 200, 1), threading.active_count()
    source = world.source()
    for number, _ in enumerate(source, 1):
        assert threading.active_count() == threads
        if number == 201:
            source.close()
    assert number == 201 and source.outages.figures["microphone_outages"] == 200
    assert world.opened == world.closed == 201


def test_a_device_that_never_gave_anything_and_an_error_of_another_kind_end_it() -> None:
    with pytest.raises(AudioError, match="not there"):
        World(None).source()
    world = World(0, 5)
    with pytest.raises(AudioError, match="pulled out"):
        list(world.source())
    with pytest.raises(DriverError, match="start anew"):
        list(World(3, error=DriverError("start anew")).source())
    assert world.opened == world.closed == 1


def test_closing_ends_a_wait_for_the_device() -> None:
    world = World(1)
    source = ReconnectingSource(world.open, world.open, longest_s=3_600.0, clock_s=world.clock_s)
    source.outages.watch(lambda change: source.close())  # while it is lost
    assert len(list(source)) == 1 and source.outages.under_way_s == pytest.approx(0.0)
    world.now_s += 7.0
    assert source.outages.figures == {"microphone_outages": 1, "microphone_gone_s": 7.0}  # it never came back


def test_waits_double_up_to_the_longest_and_begin_anew_after_a_device_that_stayed() -> None:
    backoff = Backoff(3.0)
    assert [backoff.wait_s() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    backoff.lost(stayed_s=2.9)
    assert backoff.wait_s() == 3.0
    backoff.lost(stayed_s=3.0)
    assert backoff.wait_s() == 0.5
