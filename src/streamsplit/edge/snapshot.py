"""The learner's snapshot on disk: written beside the old one and moved over it, so a crash leaves one of the two."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from streamsplit.errors import CheckpointError


def save_snapshot(path: Path, data: bytes) -> None:
    """Atomic; raises CheckpointError (full disk, no permission), and what was there before is untouched."""
    fresh = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise CheckpointError(
            f"{path}: snapshot of {len(data)} bytes not written ({error.strerror or error}); the last one is kept"
        ) from error


def load_snapshot(path: Path) -> bytes | None:
    """The bytes of the last complete snapshot, None if there is none; raises CheckpointError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: snapshot cannot be read ({error.strerror or error})") from error
