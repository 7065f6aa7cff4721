"""Caches in front of a storage of chunks: blocks in memory, then in a Redis; a block that many want is read once."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from streamsplit.server.chunk_storage import ChunkStorage
from streamsplit.server.redis_cache import RedisBlocks
from streamsplit.server.single_flight import SingleFlight
from streamsplit.weights.streaming.manifest import Manifest

BLOCK_BYTES = 1 << 20
MEMORY_BYTES = 64 << 20


@dataclass
class CacheCounts:
    """Of the blocks in memory, and of the storage behind all caches."""

    hits: int = 0
    misses: int = 0
    hit_bytes: int = 0  # of the ranges that memory had
    held_bytes: int = 0
    storage_reads: int = 0
    storage_bytes: int = 0


class BlockCachedStorage:
    """A ChunkStorage whose reads are put together from whole blocks, each fetched once however many wait for it."""

    def __init__(
        self, storage: ChunkStorage, redis: RedisBlocks | None = None, *, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self.counts = CacheCounts()
        self.redis = redis
        self.flights: SingleFlight[tuple[str, int], bytes] = SingleFlight()
        self._storage = storage
        self._memory_bytes = memory_bytes
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()  # the most recently used one last
        self._sizes: dict[str, int] = {}  # a digest's size never changes

    async def manifest(self) -> Manifest:
        """The storage's manifest: never cached, so that a new one is seen."""
        self._sizes.clear()
        return await self._storage.manifest()

    async def changed(self) -> bool:
        """Whether the storage has another manifest."""
        return await self._storage.changed()

    async def size(self, digest: str) -> int:
        """Bytes of a chunk, as the storage says; raises ManifestError where it is missing."""
        size = self._sizes[digest] = await self._storage.size(digest)
        return size

    async def read(self, digest: str, offset: int, length: int) -> bytes:
        """A range of a chunk; raises ManifestError where it cannot be had."""
        parts, end = [], offset + length
        for index in range(offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1):
            start = index * BLOCK_BYTES
            first, last = max(offset - start, 0), min(end - start, BLOCK_BYTES)
            block = self._blocks.get((digest, index))
            if block is not None:
                self._blocks.move_to_end((digest, index))
                self.counts.hits += 1
                self.counts.hit_bytes += last - first
            else:
                self.counts.misses += 1
                block = await self.flights.run((digest, index), lambda index=index: self._fetch(digest, index))  # type: ignore[misc]
            parts.append(block[first:last])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def close(self) -> None:
        """Ends the connections to Redis."""
        if self.redis is not None:
            await self.redis.close()

    async def _fetch(self, digest: str, index: int) -> bytes:
        data = None if self.redis is None else await self.redis.get(digest, index)
        if data is None:
            size = self._sizes.get(digest) or await self.size(digest)
            start = index * BLOCK_BYTES
            data = await self._storage.read(digest, start, min(BLOCK_BYTES, size - start))
            self.counts.storage_reads += 1
            self.counts.storage_bytes += len(data)
            if self.redis is not None:
                await self.redis.put(digest, index, data)
        self._keep((digest, index), data)
        return data

    def _keep(self, key: tuple[str, int], data: bytes) -> None:
        self._blocks[key] = data
        self.counts.held_bytes += len(data)
        while self.counts.held_bytes > self._memory_bytes:
            self.counts.held_bytes -= len(self._blocks.popitem(last=False)[1])
