"""The device's journal: one JSON line per window, result and learning step, for reports and experiments."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streamsplit.errors import StoreError


class Journal:
    """Appends rows to a JSON-lines file; every row has `kind` and `t_ms` (since the runtime's start)."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise StoreError(f"{self.path}: journal cannot be written ({error.strerror}); give another path") from error

    def write(self, kind: str, t_ms: float, **values: Any) -> None:
        """One row; numbers that are not finite become null."""
        row = {"kind": kind, "t_ms": round(t_ms, 1)} | {name: _plain(value) for name, value in values.items()}
        self._file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        self._file.close()


def read_journal(path: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of a journal; a last line cut off by a kill is left out."""
    with Path(path).open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value
