"""Blocks of chunks in a Redis that several servers share; one that fails is left alone for a while."""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import Callable
from typing import Any

from streamsplit.errors import ConfigError, MissingExtraError
from streamsplit.server.breaker import CircuitBreaker, State

LOG = logging.getLogger(__name__)
TIMEOUT_S = 0.25  # of one command, connecting included: a block of 1 MB takes 10 ms on a gigabit link
EXPIRES_S = 24 * 3600
_CHECK_BYTES = 4


class RedisBlocks:
    """Blocks by chunk and index, each with a checksum over its name and content; without its Redis it is empty."""

    def __init__(
        self, redis_url: str, *, prefix: str = "streamsplit:chunk", timeout_s: float = TIMEOUT_S,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Raises ConfigError for a URL that is none of Redis."""
        self.hits = self.misses = 0
        self.errors = 0  # commands that failed or took too long
        self.skipped = 0  # commands that were not tried, because one had failed of late
        self.bytes = 0  # of blocks that came from here
        self.breaker = CircuitBreaker()
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._clock_s = clock_s
        redis = _redis()
        from redis.backoff import NoBackoff

        try:
            # one attempt: by default the library makes four, with pauses in between
            self._redis = redis.from_url(
                redis_url, retry=redis.retry.Retry(NoBackoff(), 0),
                socket_timeout=timeout_s, socket_connect_timeout=timeout_s,
            )  # fmt: skip
        except ValueError as error:
            raise ConfigError(f"'redis_url': got {redis_url!r}, expected redis://host:port ({error})") from None
        self._errors = (redis.RedisError, OSError, asyncio.TimeoutError)

    @property
    def usable(self) -> bool:
        """Whether it is asked at present."""
        return self.breaker.state is State.CLOSED

    async def get(self, digest: str, index: int) -> bytes | None:
        """A block, or None where it is not here, is damaged, or Redis cannot be used."""
        key = self._key(digest, index)
        answered, held = await self._try(lambda: self._redis.get(key))
        if not answered:
            return None
        if held and _check(key, held[_CHECK_BYTES:]) == held[:_CHECK_BYTES]:
            self.hits += 1
            self.bytes += len(held) - _CHECK_BYTES
            return bytes(held[_CHECK_BYTES:])
        self.misses += 1
        return None

    async def put(self, digest: str, index: int, data: bytes) -> None:
        """Keeps a block for a day."""
        key = self._key(digest, index)
        await self._try(lambda: self._redis.set(key, _check(key, data) + data, ex=EXPIRES_S))

    async def close(self) -> None:
        """Ends the connections."""
        await self._redis.aclose()

    def _key(self, digest: str, index: int) -> str:
        return f"{self._prefix}:{digest}:{index}"

    async def _try(self, command: Callable[[], Any]) -> tuple[bool, Any]:
        """Whether Redis answered, and its answer."""
        if not self.breaker.allows(self._clock_s()):
            self.skipped += 1
            return False, None
        try:
            answer = await asyncio.wait_for(command(), self._timeout_s)
        except self._errors as error:
            self.errors += 1
            if self.breaker.failed(self._clock_s()):
                reason = str(error) or f"no answer within {self._timeout_s:g} s"
                LOG.warning("Redis is left alone for now, chunks come from the storage (%s)", reason)
            return False, None
        except BaseException:
            self.breaker.failed(self._clock_s())
            raise
        if self.breaker.succeeded():
            LOG.warning("Redis is in use again")
        return True, answer


def _check(key: str, data: bytes) -> bytes:
    return zlib.crc32(data, zlib.crc32(key.encode())).to_bytes(_CHECK_BYTES, "little")


def _redis() -> Any:
    try:
        import redis.asyncio
        import redis.asyncio.retry
    except ImportError as error:
        raise MissingExtraError("the Redis cache for weights", "storage", str(error)) from error
    return redis.asyncio
