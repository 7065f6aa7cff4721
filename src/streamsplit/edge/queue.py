"""The device's durable offline queue: windows that were accepted for sending, until the server holds them.

A window is *accepted* when it has a sequence number and its row is committed; from then on it reaches the server
exactly once, across dead links, killed processes and restarts on either side. Sequence numbers count from 1 without
holes within an epoch (a random number made with the file), because the server takes a hole for a loss. That decides
what a full queue does: it refuses the *newest* window, which then gets no number and counts as dropped, loudly.
Dropping the oldest would tear a hole into numbers that the server is waiting for, and would break the promise given
when it was accepted.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from streamsplit.config import Settings, setting
from streamsplit.errors import StoreError
from streamsplit.wire.types import FrameType

_SCHEMA_VERSION = 1
_ROW_BYTES = 64  # what a row costs beside its payload, roughly
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS windows (
  sequence INTEGER PRIMARY KEY, frame_type INTEGER NOT NULL, timestamp_ms INTEGER NOT NULL, window INTEGER NOT NULL,
  payload BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS awaited (sequence INTEGER PRIMARY KEY, window INTEGER NOT NULL);
"""


@dataclass(frozen=True, kw_only=True)
class QueueSettings(Settings):
    """Bounds of the offline queue. At 1 kB a window and two windows a second, 64 MB are about nine hours."""

    path: str = setting("")  # "" = queue.sqlite in the device's state folder
    max_bytes: int = setting(64_000_000, low=10_000)
    max_windows: int = setting(100_000, low=1)
    max_awaited: int = setting(4_096, low=1)  # results waited for; older ones are given up (the server keeps them)
    survive: str = setting("kill", choices=("kill", "power-loss"))  # power-loss: one fsync a window


class QueuedWindow(NamedTuple):
    """One accepted window."""

    sequence: int
    frame_type: FrameType
    timestamp_ms: int
    window: int
    payload: bytes


