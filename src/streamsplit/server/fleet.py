"""What the server knows of its devices right now: for the page, the JSON status and the metrics."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Collection
from typing import Any

from streamsplit.server.records import WindowRecord
from streamsplit.splitting.cut import Cut
from streamsplit.wire.media import Encoding
from streamsplit.wire.messages import Hello, Revision, Stats

HISTORY = 120  # points of a sparkline
LATENCIES = 256


class Device:
    """One device, connected or not."""

    def __init__(self, device_id: str) -> None:
        self.id = device_id
        self.hello: Hello | None = None
        self.stats: Stats | None = None
        self.connected = False
        self.connections = 0
        self.address = ""
        self.connected_s = 0.0
        self.last_seen_s = 0.0  # Unix time
        self.uplink_bytes = 0  # on the socket, WebSocket framing included
        self.downlink_bytes = 0
        self.windows = 0
        self.rejected = 0
        self.skipped = 0
        self.cut = ""
        self.cuts: Counter[str] = Counter()
        self.last_error = ""
        self.uncertainty = math.nan
        self.label = ""
        self.cluster = -1
        self.revision = ""
        self.learned: Revision | None = None  # local learning that came up last, whole
        self.latencies_ms: deque[float] = deque(maxlen=LATENCIES)  # frame received to result sent
        self.history: deque[tuple[float, float, float]] = deque(maxlen=HISTORY)  # time s, uncertainty, latency ms

    @property
    def collapsed(self) -> bool:
        """Connected, and its last STATS reports that its embeddings collapse."""
        return self.connected and self.stats is not None and self.stats.collapsed

    def count(self, record: WindowRecord, latency_ms: float) -> None:
        """One window answered."""
        self.windows += 1
        self.skipped += record.skipped
        self.last_seen_s = time.time()
        if record.error:
            self.rejected += 1
            self.last_error = f"{record.error}: {record.detail}"
            return
        self.cut = cut_name(record.block, record.encoding)
        self.cuts[self.cut] += 1
        self.uncertainty, self.label, self.cluster = record.uncertainty, record.label, record.cluster
        self.latencies_ms.append(latency_ms)
        self.history.append((self.last_seen_s, record.uncertainty, latency_ms))

    def as_json(self, *, history: bool = True) -> dict[str, Any]:
        """Everything, with NaN as null; `history` may be left out where there are very many devices."""
        hello, stats = self.hello, self.stats
        return {
            "device": self.id,
            "connected": self.connected,
            "connections": self.connections,
            "address": self.address,
            "device_class": hello.device_class if hello else "",
            "software": hello.software if hello else "",
            "encoder": hello.encoder if hello else "",
            "revision": (stats.revision if stats and stats.revision else self.revision),
            "last_seen_s": self.last_seen_s,
            "uplink_bytes": self.uplink_bytes,
            "downlink_bytes": self.downlink_bytes,
            "windows": self.windows,
            "rejected": self.rejected,
            "skipped": self.skipped,
            "cut": self.cut,
            "windows_by_cut": dict(self.cuts),
            "uncertainty": finite(self.uncertainty),
            "label": self.label,
            "cluster": self.cluster,
            "last_error": self.last_error,
            "latency_ms": percentiles(self.latencies_ms),
            "stats": None
            if stats is None
            else {
                name: finite(value) if isinstance(value, float) else value
                for name in stats.__struct_fields__
                for value in (getattr(stats, name),)
            },
            "history": [
                {"t_s": round(t, 3), "uncertainty": finite(u), "latency_ms": finite(ms)} for t, u, ms in self.history
            ]
            if history
            else [],
        }


def percentiles(values: Collection[float]) -> dict[str, float | None]:
    """p50, p95 and p99, each a value that occurred (nearest rank); null without values."""
    ordered = sorted(values)
    if not ordered:
        return {"p50": None, "p95": None, "p99": None}
    return {f"p{p}": round(ordered[min(len(ordered) - 1, p * len(ordered) // 100)], 3) for p in (50, 95, 99)}


def finite(value: float | None) -> float | None:
    """JSON has no NaN: null instead."""
    return None if value is None or not math.isfinite(value) else value


def cut_name(block: int, encoding: int) -> str:
    """'6:int8' from a record's numbers."""
    return str(Cut(block, Encoding(encoding)))
