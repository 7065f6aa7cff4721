"""What the caches in front of a storage of chunks have done, as /metrics shows it."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streamsplit.server.block_cache import BlockCachedStorage

_PREFIX = "streamsplit_weight_cache"


class CacheCollector(Collector):
    """Reads the counts when it is asked: they belong to the storage, which is older than any registry."""

    def __init__(self, storage: BlockCachedStorage) -> None:
        self._storage = storage

    def collect(self) -> Iterable[Metric]:
        """All families, with labels for the tiers that there are."""
        counts, redis = self._storage.counts, self._storage.redis
        lookups = CounterMetricFamily(f"{_PREFIX}_lookups", "Blocks looked up", labels=["tier", "outcome"])
        rate = GaugeMetricFamily(f"{_PREFIX}_hit_rate", "Share of lookups that found their block", labels=["tier"])
        sent = CounterMetricFamily(f"{_PREFIX}_bytes", "Bytes of chunks by where they came from", labels=["tier"])
        tiers = {"memory": (counts.hits, counts.misses, counts.hit_bytes)}
        if redis is not None:
            tiers["redis"] = (redis.hits, redis.misses, redis.bytes)
        for tier, (hits, misses, size_bytes) in tiers.items():
            lookups.add_metric([tier, "hit"], hits)
            lookups.add_metric([tier, "miss"], misses)
            rate.add_metric([tier], hits / max(1, hits + misses))
            sent.add_metric([tier], size_bytes)
        sent.add_metric(["storage"], counts.storage_bytes)
        if redis is not None:
            lookups.add_metric(["redis", "error"], redis.errors)
            lookups.add_metric(["redis", "skipped"], redis.skipped)
            yield GaugeMetricFamily(
                f"{_PREFIX}_redis_usable", "1 while Redis is asked, 0 while its circuit breaker is open",
                value=float(redis.usable),
            )  # fmt: skip
        yield from (lookups, rate, sent)
        yield CounterMetricFamily(f"{_PREFIX}_storage_reads", "Blocks read from the storage", counts.storage_reads)
        yield CounterMetricFamily(
            f"{_PREFIX}_joined", "Lookups that waited for a read that another had begun", self._storage.flights.joined
        )
        yield GaugeMetricFamily(f"{_PREFIX}_held_bytes", "Blocks in memory", counts.held_bytes)
