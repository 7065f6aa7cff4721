"""Prometheus metrics, one registry per app so that several servers live in one process (tests, the facade)."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from streamsplit.server.block_cache import BlockCachedStorage
from streamsplit.server.cache_metrics import CacheCollector

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class WeightStreamMetrics:
    """Of the endpoint /v1/weights."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.connections = Gauge("streamsplit_weight_stream_connections", "Connected clients", registry=registry)
        self.bytes = Counter("streamsplit_weight_stream_bytes", "Bytes of chunks sent", registry=registry)
        self.requests = Counter(
            "streamsplit_weight_stream_requests", "Requests by how they ended", ["outcome"], registry=registry
        )
        self.refused = Counter(
            "streamsplit_weight_stream_refused", "Connections refused or ended for a fault", ["code"], registry=registry
        )
        self.first_piece = Histogram(
            "streamsplit_weight_stream_first_piece_seconds", "Request taken up to its first bytes handed over",
            buckets=LATENCY_BUCKETS_S, registry=registry,
        )  # fmt: skip
        self.waits = Histogram(
            "streamsplit_weight_stream_wait_seconds",
            "What a piece waited for: storage, limits, sound that goes first, or the client and its link (socket)",
            ["reason"], buckets=LATENCY_BUCKETS_S, registry=registry,
        )  # fmt: skip
        self.request = Histogram(
            "streamsplit_weight_stream_request_seconds", "Request taken up to its last bytes handed over",
            buckets=LATENCY_BUCKETS_S, registry=registry,
        )  # fmt: skip

    def watch(self, storage: object) -> None:
        """Shows what the caches in front of a storage do, where it has any."""
        if isinstance(storage, BlockCachedStorage):
            self.registry.register(CacheCollector(storage))


class Metrics:
    """Everything at /metrics; names start with streamsplit_."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.devices = Gauge("streamsplit_devices_connected", "Devices connected now", registry=registry)
        self.collapsed = Gauge(
            "streamsplit_devices_collapsed", "Connected devices that report a collapse of embeddings", registry=registry
        )
        self.connections = Counter("streamsplit_connections", "Sessions opened", ["resumed"], registry=registry)
        self.refused = Counter("streamsplit_connections_refused", "Devices turned away", ["code"], registry=registry)
        self.windows = Counter("streamsplit_windows", "Windows completed", ["cut"], registry=registry)
        self.rejected = Counter("streamsplit_windows_rejected", "Windows rejected", ["code"], registry=registry)
        self.duplicates = Counter("streamsplit_windows_duplicate", "Windows that came again", registry=registry)
        self.uplink = Counter("streamsplit_uplink_bytes", "Bytes received on WebSockets", registry=registry)
        self.downlink = Counter("streamsplit_downlink_bytes", "Bytes sent on WebSockets", registry=registry)
        self.latency = Histogram(
            "streamsplit_window_seconds", "Frame received to result sent", buckets=LATENCY_BUCKETS_S, registry=registry
        )
        self.batch = Histogram(
            "streamsplit_batch_windows", "Windows completed together", buckets=BATCH_BUCKETS, registry=registry
        )
        self.compute = Histogram(
            "streamsplit_batch_seconds", "Compute of one batch", buckets=LATENCY_BUCKETS_S, registry=registry
        )
        self.waiting = Gauge("streamsplit_compute_waiting", "Windows waiting for compute", registry=registry)
        self.throttled = Counter("streamsplit_throttles", "THROTTLE messages sent", ["reason"], registry=registry)
        self.store_ok = Gauge("streamsplit_store_ok", "1 while commits succeed", registry=registry)
        self.store_waiting = Gauge("streamsplit_store_waiting", "Tasks not durable yet", registry=registry)
        self.loop_lag = Gauge("streamsplit_loop_lag_seconds", "Longest event loop delay of late", registry=registry)
        self.refiner_up = Gauge("streamsplit_refiner_up", "1 while the refiner runs", registry=registry)
        self.refiner_steps = Gauge("streamsplit_refiner_steps", "Optimiser steps", registry=registry)
        self.refiner_loss = Gauge("streamsplit_refiner_loss", "Hybrid loss of the last step", registry=registry)
        self.refiner_rank = Gauge("streamsplit_refiner_effective_rank", "Of the last batch", registry=registry)
        self.refiner_alignment = Gauge(
            "streamsplit_refiner_device_distance", "Mean distance of devices' embeddings at the last revision",
            registry=registry,
        )  # fmt: skip
        self.refiner_dropped = Gauge(
            "streamsplit_refiner_samples_dropped", "Windows not learned from", registry=registry
        )
        self.gradients = Counter(
            "streamsplit_gradients", "Gradients for windows that asked for one", ["outcome"], registry=registry
        )
        self.revisions = Counter("streamsplit_revisions", "Revisions published", registry=registry)
        self.checkpoints = Counter("streamsplit_checkpoints", "Checkpoints", ["outcome"], registry=registry)
        self.transfers = Counter("streamsplit_weight_transfers", "Weight transfers", ["direction"], registry=registry)
        self.weight_stream = WeightStreamMetrics(registry)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
