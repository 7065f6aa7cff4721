"""The server's database: SQLite in WAL mode, one writer thread that commits in groups.

A window is acknowledged after its commit only. While the disk refuses, the writer keeps what it was given and tries
again, so that nothing accepted is lost; the bound on windows in flight bounds what waits here.
"""

from __future__ import annotations

import json
import logging
import math
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from streamsplit.errors import StoreError
from streamsplit.server import schema
from streamsplit.server.records import Commit, StreamPosition, WindowRecord
from streamsplit.server.settings import StoreSettings

LOG = logging.getLogger(__name__)
RETRY_S = 0.5
PRUNE_EVERY = 2000  # windows committed between two prunings
GROUP_LIMIT = 2000  # windows in one transaction


class _Task(NamedTuple):
    done: Callable[[], None] | None = None
    commits: Sequence[Commit] = ()
    statements: Sequence[tuple[str, tuple[Any, ...]]] = ()
    opened: tuple[str, int, int] | None = None  # device, epoch, oldest sequence


class _Stream:
    """Position of one (device, epoch) in the writer: the durable prefix, and what is durable after a hole.

    The other fields say what the present transaction adds to the stream's row.
    """

    def __init__(self, through: int, beyond: Mapping[int, bytes | None]) -> None:
        self.through = through
        self.beyond = dict(beyond)
        self.overlap: bytes | None = None
        self.windows = self.rejected = self.payload_bytes = 0

    def copy(self) -> _Stream:
        """For the next transaction."""
        return _Stream(self.through, self.beyond)

    def add(self, commit: Commit) -> bool:
        """Counts one window in; False if it was durable before."""
        record = commit.record
        if record.sequence <= self.through or record.sequence in self.beyond:
            return False
        self.beyond[record.sequence] = commit.overlap
        self._advance()
        self.windows += 1
        self.rejected += record.error != ""
        self.payload_bytes += record.payload_bytes
        return True

    def begin_at(self, oldest: int) -> None:
        """Gives up what lies before `oldest`: the device no longer holds it."""
        self.through = max(self.through, oldest - 1)
        self.beyond = {sequence: overlap for sequence, overlap in self.beyond.items() if sequence > self.through}
        self._advance()

    def _advance(self) -> None:
        while self.through + 1 in self.beyond:
            self.through += 1
            overlap = self.beyond.pop(self.through)
            self.overlap = self.overlap if overlap is None else overlap


