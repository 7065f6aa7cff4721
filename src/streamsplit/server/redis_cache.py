"""A Redis cache in front of any storage: servers that share it read a chunk from the storage once."""

from __future__ import annotations

import logging
import zlib
from typing import Any

from streamsplit.errors import ConfigError, MissingExtraError
from streamsplit.server.chunk_storage import ChunkStorage
from streamsplit.weights.streaming.manifest import Manifest

LOG = logging.getLogger(__name__)
BLOCK_BYTES = 1 << 20
EXPIRES_S = 24 * 3600
_CHECK_BYTES = 4


class RedisCachedStorage:
    """Blocks of chunks in Redis, each with a checksum; a Redis that fails is as good as an empty one."""

    def __init__(self, storage: ChunkStorage, redis_url: str, *, prefix: str = "streamsplit:chunk") -> None:
        """Raises ConfigError for a URL that is none of Redis."""
        self.hits = 0
        self.misses = 0
        self._storage = storage
        self._prefix = prefix
        self._complained = False
        redis = _redis()
        try:
            self._redis = redis.from_url(redis_url, socket_timeout=2.0, socket_connect_timeout=2.0)
        except ValueError as error:
            raise ConfigError(f"'redis_url': got {redis_url!r}, expected redis://host:port ({error})") from None
        self._error = redis.RedisError

    async def manifest(self) -> Manifest:
        """The storage's manifest: never cached, so that a new one is seen."""
        return await self._storage.manifest()

    async def changed(self) -> bool:
        """Whether the storage has another manifest."""
        return await self._storage.changed()

    async def size(self, digest: str) -> int:
        """Bytes of a chunk, as the storage says."""
        return await self._storage.size(digest)

    async def read(self, digest: str, offset: int, length: int) -> bytes:
        """A range, put together from whole blocks."""
        size = offset + length
        first, last = offset // BLOCK_BYTES, (size - 1) // BLOCK_BYTES
        blocks = [await self._block(digest, index) for index in range(first, last + 1)]
        start = offset - first * BLOCK_BYTES
        return b"".join(blocks)[start : start + length]

    async def close(self) -> None:
        """Ends the connections to Redis."""
        await self._redis.aclose()

    async def _block(self, digest: str, index: int) -> bytes:
        key = f"{self._prefix}:{digest}:{index}"
        held = await self._try(self._redis.get(key))
        if held and zlib.crc32(held[_CHECK_BYTES:]) == int.from_bytes(held[:_CHECK_BYTES], "little"):
            self.hits += 1
            return bytes(held[_CHECK_BYTES:])
        self.misses += 1
        size = await self._storage.size(digest)
        start = index * BLOCK_BYTES
        data = await self._storage.read(digest, start, min(BLOCK_BYTES, size - start))
        await self._try(self._redis.set(key, zlib.crc32(data).to_bytes(_CHECK_BYTES, "little") + data, ex=EXPIRES_S))
        return data

    async def _try(self, work: Any) -> Any:
        """The answer, or None while Redis cannot be used; said once."""
        try:
            answer = await work
        except (self._error, OSError) as error:
            if not self._complained:
                LOG.warning("Redis cannot be used, chunks come from the storage (%s)", error)
            self._complained = True
            return None
        self._complained = False
        return answer


def _redis() -> Any:
    try:
        import redis.asyncio
    except ImportError as error:
        raise MissingExtraError("the Redis cache for weights", "storage", str(error)) from error
    return redis.asyncio
