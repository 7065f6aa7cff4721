"""Where chunks lie: what any storage offers the weight stream, and the one in a folder."""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from streamsplit.errors import ManifestError
from streamsplit.weights.streaming.folder_lock import sole_writer
from streamsplit.weights.streaming.history import NAME as HISTORY
from streamsplit.weights.streaming.history import History
from streamsplit.weights.streaming.manifest import NAME, Manifest, file_name, read_manifest
from streamsplit.weights.streaming.publish import read_history, write_whole

if TYPE_CHECKING:
    from streamsplit.server.object_storage import ObjectStorage

_NO_WAIT = getattr(os, "RWF_NOWAIT", 0)  # preadv: only what needs no disk; 0 where there is no such thing


class ChunkStorage(Protocol):
    """Stored bytes by digest; names come from the manifest, never from a client."""

    async def manifest(self) -> Manifest:
        """The newest manifest; raises ManifestError."""

    async def changed(self) -> bool:
        """Whether the manifest may be another one than `manifest` gave last."""

    async def size(self, digest: str) -> int:
        """Bytes of a chunk; raises ManifestError where it is missing."""

    async def read(self, digest: str, offset: int, length: int) -> bytes:
        """A range of a chunk's stored bytes; raises ManifestError where it cannot be had."""


async def read_into(storage: ChunkStorage, digest: str, offset: int, view: memoryview) -> None:
    """Fills `view` with a range of a chunk's stored bytes; raises ManifestError where it cannot be had."""
    if isinstance(storage, FolderStorage):
        count = await storage.read_into(digest, offset, view)
    else:
        data = await storage.read(digest, offset, len(view))
        count = len(data)
        view[:count] = data[: len(view)]
    if count != len(view):
        raise ManifestError(f"chunk {digest[:12]} ends before {offset + len(view)}; chunk the model again")


def open_storage(place: str | Path, redis_url: str = "", memory_mb: float = 64.0) -> ChunkStorage:
    """The storage of a folder or a URL such as s3://bucket/prefix, behind a Redis cache where one is named.

    `memory_mb` of blocks are held in memory; not for a folder without Redis, whose pages the system holds.
    """
    storage = bare_storage(place)
    if not redis_url and (isinstance(storage, FolderStorage) or not memory_mb):
        return storage
    from streamsplit.server.block_cache import BlockCachedStorage
    from streamsplit.server.redis_cache import RedisBlocks

    redis = RedisBlocks(redis_url) if redis_url else None
    return BlockCachedStorage(storage, redis, memory_bytes=round(1e6 * memory_mb))


def bare_storage(place: str | Path) -> FolderStorage | ObjectStorage:
    """The storage of a folder or a URL itself."""
    if "://" in str(place):
        from streamsplit.server.object_storage import ObjectStorage

        return ObjectStorage(str(place))
    return FolderStorage(place)


class StoredFile(NamedTuple):
    """A file or object of a place."""

    name: str
    size: int
    modified_s: float  # Unix time


class FolderStorage:
    """A folder that `streamsplit weights chunk` made."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._stamp: tuple[int, int] | None = None

    async def manifest(self) -> Manifest:
        """The manifest on disk; raises ManifestError."""
        stamp = self._look()
        found = await asyncio.to_thread(read_manifest, self._folder)
        self._stamp = stamp
        return found

    async def changed(self) -> bool:
        """Whether manifest.json was written since."""
        return self._look() != self._stamp

    async def size(self, digest: str) -> int:
        """Bytes of a chunk's file; raises ManifestError where it is missing."""
        path = self._folder / file_name(digest)
        try:
            return path.stat().st_size
        except OSError as error:
            raise ManifestError(
                f"{path}: cannot be read ({error.strerror or error}); chunk the model into this folder again"
            ) from None

    async def read(self, digest: str, offset: int, length: int) -> bytes:
        """A range of a chunk's file; raises ManifestError where it cannot be read."""
        return await asyncio.to_thread(self._read, digest, offset, length)

    async def read_into(self, digest: str, offset: int, view: memoryview) -> int:
        """The same into memory that is there already; gives how many bytes there were.

        What the system holds in memory is read at once: handing it to a thread takes longer.
        """
        count = self._read_into(digest, offset, view, _NO_WAIT) if _NO_WAIT else 0
        if count == len(view):
            return count
        return count + await asyncio.to_thread(self._read_into, digest, offset + count, view[count:], 0)

    def _read_into(self, digest: str, offset: int, view: memoryview, flags: int) -> int:
        try:
            with (self._folder / file_name(digest)).open("rb", buffering=0) as file:
                return os.preadv(file.fileno(), [view], offset, flags)
        except BlockingIOError:
            return 0
        except OSError as error:
            if flags and error.errno == errno.EOPNOTSUPP:  # a file system without it
                return 0
            raise ManifestError(f"chunk {digest[:12]} cannot be read ({error.strerror or error})") from None

    def _read(self, digest: str, offset: int, length: int) -> bytes:
        try:
            with (self._folder / file_name(digest)).open("rb", buffering=0) as file:
                return os.pread(file.fileno(), length, offset)
        except OSError as error:
            raise ManifestError(f"chunk {digest[:12]} cannot be read ({error.strerror or error})") from None

    async def history(self) -> History:
        """Earlier revisions; raises ManifestError where they cannot be read."""
        return await asyncio.to_thread(read_history, self._folder)

    async def write_history(self, data: bytes) -> None:
        """Replaces the history, whole or not at all."""
        await asyncio.to_thread(write_whole, self._folder, HISTORY, data)

    async def files(self) -> list[StoredFile]:
        """Everything that lies in the folder."""
        return await asyncio.to_thread(self._files)

    def sole_writer(self, what: str) -> AbstractContextManager[None]:
        """Keeps others from changing the folder meanwhile; raises ManifestError on entering while another does."""
        return sole_writer(self._folder, what)

    async def delete(self, name: str) -> None:
        """Deletes a file; one that is gone already is no fault. Raises ManifestError."""
        try:
            await asyncio.to_thread((self._folder / name).unlink, missing_ok=True)
        except OSError as error:
            raise ManifestError(f"{self._folder / name}: cannot be deleted ({error.strerror or error})") from None

    def _files(self) -> list[StoredFile]:
        found = []
        for path in self._folder.iterdir():
            stat = path.stat()
            found.append(StoredFile(path.name, stat.st_size, stat.st_mtime))
        return found

    def _look(self) -> tuple[int, int] | None:
        try:
            found = (self._folder / NAME).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino
