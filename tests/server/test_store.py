"""The database: what is committed stays, once; what the disk refuses waits."""

from __future__ import annotations

import itertools
import math
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server_builders import make_commit, make_record

from streamsplit.errors import StoreError
from streamsplit.server import store as store_module
from streamsplit.server.settings import StoreSettings
from streamsplit.server.store import Store

Open = Callable[..., Store]


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Open]:
    opened: list[Store] = []
    clock = itertools.count(1_000)

    def make(**settings: object) -> Store:
        store = Store(tmp_path / "server.sqlite", StoreSettings(**settings), clock_ms=lambda: next(clock))
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close(2.0)


def commit(store: Store, *commits: object) -> None:
    done = threading.Event()
    store.submit(list(commits), done.set)  # type: ignore[arg-type]
    assert done.wait(5.0)


def test_a_window_is_there_after_done_was_called_and_after_opening_again(open_store: Open) -> None:
    store = open_store()
    commit(store, make_commit(1), make_commit(2))
    assert store.results_from("pi", 7, 1, 10) == [make_record(1), make_record(2)]
    assert store.close()
    again = open_store()
    assert again.position("pi", 7).received_through == 2
    assert again.totals() == {"windows": 2, "rejected": 0, "payload_bytes": 592}


def test_a_window_that_comes_twice_is_counted_once_and_the_first_answer_stands(open_store: Open) -> None:
    store = open_store()
    commit(store, make_commit(1, uncertainty=1.0))
    commit(store, make_commit(1, uncertainty=2.0))
    assert [record.uncertainty for record in store.results_from("pi", 7, 1, 10)] == [1.0]


def test_the_durable_prefix_stops_at_a_hole_and_jumps_when_it_is_filled(open_store: Open) -> None:
    store = open_store()
    store.open_stream("pi", 7, 1)
    commit(store, make_commit(1, b"after 1"), make_commit(3, b"after 3"), make_commit(4, b"after 4"))
    position = store.position("pi", 7)
    assert (position.received_through, position.beyond, position.overlap) == (1, frozenset({3, 4}), b"after 1")
    commit(store, make_commit(2, b"after 2"))
    position = store.position("pi", 7)
    assert (position.received_through, position.beyond, position.overlap) == (4, frozenset(), b"after 4")


def test_a_hole_survives_opening_again(open_store: Open) -> None:
    store = open_store()
    store.open_stream("pi", 7, 1)
    commit(store, make_commit(2), make_commit(3))
    assert store.close()
    again = open_store()
    assert again.position("pi", 7).received_through == 0
    commit(again, make_commit(1))
    assert again.position("pi", 7).received_through == 3


def test_a_window_without_an_overlap_keeps_the_overlap_before(open_store: Open) -> None:
    store = open_store()
    commit(store, make_commit(1, b"tail"))
    commit(store, make_commit(2, None))
    assert store.position("pi", 7).overlap == b"tail"


def test_a_stream_that_begins_late_waits_for_nothing_before_its_oldest_window(open_store: Open) -> None:
    store = open_store()
    assert not store.position("pi", 7).known
    store.open_stream("pi", 7, 40)
    commit(store, make_commit(40))
    assert store.position("pi", 7).received_through == 40


def test_windows_that_the_device_no_longer_holds_leave_no_hole_for_ever(open_store: Open) -> None:
    store = open_store()
    commit(store, make_commit(1))
    commit(store, make_commit(5))
    assert store.position("pi", 7).received_through == 1
    store.open_stream("pi", 7, 5)
    assert store.flush(5.0)
    assert store.position("pi", 7).received_through == 5


def test_epochs_of_one_device_are_counted_apart(open_store: Open) -> None:
    store = open_store()
    commit(store, make_commit(1), make_commit(1, epoch=8))
    assert store.totals()["windows"] == 2
    assert store.position("pi", 8).received_through == 1


def test_nan_comes_back_as_nan(open_store: Open) -> None:
    store = open_store()
    commit(store, make_commit(1, uncertainty=math.nan))
    assert math.isnan(store.results_from("pi", 7, 1, 1)[0].uncertainty)


