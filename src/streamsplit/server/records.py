"""What the server keeps of a window, and what it knows of a device's stream of them."""

from __future__ import annotations

from typing import NamedTuple


class WindowRecord(NamedTuple):
    """One window as it is kept: what came, what was answered; (device, epoch, sequence) is unique."""

    device: str
    epoch: int
    sequence: int
    window: int
    capture_ms: int  # timestamp field of the frame
    received_ms: int  # server's clock, Unix milliseconds
    block: int
    encoding: int
    resolution: int
    revision: str  # of the encoder that completed it; "" where rejected
    payload_bytes: int  # of the frame, header included
    skipped: int
    edge_ms: float
    server_ms: float
    queue_ms: float
    uncertainty: float
    cluster: int
    label: str
    confidence: float
    embedding: bytes | None  # fp16 [d]
    error: str  # "" or the code that it was rejected with
    detail: str = ""


class Commit(NamedTuple):
    """One window to be made durable, with the device's overlap after it (None: unchanged)."""

    record: WindowRecord
    overlap: bytes | None = None


class StreamPosition(NamedTuple):
    """How far one device's stream (one epoch) is durable."""

    known: bool  # False: never seen
    received_through: int  # every sequence up to here is durable
    beyond: frozenset[int]  # durable ones after a hole
    overlap: bytes | None  # the assembler's overlap after `received_through`
