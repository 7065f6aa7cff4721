"""DiskCache: a folder of chunks within a budget, checked on every read; what was used longest ago leaves first.

Processes may share a folder. A file appears whole, under the hash of its bytes; its modification time is its last use,
so that the order survives a restart. Who reads a file holds a shared lock on it, and no file that somebody reads is
deleted; room is made under the folder's lock, by one process at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from streamsplit.errors import ConfigError
from streamsplit.weights.streaming.buffers import aligned_buffer
from streamsplit.weights.streaming.manifest import NAME as MANIFEST
from streamsplit.weights.streaming.manifest import file_name

try:
    import fcntl
except ImportError:  # not a Unix: a file that is open cannot be deleted there anyway
    fcntl = None  # type: ignore[assignment]

LOG = logging.getLogger(__name__)
BUDGET_BYTES = 8_000_000_000
LEFT_OVER_S = 3600.0  # half-written files of processes that are gone
_LOCK = ".lock"
_numbers = itertools.count()


class _File(NamedTuple):
    used_ns: int
    size_bytes: int
    path: Path


class DiskCache:
    """Chunks in a folder, named by their hash; any thread may call it."""

    def __init__(self, folder: str | Path, budget_bytes: int = BUDGET_BYTES) -> None:
        """Makes the folder, and room in it where it holds more than the budget.

        Raises ConfigError for a folder that cannot be written to, or that is one to serve chunks from.
        """
        self.budget_bytes = budget_bytes
        self.hits = 0
        self._folder = Path(folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if (self._folder / MANIFEST).exists():
                raise ConfigError(
                    f"'disk_cache_dir': got {self._folder}, which holds a model's chunks to serve; expected a folder "
                    "of its own, out of which chunks may be deleted"
                )
            with self._locked():
                self._clear_left_over()
                self._make_room(0)
        except OSError as error:
            raise ConfigError(f"'disk_cache_dir': {self._folder} cannot be used ({error.strerror or error})") from None

    @property
    def used_bytes(self) -> int:
        """Size of all chunks in the folder."""
        return sum(file.size_bytes for file in self._files())

    def size(self, digest: str) -> int:
        """Bytes of a chunk's file; 0 where it is not here."""
        try:
            return self._path(digest).stat().st_size
        except OSError:
            return 0

    def read(self, digest: str, size_bytes: int) -> np.ndarray | None:
        """The stored bytes [size] uint8, if they are here and good; a file of anything else is deleted."""
        path = self._path(digest)
        try:
            with path.open("rb", buffering=0) as file:
                _lock(file, shared=True)
                inode = os.fstat(file.fileno())
                buffer = _whole(file, size_bytes) if inode.st_size == size_bytes else None
        except FileNotFoundError:
            return None
        except OSError as error:
            LOG.warning("%s: cannot be read (%s)", path, error)
            return None
        if buffer is None or hashlib.sha256(buffer).hexdigest() != digest:  # type: ignore[arg-type]
            with contextlib.suppress(OSError), self._locked():
                if path.stat().st_ino == inode.st_ino:  # not a good one that has come in its place
                    path.unlink()
            return None
        with contextlib.suppress(OSError):  # it may have been deleted since
            os.utime(path)
        self.hits += 1
        return buffer

    def keep(self, digest: str, data: np.ndarray) -> bool:
        """Writes a chunk's bytes [size] uint8, whole or not at all; False where they would not fit the budget.

        Raises OSError where they cannot be written.
        """
        if len(data) > self.budget_bytes:
            return False
        path = self._path(digest)
        partial = path.with_name(f".{path.name}.{os.getpid()}.{next(_numbers)}")
        try:
            partial.write_bytes(memoryview(data))  # type: ignore[arg-type]
            with self._locked():
                fits = self._make_room(len(data), path)
                if fits:
                    partial.replace(path)
                return fits
        finally:
            partial.unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        return self._folder / file_name(digest)

    def _files(self) -> list[_File]:
        """What is here, the least recently used first."""
        found = []
        for path in self._folder.glob(file_name("*")):
            with contextlib.suppress(FileNotFoundError):  # deleted by another process
                state = path.stat()
                found.append(_File(state.st_mtime_ns, state.st_size, path))
        return sorted(found)

    def _make_room(self, size_bytes: int, coming: Path | None = None) -> bool:
        """Deletes files until so many bytes fit; False where what is being read is in the way."""
        files = [file for file in self._files() if file.path != coming]
        used = sum(file.size_bytes for file in files) + size_bytes
        for file in files:
            if used <= self.budget_bytes:
                break
            if _deleted(file.path):
                used -= file.size_bytes
        return used <= self.budget_bytes

    def _clear_left_over(self) -> None:
        old_s = time.time() - LEFT_OVER_S
        for partial in self._folder.glob(f".{file_name('*')}.*"):
            with contextlib.suppress(FileNotFoundError):
                if partial.stat().st_mtime < old_s:
                    partial.unlink()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / _LOCK).open("wb") as file:
            _lock(file, shared=False)
            yield


def _lock(file: IO[Any], *, shared: bool) -> None:
    """Waits for a lock that ends when the file is closed; none on a file system that has none."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)


def _deleted(path: Path) -> bool:
    """Whether the file is gone; one that somebody reads stays."""
    try:
        with path.open("rb") as file:
            if _is_read(file):
                return False
            path.unlink()
    except FileNotFoundError:
        return True
    except OSError as error:
        LOG.warning("%s: cannot be deleted (%s)", path, error)
        return False
    return True


def _is_read(file: IO[Any]) -> bool:
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            pass
    return False


def _whole(file: Any, size_bytes: int) -> np.ndarray | None:
    buffer = aligned_buffer(size_bytes)
    view, at = memoryview(buffer), 0  # type: ignore[arg-type]
    while at < size_bytes and (count := file.readinto(view[at:])):
        at += count
    return buffer if at == size_bytes else None