class Store:
    """Tables devices, streams, windows, revisions and events in one file; reads from any thread, writes from one."""

    def __init__(self, path: Path, settings: StoreSettings, *, clock_ms: Callable[[], int]) -> None:
        self.path = path
        self.settings = settings
        self._clock_ms = clock_ms
        self._condition = threading.Condition()
        self._tasks: deque[_Task] = deque()
        self._streams: dict[tuple[str, int], _Stream] = {}
        self._closing = False
        self._failure: str | None = None
        self._since_prune = 0
        self.commits = 0  # transactions
        self.committed_windows = 0
        self._readers = threading.local()  # one connection a thread
        self._opened: list[sqlite3.Connection] = []
        self._writer = self._open()
        self._thread = threading.Thread(target=self._run, name="streamsplit-store", daemon=True)
        self._thread.start()

    # -- writing -------------------------------------------------------------------------------------------------

    def submit(self, commits: Sequence[Commit], done: Callable[[], None]) -> None:
        """Queues windows for the next commit; `done` runs in the writer's thread when they are durable."""
        self._queue(_Task(done, commits))

    def record_device(self, device: str, device_class: str, software: str, encoder: str, revision: str) -> None:
        """Notes that a device said hello."""
        now = self._clock_ms()
        self._execute(schema.UPSERT_DEVICE, (device, now, now, device_class, software, encoder, revision))

    def open_stream(self, device: str, epoch: int, oldest_sequence: int) -> None:
        """Notes the oldest sequence that a device still holds: what lies before it will never come."""
        self._queue(_Task(opened=(device, epoch, oldest_sequence)))

    def record_event(self, kind: str, detail: str, device: str = "") -> None:
        """Appends to the journal of what happened."""
        self._execute(schema.INSERT_EVENT, (self._clock_ms(), kind, device, detail))

    def record_revision(
        self, revision: str, base: str, *, breaks_space: bool, space: int, steps: int, report: dict[str, Any]
    ) -> None:
        """Notes an encoder revision; its weights lie in a file beside the database."""
        values = (revision, base, int(breaks_space), space, self._clock_ms(), steps, json.dumps(report))
        self._execute(schema.INSERT_REVISION, values)

    def flush(self, timeout_s: float) -> bool:
        """Waits until everything queued so far is durable; False if the disk refused for that long."""
        arrived = threading.Event()
        self._queue(_Task(arrived.set))
        return arrived.wait(timeout_s)

    def close(self, timeout_s: float = 10.0) -> bool:
        """Commits what is queued and closes the file; False (and a log line) if that did not succeed in time."""
        if self._closing:
            return not self._tasks
        clean = self.flush(timeout_s)
        for reader in self._opened:  # the writer closes last and so folds the write-ahead log into the file
            reader.close()
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join(timeout_s)
        if not clean:
            left = list(self._tasks)
            LOG.error(
                "store: closed with %d windows not written (%s): none of them was acknowledged, so they stay in their "
                "devices' queues and come again; lost are %d notes on devices and events",
                sum(len(task.commits) for task in left), self._failure or "the disk is too slow",
                sum(len(task.statements) for task in left),
            )  # fmt: skip
        return clean

    @property
    def failure(self) -> str | None:
        """Why the last commit failed; None when the store is well."""
        return self._failure

    @property
    def waiting(self) -> int:
        """Tasks not durable yet."""
        return len(self._tasks)

    # -- reading -------------------------------------------------------------------------------------------------

    def position(self, device: str, epoch: int) -> StreamPosition:
        """How far a stream is durable."""
        row = self._read_one(
            "SELECT received_through, overlap FROM streams WHERE device = ? AND epoch = ?", (device, epoch)
        )
        if row is None:
            return StreamPosition(False, 0, frozenset(), None)
        beyond = self._read(
            "SELECT sequence FROM windows WHERE device = ? AND epoch = ? AND sequence > ?", (device, epoch, row[0])
        )
        return StreamPosition(True, row[0], frozenset(r[0] for r in beyond), row[1])

    def results_from(self, device: str, epoch: int, sequence: int, limit: int) -> list[WindowRecord]:
        """Committed windows of a stream from `sequence` on, in order."""
        rows = self._read(
            "SELECT * FROM windows WHERE device = ? AND epoch = ? AND sequence >= ? ORDER BY sequence LIMIT ?",
            (device, epoch, sequence, limit),
        )
        return [_record(row) for row in rows]

    def recent_windows(self, device: str | None, limit: int) -> list[WindowRecord]:
        """The newest windows of one device or of all, newest last."""
        if device is None:
            rows = self._read("SELECT * FROM windows ORDER BY received_ms DESC LIMIT ?", (limit,))
        else:
            rows = self._read(
                "SELECT * FROM windows WHERE device = ? ORDER BY received_ms DESC, epoch DESC, sequence DESC LIMIT ?",
                (device, limit),
            )
        return [_record(row) for row in reversed(rows)]

    def revisions(self) -> list[dict[str, Any]]:
        """Every published revision, oldest first."""
        rows = self._read(
            "SELECT revision, base, breaks_space, space, created_ms, steps, report FROM revisions ORDER BY number", ()
        )
        names = ("revision", "base", "breaks_space", "space", "created_ms", "steps", "report")
        return [
            {**dict(zip(names, row, strict=True)), "breaks_space": bool(row[2]), "report": json.loads(row[6])}
            for row in rows
        ]

    def events(self, limit: int) -> list[dict[str, Any]]:
        """The newest events, newest last."""
        rows = self._read("SELECT at_ms, kind, device, detail FROM events ORDER BY number DESC LIMIT ?", (limit,))
        return [dict(zip(("at_ms", "kind", "device", "detail"), row, strict=True)) for row in reversed(rows)]

    def totals(self) -> dict[str, int]:
        """Windows ever made durable, rejected ones among them, and their bytes; deleted ones count as well."""
        row = self._read_one("SELECT sum(windows), sum(rejected), sum(payload_bytes) FROM streams", ())
        count, rejected, size = (int(value or 0) for value in row or (0, 0, 0))
        return {"windows": count, "rejected": rejected, "payload_bytes": size}

    def devices(self) -> list[dict[str, Any]]:
        """Every device that ever said hello."""
        rows = self._read("SELECT * FROM devices ORDER BY device", ())
        names = ("device", "first_seen_ms", "last_seen_ms", "device_class", "software", "encoder", "revision")
        return [dict(zip(names, row, strict=True)) for row in rows]

    # -- inside --------------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=5.0, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {self.settings.synchronous}")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, schema.VERSION):
                raise StoreError(
                    f"{self.path}: got schema {version}, expected {schema.VERSION}; use another server.data_dir"
                )
            connection.executescript(schema.TABLES)
            connection.execute(f"PRAGMA user_version = {schema.VERSION}")
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{self.path}: cannot be opened ({error}); give a writable server.data_dir") from error
        return connection

    def _reader(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._readers, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self.path, timeout=5.0, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA query_only = ON")
            self._readers.connection = connection
            self._opened.append(connection)
        return connection

    def _read(self, statement: str, arguments: tuple[Any, ...]) -> list[Any]:
        try:
            return self._reader().execute(statement, arguments).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: cannot be read ({error})") from error

    def _read_one(self, statement: str, arguments: tuple[Any, ...]) -> Any | None:
        rows = self._read(statement, arguments)
        return rows[0] if rows else None

    def _execute(self, statement: str, arguments: tuple[Any, ...]) -> None:
        self._queue(_Task(statements=((statement, arguments),)))

    def _queue(self, task: _Task) -> None:
        with self._condition:
            if self._closing:
                raise StoreError(f"{self.path}: closed")
            self._tasks.append(task)
            self._condition.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._tasks and not self._closing:
                    self._condition.wait()
                if not self._tasks or (self._closing and self._failure is not None):
                    break
                group: list[_Task] = []
                windows = 0
                for task in self._tasks:
                    windows += len(task.commits)
                    if group and windows > GROUP_LIMIT:
                        break
                    group.append(task)
            try:
                self._commit(group)
            except sqlite3.Error as error:
                self._fail(error)
                continue
            if self._failure is not None:
                LOG.info("store: commits succeed again")
            self._failure = None
            with self._condition:
                for _ in group:
                    self._tasks.popleft()
            for task in group:
                if task.done is not None:
                    task.done()
        self._writer.close()

    def _fail(self, error: sqlite3.Error) -> None:
        if self._failure is None:
            LOG.error("store: commit failed, windows stay unacknowledged until it succeeds: %s", error)
        self._failure = str(error)
        if self._writer.in_transaction:
            try:
                self._writer.execute("ROLLBACK")
            except sqlite3.Error as second:
                LOG.error("store: rollback failed: %s", second)
        time.sleep(RETRY_S)

    def _commit(self, group: Sequence[_Task]) -> None:
        now = self._clock_ms()
        changed: dict[tuple[str, int], _Stream] = {}
        self._writer.execute("BEGIN IMMEDIATE")
        count = 0
        for task in group:
            for statement, arguments in task.statements:
                self._writer.execute(statement, arguments)
            if task.opened is not None:
                device, epoch, oldest = task.opened
                self._changing(changed, (device, epoch), oldest).begin_at(oldest)
            for commit in task.commits:
                record = commit.record
                if self._changing(changed, (record.device, record.epoch), record.sequence).add(commit):
                    self._writer.execute(schema.INSERT_WINDOW, record)
                    count += 1
        for (device, epoch), stream in changed.items():
            counts = (stream.windows, stream.rejected, stream.payload_bytes)
            self._writer.execute(schema.UPSERT_STREAM, (device, epoch, stream.through, stream.overlap, now, *counts))
        pruning = self._since_prune + count >= PRUNE_EVERY
        if pruning:
            self._prune()
        self._writer.execute("COMMIT")
        self._streams.update(changed)
        self._since_prune = 0 if pruning else self._since_prune + count
        self.commits += 1
        self.committed_windows += count

    def _changing(self, changed: dict[tuple[str, int], _Stream], key: tuple[str, int], sequence: int) -> _Stream:
        """The stream as this transaction leaves it; one never heard of starts at `sequence`."""
        if key not in changed:
            stream = self._streams.get(key)
            if stream is None:
                row = self._writer.execute(
                    "SELECT received_through FROM streams WHERE device = ? AND epoch = ?", key
                ).fetchone()
                through = row[0] if row is not None else sequence - 1
                rows = self._writer.execute(
                    "SELECT sequence FROM windows WHERE device = ? AND epoch = ? AND sequence > ?", (*key, through)
                ).fetchall()
                stream = _Stream(through, dict.fromkeys(r[0] for r in rows))
            changed[key] = stream.copy()
        return changed[key]

    def _prune(self) -> None:
        """Keeps the newest windows of each device, the newest embeddings, the newest events; positions stay."""
        self._writer.execute(schema.DROP_OLD_OVERLAPS)
        devices = [row[0] for row in self._writer.execute("SELECT DISTINCT device FROM streams")]
        for device in devices:
            for limit, statement in (
                (self.settings.windows_per_device, schema.DELETE_OLD_WINDOWS),
                (self.settings.embeddings_per_device, schema.DROP_OLD_EMBEDDINGS),
            ):
                edge = self._writer.execute(
                    "SELECT received_ms FROM windows WHERE device = ? ORDER BY received_ms DESC LIMIT 1 OFFSET ?",
                    (device, limit),
                ).fetchone()
                if edge is not None:
                    self._writer.execute(statement, (device, edge[0]))
        self._writer.execute(schema.DELETE_OLD_EVENTS, (self.settings.events,))


def _record(row: Sequence[Any]) -> WindowRecord:
    """SQLite keeps NaN as NULL."""
    values: list[Any] = [math.nan if value is None and at in _NUMBERS else value for at, value in enumerate(row)]
    return WindowRecord(*values)


_NUMBERS = frozenset(
    WindowRecord._fields.index(name) for name in ("edge_ms", "server_ms", "queue_ms", "uncertainty", "confidence")
)