class OfflineQueue:
    """Bounded SQLite (WAL) queue of one device process; every method may be called from any thread.

    All methods raise StoreError when the disk refuses (full, gone, read-only); what was accepted before stays accepted.
    """

    def __init__(self, path: str | Path, settings: QueueSettings | None = None) -> None:
        self.path = Path(path)
        self.settings = settings or QueueSettings()
        self._lock = threading.RLock()
        self._closed = False
        self._epoch = 0
        self._next_sequence = 1
        self._next_window = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=0.5, isolation_level=None, check_same_thread=False)
            self._prepare()
        except (OSError, sqlite3.Error) as error:
            raise self._failure(error) from error
        self._pending_bytes: int
        self._pending: int
        self._pending_bytes, self._pending = self._db.execute(
            f"SELECT coalesce(sum(length(payload) + {_ROW_BYTES}), 0), count(*) FROM windows"
        ).fetchone()
        self._awaited: set[int] = {row[0] for row in self._db.execute("SELECT sequence FROM awaited")}

    @property
    def epoch(self) -> int:
        """Random u63 within which sequence numbers count."""
        return self._epoch

    @property
    def next_sequence(self) -> int:
        """The number that the next accepted window gets; everything below was accepted."""
        return self._next_sequence

    @property
    def oldest_sequence(self) -> int:
        """The lowest number still held; `next_sequence` when the queue is empty."""
        with self._lock:
            row = self._db.execute("SELECT min(sequence) FROM windows").fetchone()
        return int(row[0]) if row[0] is not None else self._next_sequence

    @property
    def next_window(self) -> int:
        """One more than the highest window index ever accepted, so that a restarted device does not reuse any."""
        return self._next_window

    @property
    def pending(self) -> int:
        """Windows accepted and not yet acknowledged."""
        return self._pending

    @property
    def pending_bytes(self) -> int:
        """Their bytes, with what a row costs."""
        return self._pending_bytes

    @property
    def results_from(self) -> int:
        """The lowest sequence whose result has not come; 0 when none is missing."""
        with self._lock:
            return min(self._awaited, default=0)

    def accept(self, frame_type: FrameType, timestamp_ms: int, window: int, payload: bytes) -> int | None:
        """Makes a window durable and returns its sequence number, or None when the queue is full.

        Raises StoreError when the disk refuses; the window is not accepted then.
        """
        size = len(payload) + _ROW_BYTES
        with self._lock:
            if self._pending >= self.settings.max_windows or self._pending_bytes + size > self.settings.max_bytes:
                return None
            sequence: int = self._next_sequence
            given_up = min(self._awaited) if len(self._awaited) >= self.settings.max_awaited else 0
            with self._transaction():
                self._db.execute(
                    "INSERT INTO windows VALUES (?, ?, ?, ?, ?)",
                    (sequence, int(frame_type), timestamp_ms, window, payload),
                )
                self._db.execute("INSERT INTO awaited VALUES (?, ?)", (sequence, window))
                if given_up:
                    self._db.execute("DELETE FROM awaited WHERE sequence = ?", (given_up,))
                self._set("next_sequence", sequence + 1)
                self._set("next_window", max(self._next_window, window + 1))
            self._next_sequence = sequence + 1
            self._next_window = max(self._next_window, window + 1)
            self._pending += 1
            self._pending_bytes += size
            self._awaited.discard(given_up)
            self._awaited.add(sequence)
            return sequence

    def after(self, sequence: int, limit: int) -> list[QueuedWindow]:
        """Up to `limit` accepted windows with higher numbers, in order."""
        with self._lock, self._guarded():
            rows = self._db.execute(
                "SELECT sequence, frame_type, timestamp_ms, window, payload FROM windows WHERE sequence > ? "
                "ORDER BY sequence LIMIT ?",
                (sequence, limit),
            ).fetchall()
        return [QueuedWindow(row[0], FrameType(row[1]), row[2], row[3], row[4]) for row in rows]

    def acknowledge(self, through: int) -> int:
        """Forgets what the server holds durably; returns how many windows that were."""
        with self._lock:
            count, size = self._db.execute(
                f"SELECT count(*), coalesce(sum(length(payload) + {_ROW_BYTES}), 0) FROM windows WHERE sequence <= ?",
                (through,),
            ).fetchone()
            if count:
                with self._transaction():
                    self._db.execute("DELETE FROM windows WHERE sequence <= ?", (through,))
                self._pending -= count
                self._pending_bytes -= size
            return int(count)

    def take_result(self, sequence: int) -> bool:
        """True the first time a result for `sequence` comes; False for one that came before or is not awaited."""
        with self._lock:
            if sequence not in self._awaited:
                return False
            with self._transaction():
                self._db.execute("DELETE FROM awaited WHERE sequence = ?", (sequence,))
            self._awaited.discard(sequence)
            return True

    def new_epoch(self) -> int:
        """Starts numbering anew and renumbers what is held; returns how many windows that were.

        For a server whose memory does not fit ours: it holds less than was acknowledged (its database was restored from
        an older copy), or more than was ever assigned (ours was).
        """
        with self._lock:
            held = self.after(0, self.settings.max_windows)
            epoch = _random_epoch()
            with self._transaction():
                self._db.execute("DELETE FROM awaited")
                self._db.execute("DELETE FROM windows")
                for number, row in enumerate(held, start=1):
                    self._db.execute(
                        "INSERT INTO windows VALUES (?, ?, ?, ?, ?)",
                        (number, int(row.frame_type), row.timestamp_ms, row.window, row.payload),
                    )
                    self._db.execute("INSERT INTO awaited VALUES (?, ?)", (number, row.window))
                self._set("epoch", epoch)
                self._set("next_sequence", len(held) + 1)
            self._epoch, self._next_sequence = epoch, len(held) + 1
            self._awaited = set(range(1, len(held) + 1))
            return len(held)

    def close(self) -> None:
        """Closes the file; harmless twice."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._db.close()

    def _prepare(self) -> None:
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")  # one device process a file
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(f"PRAGMA synchronous = {'FULL' if self.settings.survive == 'power-loss' else 'NORMAL'}")
        with self._transaction():
            for statement in filter(str.strip, _SCHEMA.split(";")):
                self._db.execute(statement)
            known = dict(self._db.execute("SELECT name, value FROM meta"))
            if not known:
                known = {"schema": _SCHEMA_VERSION, "epoch": _random_epoch(), "next_sequence": 1, "next_window": 0}
                for name, value in known.items():
                    self._set(name, value)
        if known.get("schema") != _SCHEMA_VERSION:
            raise StoreError(f"{self.path}: got schema {known.get('schema')}, expected {_SCHEMA_VERSION}; move it away")
        self._epoch, self._next_sequence = known["epoch"], known["next_sequence"]
        self._next_window = known["next_window"]

    def _set(self, name: str, value: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._guarded():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has rolled back already
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> StoreError:
        hints = {
            "locked": "another device process uses it",
            "not a database": "move it away",
            "malformed": "move it away",
        }
        hint = next(
            (text for part, text in hints.items() if part in str(error)), "free some space or give another path"
        )
        return StoreError(f"{self.path}: offline queue: {error}; {hint}")


def _random_epoch() -> int:
    return secrets.randbits(63) | 1
