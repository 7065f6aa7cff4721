"""The database's tables and the two statements that every commit uses."""

from __future__ import annotations

from streamsplit.server.records import WindowRecord

VERSION = 1

TABLES = """
CREATE TABLE IF NOT EXISTS devices (
  device TEXT PRIMARY KEY, first_seen_ms INTEGER NOT NULL, last_seen_ms INTEGER NOT NULL, device_class TEXT NOT NULL,
  software TEXT NOT NULL, encoder TEXT NOT NULL, revision TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS streams (
  device TEXT NOT NULL, epoch INTEGER NOT NULL, received_through INTEGER NOT NULL, overlap BLOB,
  updated_ms INTEGER NOT NULL, windows INTEGER NOT NULL, rejected INTEGER NOT NULL, payload_bytes INTEGER NOT NULL,
  PRIMARY KEY (device, epoch)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS windows (
  device TEXT NOT NULL, epoch INTEGER NOT NULL, sequence INTEGER NOT NULL, window INTEGER NOT NULL,
  capture_ms INTEGER NOT NULL, received_ms INTEGER NOT NULL, block INTEGER NOT NULL, encoding INTEGER NOT NULL,
  resolution INTEGER NOT NULL, revision TEXT NOT NULL, payload_bytes INTEGER NOT NULL, skipped INTEGER NOT NULL,
  edge_ms REAL, server_ms REAL, queue_ms REAL, uncertainty REAL, cluster INTEGER NOT NULL, label TEXT NOT NULL,
  confidence REAL, embedding BLOB, error TEXT NOT NULL, detail TEXT NOT NULL,
  PRIMARY KEY (device, epoch, sequence)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS windows_by_device_and_time ON windows (device, received_ms);
CREATE INDEX IF NOT EXISTS windows_by_time ON windows (received_ms);
CREATE TABLE IF NOT EXISTS revisions (
  number INTEGER PRIMARY KEY AUTOINCREMENT, revision TEXT NOT NULL UNIQUE, base TEXT NOT NULL,
  breaks_space INTEGER NOT NULL, space INTEGER NOT NULL, created_ms INTEGER NOT NULL, steps INTEGER NOT NULL,
  report TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS events (
  number INTEGER PRIMARY KEY AUTOINCREMENT, at_ms INTEGER NOT NULL, kind TEXT NOT NULL, device TEXT NOT NULL,
  detail TEXT NOT NULL);
"""

INSERT_WINDOW = f"INSERT OR IGNORE INTO windows VALUES ({','.join('?' * len(WindowRecord._fields))})"

UPSERT_STREAM = """
INSERT INTO streams VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (device, epoch) DO UPDATE SET
received_through = excluded.received_through, overlap = coalesce(excluded.overlap, overlap),
updated_ms = excluded.updated_ms, windows = windows + excluded.windows, rejected = rejected + excluded.rejected,
payload_bytes = payload_bytes + excluded.payload_bytes
"""

UPSERT_DEVICE = """
INSERT INTO devices VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (device) DO UPDATE SET
last_seen_ms = excluded.last_seen_ms, device_class = excluded.device_class, software = excluded.software,
encoder = excluded.encoder, revision = excluded.revision
"""

INSERT_REVISION = """
INSERT OR IGNORE INTO revisions (revision, base, breaks_space, space, created_ms, steps, report)
VALUES (?, ?, ?, ?, ?, ?, ?)
"""

INSERT_EVENT = "INSERT INTO events (at_ms, kind, device, detail) VALUES (?, ?, ?, ?)"

DROP_OLD_OVERLAPS = """
UPDATE streams SET overlap = NULL WHERE overlap IS NOT NULL AND updated_ms <
(SELECT max(updated_ms) FROM streams s WHERE s.device = streams.device)
"""

DELETE_OLD_WINDOWS = """
DELETE FROM windows WHERE device = ? AND received_ms <= ? AND sequence <=
(SELECT received_through FROM streams s WHERE s.device = windows.device AND s.epoch = windows.epoch)
"""

DROP_OLD_EMBEDDINGS = """
UPDATE windows SET embedding = NULL WHERE device = ? AND received_ms <= ? AND embedding IS NOT NULL
"""

DELETE_OLD_EVENTS = "DELETE FROM events WHERE number <= (SELECT max(number) FROM events) - ?"
