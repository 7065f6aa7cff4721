"""The offline queue: what is accepted stays, in order and without holes, and a full queue says so."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.edge.queue import OfflineQueue, QueueSettings
from streamsplit.errors import StoreError
from streamsplit.wire.types import FrameType

FEATURES = FrameType.FEATURES


def fill(queue: OfflineQueue, count: int, size: int = 100) -> list[int | None]:
    start = queue.next_window
    return [queue.accept(FEATURES, 1000 + i, start + i, bytes([i % 256]) * size) for i in range(count)]


def test_numbers_count_from_one_without_holes_and_rows_come_back_in_order(tmp_path: Path) -> None:
    queue = OfflineQueue(tmp_path / "q.sqlite")
    assert fill(queue, 5) == [1, 2, 3, 4, 5]
    rows = queue.after(2, 2)
    assert [(row.sequence, row.window, row.timestamp_ms) for row in rows] == [(3, 2, 1002), (4, 3, 1003)]
    assert rows[0].payload == bytes([2]) * 100 and rows[0].frame_type is FEATURES
    assert (queue.oldest_sequence, queue.next_sequence, queue.pending) == (1, 6, 5)


def test_everything_survives_closing(tmp_path: Path) -> None:
    queue = OfflineQueue(tmp_path / "q.sqlite")
    fill(queue, 4)
    queue.acknowledge(1)
    queue.take_result(1)
    epoch, held = queue.epoch, queue.pending_bytes
    queue.close()
    again = OfflineQueue(tmp_path / "q.sqlite")
    assert (again.epoch, again.oldest_sequence, again.next_sequence, again.next_window) == (epoch, 2, 5, 4)
    assert (again.pending, again.pending_bytes, again.results_from) == (3, held, 2)


def test_accepted_windows_survive_a_kill_at_any_moment(tmp_path: Path) -> None:
    script = """
import os, sys
from streamsplit.edge.queue import OfflineQueue
from streamsplit.wire.types import FrameType
queue = OfflineQueue(sys.argv[1])
for i in range(100000):
    number = queue.accept(FrameType.AUDIO, i, i, i.to_bytes(4, "little") * 200)
    print(number, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "q.sqlite")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(200)]
    process.kill()
    told += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    process.wait()
    queue = OfflineQueue(tmp_path / "q.sqlite")
    rows = queue.after(0, 1_000_000)
    assert [row.sequence for row in rows] == list(range(1, queue.next_sequence))
    assert queue.next_sequence - 1 >= told[-1] == len(told) >= 200
    assert all(row.payload == row.window.to_bytes(4, "little") * 200 for row in rows)


@pytest.mark.parametrize("limits", [{"max_windows": 3}, {"max_bytes": 10_000}])
def test_a_full_queue_refuses_the_newest_and_tears_no_hole(tmp_path: Path, limits: dict[str, int]) -> None:
    queue = OfflineQueue(tmp_path / "q.sqlite", QueueSettings(**limits))
    size = 100 if "max_windows" in limits else 3000
    numbers = fill(queue, 5, size)
    assert numbers == [1, 2, 3, None, None]
    queue.acknowledge(1)
    assert fill(queue, 1, size) == [4]
    assert [row.sequence for row in queue.after(0, 10)] == [2, 3, 4]


def test_an_acknowledgement_forgets_and_repeating_it_is_harmless(tmp_path: Path) -> None:
    queue = OfflineQueue(tmp_path / "q.sqlite")
    fill(queue, 3)
    assert queue.acknowledge(2) == 2
    assert queue.acknowledge(2) == 0
    assert queue.acknowledge(1) == 0
    assert queue.pending == 1 and queue.pending_bytes > 0
    assert queue.acknowledge(3) == 1 and queue.pending_bytes == 0
    assert queue.oldest_sequence == queue.next_sequence == 4


def test_a_result_counts_once(tmp_path: Path) -> None:
    queue = OfflineQueue(tmp_path / "q.sqlite")
    fill(queue, 3)
    assert queue.results_from == 1
    assert queue.take_result(2) and not queue.take_result(2)
    assert queue.take_result(1)
    assert queue.results_from == 3
    assert not queue.take_result(99)