def test_while_the_disk_refuses_nothing_is_done_and_afterwards_nothing_is_missing(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "RETRY_S", 0.01)
    store = open_store()
    pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
    store._writer.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own way to a full disk
    done = threading.Event()
    store.submit([make_commit(sequence) for sequence in range(1, 200)], done.set)
    for _ in range(500):
        if store.failure is not None:
            break
        done.wait(0.01)
    assert store.failure is not None and "full" in store.failure
    assert not done.is_set()
    assert store.totals()["windows"] == 0
    store._writer.execute("PRAGMA max_page_count = 100000")
    assert done.wait(5.0)
    assert store.failure is None
    assert store.position("pi", 7).received_through == 199


def test_closing_on_a_full_disk_says_where_the_windows_are(
    open_store: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_module, "RETRY_S", 0.01)
    store = open_store()
    pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
    store._writer.execute(f"PRAGMA max_page_count = {pages}")
    store.submit([make_commit(sequence) for sequence in range(1, 200)], lambda: None)
    store.record_event("started", "x" * 100)
    assert not store.close(0.2)
    told = caplog.messages[-1]
    assert "199 windows not written" in told and "full" in told and "stay in their devices' queues" in told
    assert "1 notes" in told


def test_pruning_keeps_the_newest_windows_and_embeddings_and_the_position(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "PRUNE_EVERY", 50)
    store = open_store(windows_per_device=20, embeddings_per_device=5)
    commit(store, *(make_commit(sequence) for sequence in range(1, 51)))
    records = store.recent_windows("pi", 100)
    assert [record.sequence for record in records] == list(range(31, 51))
    assert [record.sequence for record in records if record.embedding is not None] == list(range(46, 51))
    assert store.position("pi", 7).received_through == 50


def test_pruning_never_deletes_what_waits_behind_a_hole(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "PRUNE_EVERY", 20)
    store = open_store(windows_per_device=5)
    store.open_stream("pi", 7, 1)
    commit(store, *(make_commit(sequence) for sequence in range(2, 22)))
    commit(store, make_commit(1))
    assert store.position("pi", 7).received_through == 21


def test_the_newest_windows_of_all_devices_come_newest_last(open_store: Open) -> None:
    store = open_store()
    commit(store, make_commit(1, received_ms=10), make_commit(1, device="nano", received_ms=5),
           make_commit(2, received_ms=20))  # fmt: skip
    assert [(r.device, r.sequence) for r in store.recent_windows(None, 2)] == [("pi", 1), ("pi", 2)]
    assert [(r.device, r.sequence) for r in store.recent_windows("nano", 2)] == [("nano", 1)]


def test_revisions_and_events_are_kept_in_order(open_store: Open) -> None:
    store = open_store()
    store.record_revision("a" * 64, "", breaks_space=False, space=0, steps=0, report={})
    store.record_revision("b" * 64, "a" * 64, breaks_space=True, space=1, steps=64, report={"rank": 30.5})
    store.record_event("warm_start", "fitted", device="pi")
    assert store.flush(5.0)
    first, second = store.revisions()
    assert (first["revision"], second["revision"], second["base"]) == ("a" * 64, "b" * 64, "a" * 64)
    assert second["breaks_space"] is True and second["report"] == {"rank": 30.5} and second["space"] == 1
    assert [(event["kind"], event["device"]) for event in store.events(5)] == [("warm_start", "pi")]


def test_a_device_that_says_hello_again_keeps_its_first_day(open_store: Open) -> None:
    store = open_store()
    store.record_device("pi", "pi4", "1.0", "mobilenet", "")
    store.record_device("pi", "pi4", "1.1", "mobilenet", "")
    assert store.flush(5.0)
    (device,) = store.devices()
    assert device["software"] == "1.1" and device["first_seen_ms"] < device["last_seen_ms"]


def test_a_database_of_another_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "server.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="got schema 99, expected 1"):
        Store(path, StoreSettings(), clock_ms=lambda: 0)


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"server\.data_dir"):
        Store(tmp_path / "file" / "server.sqlite", StoreSettings(), clock_ms=lambda: 0)


def test_many_small_submissions_share_commits(open_store: Open) -> None:
    store = open_store()
    before = store.commits
    left = threading.Semaphore(0)
    for sequence in range(1, 501):
        store.submit([make_commit(sequence)], left.release)
    for _ in range(500):
        assert left.acquire(timeout=5.0)
    assert store.commits - before < 250
    assert store.position("pi", 7).received_through == 500
