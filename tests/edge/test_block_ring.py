"""The ring between an audio driver's thread and ours: order, losses counted exactly, nothing torn; the bell."""

from __future__ import annotations

import threading
import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streamsplit.edge.ring import Bell, BlockRing


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5))
def test_it_is_a_queue_that_forgets_its_oldest(moves: list[bool], blocks: int) -> None:
    """Against a list: True puts the next number, False takes one."""
    ring, model, out = BlockRing(2, blocks), [], np.zeros(2, np.float32)
    written = lost = 0
    for put in moves:
        if put:
            ring.put(np.full(2, written, np.float32))
            model.append(written)
            written += 1
            if len(model) > blocks:
                model.pop(0)
                lost += 1
        elif model:
            assert ring.get(out) == lost and out.tolist() == [model[0], model.pop(0)]
            lost = 0
        else:
            assert ring.get(out) == -1
        assert ring.held == len(model) + lost


def test_two_threads_lose_nothing_untold_and_tear_nothing() -> None:
    ring, total, size = BlockRing(4_096, 3), 4_000, 4_096
    done = threading.Event()

    def write() -> None:
        block = np.zeros(size, np.float32)
        for number in range(total):
            block.fill(number)
            ring.put(block)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    out, expected = np.zeros(size, np.float32), 0
    while True:
        over = done.is_set()
        lost = ring.get(out)
        if lost < 0 and over:
            break
        if lost >= 0:
            expected += lost
            assert out.min() == out.max() == expected
            expected += 1
    writer.join()
    assert expected == total


def test_putting_and_taking_blocks_asks_for_no_memory() -> None:
    import tracemalloc

    ring, block, out = BlockRing(16_000, 4), np.ones(16_000, np.float32), np.zeros(16_000, np.float32)
    ring.put(block)
    ring.get(out)
    tracemalloc.start()
    try:
        for _ in range(10):
            ring.put(block)
            ring.get(out)
        assert tracemalloc.get_traced_memory()[1] < 4_000  # bytes; a block has 64,000
    finally:
        tracemalloc.stop()


def test_a_bell_wakes_whoever_waits_and_never_waits_itself() -> None:
    bell = Bell()
    woken = threading.Event()

    def wait() -> None:
        bell.wait(30.0)
        woken.set()

    threading.Thread(target=wait, daemon=True).start()
    bell.ring()
    assert woken.wait(10.0)
    for _ in range(200_000):  # more than any buffer holds
        bell.ring()
    bell.wait(0.0)
    bell.close()
    bell.ring()


def test_a_bell_that_nobody_rings_is_waited_for_so_long_and_no_longer() -> None:
    bell = Bell()
    before = time.monotonic()
    bell.wait(0.05)
    assert time.monotonic() - before >= 0.05
    bell.close()
