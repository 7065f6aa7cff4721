"""Files that are either the old ones or the new ones, never half: temporary file, fsync, rename, fsync of folder."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from streamsplit.errors import CheckpointError


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces `path` by `data`; raises CheckpointError and leaves what was there when the disk refuses."""
    temporary: str | None = None
    replaced = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())  # mkstemp's own 0600 would keep other users' services out
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - one name for both kinds of path
        temporary, replaced = None, True
        _sync_folder(path.parent)
    except OSError as error:
        if replaced:
            after = "the new file is in place, but may not survive a power cut"
        else:
            after = "the old file is unchanged" if path.is_file() else "there is no older file"
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error}); {after}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108


def write_json(path: Path, values: dict[str, Any]) -> None:
    """`write_atomic` of indented JSON."""
    write_atomic(path, json.dumps(values, indent=2, sort_keys=True).encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file, None where there is no file; raises CheckpointError for anything else."""
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); delete it to start anew") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: got a {type(values).__name__}, expected a mapping; delete it to start anew")
    return values


def read_file(path: Path) -> bytes:
    """The bytes of a file; raises CheckpointError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