def test_results_waited_for_are_bounded(tmp_path: Path) -> None:
    queue = OfflineQueue(tmp_path / "q.sqlite", QueueSettings(max_awaited=2))
    fill(queue, 5)
    assert queue.results_from == 4
    assert not queue.take_result(1) and queue.take_result(5)


def test_a_new_epoch_renumbers_what_is_held(tmp_path: Path) -> None:
    queue = OfflineQueue(tmp_path / "q.sqlite")
    fill(queue, 5)
    queue.acknowledge(3)
    before = queue.epoch
    assert queue.new_epoch() == 2
    assert queue.epoch != before
    assert [(row.sequence, row.window) for row in queue.after(0, 9)] == [(1, 3), (2, 4)]
    assert (queue.next_sequence, queue.results_from, queue.next_window) == (3, 1, 5)
    queue.close()
    again = OfflineQueue(tmp_path / "q.sqlite")
    assert again.next_sequence == 3 and again.pending == 2


def test_a_full_disk_is_reported_and_what_was_accepted_stays(tmp_path: Path) -> None:
    queue = OfflineQueue(tmp_path / "q.sqlite")
    fill(queue, 2)
    pages = queue._db.execute("PRAGMA page_count").fetchone()[0]
    queue._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreError, match="full"):
        for i in range(100):
            queue.accept(FEATURES, 0, i, bytes(4000))
    accepted = queue.next_sequence - 1
    assert [row.sequence for row in queue.after(0, 999)] == list(range(1, accepted + 1))
    queue._db.execute("PRAGMA max_page_count = 100000")
    assert queue.accept(FEATURES, 0, 100, bytes(4000)) == accepted + 1


def test_a_second_process_on_the_same_file_is_told_so(tmp_path: Path) -> None:
    queue = OfflineQueue(tmp_path / "q.sqlite")
    with pytest.raises(StoreError, match="another device process"):
        OfflineQueue(tmp_path / "q.sqlite")
    queue.close()


def test_a_file_that_is_no_queue_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    path.write_bytes(b"these are my notes" * 100)
    with pytest.raises(StoreError, match="move it away"):
        OfflineQueue(path)
    assert path.read_bytes().startswith(b"these are my notes")


def test_a_queue_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    OfflineQueue(path).close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = 9 WHERE name = 'schema'")
    db.close()
    with pytest.raises(StoreError, match="schema 9"):
        OfflineQueue(path)


def test_threads_may_accept_and_acknowledge_at_once(tmp_path: Path) -> None:
    queue = OfflineQueue(tmp_path / "q.sqlite")
    done = threading.Event()

    def acknowledge() -> None:
        while not done.is_set():
            queue.acknowledge(queue.next_sequence - 3)

    thread = threading.Thread(target=acknowledge)
    thread.start()
    numbers = fill(queue, 300)
    done.set()
    thread.join()
    assert numbers == list(range(1, 301))
    assert [row.sequence for row in queue.after(0, 999)] == list(range(queue.oldest_sequence, 301))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("accept"), st.integers(1, 3000)),
            st.tuples(st.just("ack"), st.integers(0, 40)),
            st.tuples(st.just("reopen"), st.just(0)),
        ),
        max_size=40,
    )
)
def test_any_history_agrees_with_a_plain_list(tmp_path_factory: pytest.TempPathFactory, steps: list) -> None:
    path = tmp_path_factory.mktemp("queue") / "q.sqlite"
    limits = QueueSettings(max_bytes=10_000, max_windows=8)
    queue = OfflineQueue(path, limits)
    model: list[tuple[int, int]] = []
    assigned = 0
    for step, value in steps:
        if step == "accept":
            fits = len(model) < 8 and sum(size + 64 for _, size in model) + value + 64 <= 10_000
            number = queue.accept(FEATURES, 0, assigned, bytes(value))
            assert (number is not None) == fits
            if fits:
                assigned += 1
                model.append((assigned, value))
                assert number == assigned
        elif step == "ack":
            queue.acknowledge(value)
            model = [row for row in model if row[0] > value]
        else:
            queue.close()
            queue = OfflineQueue(path, limits)
        assert [(row.sequence, len(row.payload)) for row in queue.after(0, 99)] == model
        assert queue.pending == len(model)
    queue.close()
