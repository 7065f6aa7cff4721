"""Small pieces that the server's tests build with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from streamsplit.server.records import Commit, WindowRecord


def make_record(sequence: int, **changes: Any) -> WindowRecord:
    """A completed window with plain values."""
    values: dict[str, Any] = {
        "device": "pi",
        "epoch": 7,
        "sequence": sequence,
        "window": sequence,
        "capture_ms": 500 * sequence,
        "received_ms": 1_700_000_000_000 + sequence,
        "block": 13,
        "encoding": 32,
        "resolution": 0,
        "revision": "ab",
        "payload_bytes": 296,
        "skipped": 0,
        "edge_ms": 3.0,
        "server_ms": 0.5,
        "queue_ms": 1.0,
        "uncertainty": 1.25,
        "cluster": 4,
        "label": "",
        "confidence": 0.0,
        "embedding": unit(sequence).astype("<f2").tobytes(),
        "error": "",
    }
    return WindowRecord(**{**values, **changes})


def make_commit(sequence: int, overlap: bytes | None = None, **changes: Any) -> Commit:
    """A record to commit, with the assembler's overlap after it."""
    return Commit(make_record(sequence, **changes), overlap)


def unit(seed: int, dim: int = 128) -> np.ndarray:
    """A unit vector [d] float32."""
    z = np.random.default_rng(seed).standard_normal(dim)
    return (z / math.sqrt(float(z @ z))).astype(np.float32)
