"""Chunks in object storage: S3 and what speaks its protocol, or any other store that obstore opens by URL."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from streamsplit.errors import ConfigError, ManifestError, MissingExtraError
from streamsplit.server.chunk_storage import StoredFile
from streamsplit.weights.streaming.history import NAME as HISTORY
from streamsplit.weights.streaming.history import History, decode_history
from streamsplit.weights.streaming.manifest import NAME, Manifest, decode_manifest, file_name


class ObjectStorage:
    """A prefix of a bucket that holds what `streamsplit weights chunk` wrote to its folder."""

    def __init__(self, url: str, options: Mapping[str, str] | None = None) -> None:
        """`url` as s3://bucket/prefix; `options` as obstore takes them, credentials come from the environment.

        Raises ConfigError for a URL that obstore does not take.
        """
        self._obstore = _obstore()
        self._url = url
        self._stamp: str | None = None
        try:
            self._store = self._obstore.store.from_url(url, **dict(options or {}))
        except Exception as error:  # obstore's own tree of errors, and ValueError
            raise ConfigError(f"'chunks_dir': got {url!r}, expected a folder or s3://bucket/prefix ({error})") from None

    async def manifest(self) -> Manifest:
        """The manifest in the bucket; raises ManifestError."""
        found = await self._call(self._obstore.get_async(self._store, NAME), NAME)
        data = await self._call(found.bytes_async(), NAME)
        self._stamp = found.meta.get("e_tag")
        return decode_manifest(bytes(data))

    async def changed(self) -> bool:
        """Whether the manifest's entity tag is another one."""
        found = await self._call(self._obstore.head_async(self._store, NAME), NAME)
        return bool(found.get("e_tag") != self._stamp)

    async def size(self, digest: str) -> int:
        """Bytes of a chunk's object; raises ManifestError where it is missing."""
        name = file_name(digest)
        found = await self._call(self._obstore.head_async(self._store, name), name)
        return int(found["size"])

    async def read(self, digest: str, offset: int, length: int) -> bytes:
        """A range of a chunk's object; raises ManifestError where it cannot be had."""
        name = file_name(digest)
        return bytes(
            await self._call(self._obstore.get_range_async(self._store, name, start=offset, length=length), name)
        )

    async def history(self) -> History:
        """Earlier revisions, as they were copied here with the folder; raises ManifestError."""
        try:
            found = await self._obstore.get_async(self._store, HISTORY)
        except FileNotFoundError:  # obstore's NotFoundError is one
            return History()
        except Exception as error:
            raise ManifestError(f"{self._url}/{HISTORY}: cannot be read ({_reason(error)})") from None
        return decode_history(bytes(await self._call(found.bytes_async(), HISTORY)))

    async def write_history(self, data: bytes) -> None:
        """Replaces the history."""
        await self._call(self._obstore.put_async(self._store, HISTORY, data), HISTORY, "written")

    async def files(self) -> list[StoredFile]:
        """Every object below the prefix."""
        found = []
        try:
            async for batch in self._obstore.list(self._store):
                found += [StoredFile(o["path"], int(o["size"]), o["last_modified"].timestamp()) for o in batch]
        except Exception as error:  # as in `_call`
            raise ManifestError(f"{self._url}: cannot be listed ({_reason(error)})") from None
        return found

    def sole_writer(self, what: str) -> AbstractContextManager[None]:
        """A bucket has no lock: whoever copies a folder into it must not prune it at the same time."""
        return nullcontext()

    async def delete(self, name: str) -> None:
        """Deletes an object; raises ManifestError."""
        await self._call(self._obstore.delete_async(self._store, name), name, "deleted")

    async def _call(self, work: Any, name: str, done: str = "read") -> Any:
        try:
            return await work
        except Exception as error:  # whatever the store's client makes of a missing object or a dead link
            raise ManifestError(f"{self._url}/{name}: cannot be {done} ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _obstore() -> Any:
    try:
        import obstore
        import obstore.store
    except ImportError as error:
        raise MissingExtraError("weights in object storage", "storage", str(error)) from error
    return obstore
