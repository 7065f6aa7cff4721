"""One writer at a time for a folder of chunks: chunking, publishing and pruning would undo each other's work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streamsplit.errors import ManifestError

try:
    import fcntl
except ImportError:  # not a Unix: there nobody is kept out
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"


@contextmanager
def sole_writer(folder: Path, what: str) -> Iterator[None]:
    """Holds the folder while `what`, such as 'weights prune', changes it; raises ManifestError while another does.

    The lock is the system's and ends with the process that holds it, however that ends: a file that is left behind
    locks nothing. Readers need none, for a manifest is replaced as a whole and after its chunks.
    """
    try:
        held = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ManifestError(f"{folder}: cannot be changed ({error.strerror or error})") from None
    try:
        _lock(held, folder)
        os.ftruncate(held, 0)
        os.pwrite(held, f"'{what}', process {os.getpid()} on {os.uname().nodename}".encode(), 0)
        yield
        os.ftruncate(held, 0)
    finally:
        os.close(held)


def _lock(held: int, folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(held, 300, 0).decode(errors="replace") or "another process"
        raise ManifestError(f"{folder}: {holder} is changing it; try again when that is done") from None
    except OSError as error:
        raise ManifestError(
            f"{folder}: cannot be locked ({error.strerror or error}); put it on a file system that has locks"
        ) from None
