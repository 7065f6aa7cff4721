"""StreamingMonitor: what a streamed model has cost, as a dictionary and as a page that Prometheus reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from streamsplit.errors import MissingExtraError, PortInUseError

if TYPE_CHECKING:
    from streamsplit.facade.streaming import StreamingModel

_PREFIX = "streamsplit_streaming"
_FAMILIES = {  # of get_metrics: name, text, and whether it only grows
    "cache_hit_rate": ("cache_hit_rate", "Share of layers that were in memory", False),
    "cache_hits": ("cache_hits", "Layers that were in memory", True),
    "cache_misses": ("cache_misses", "Layers that were not", True),
    "cache_bytes": ("cache_bytes", "Layers in memory", False),
    "bytes_received": ("received_bytes", "On the weight stream's sockets", True),
    "bytes_sent": ("sent_bytes", "On the weight stream's sockets", True),
    "connections": ("connections", "Opened to the server", True),
    "layers_prefetched": ("prefetched", "Layers asked for before they were needed", True),
    "stalls": ("stalls", "Layers that were waited for", True),
    "stall_s": ("stall_seconds", "Waited for layers", True),
    "deltas_applied": ("deltas_applied", "Chunks that came as deltas", True),
    "forwards": ("forwards", "Whole passes", True),
    "time_to_first_output_s": ("first_output_seconds", "Opening to the end of the first pass", False),
}


class StreamingMonitor:
    """What a streaming model has cost so far; give it to the model, then ask `get_metrics`."""

    def __init__(self) -> None:
        self._model: StreamingModel | None = None
        self._page: Any = None

    def get_metrics(self) -> dict[str, Any]:
        """Counts since the model was opened; all zero before."""
        streamed = None if self._model is None else self._model._streamed
        client = None if self._model is None else self._model._client
        source = None if self._model is None else self._model._source
        cache, meter = (None, None) if streamed is None else (streamed.layers.cache, streamed.layers.meter)
        return {
            "cache_hit_rate": 0.0 if cache is None else cache.hit_rate,
            "cache_hits": 0 if cache is None else cache.hits,
            "cache_misses": 0 if cache is None else cache.misses,
            "cache_bytes": 0 if cache is None else cache.used_bytes,
            "cache_rule": "pin" if cache is None else cache.rule,
            "bytes_received": 0 if client is None else client.count.down,
            "bytes_sent": 0 if client is None else client.count.up,
            "connections": 0 if client is None else client.connections,
            "layers_prefetched": 0 if meter is None else meter.prefetched,
            "stalls": 0 if meter is None else meter.stalls,
            "stall_s": 0.0 if meter is None else meter.stall_s,
            "deltas_applied": 0 if source is None else source.deltas_applied,
            "forwards": 0 if meter is None else meter.forwards,
            "time_to_first_output_s": None if meter is None else meter.first_output_s,
        }

    def serve_metrics(self, port: int = 0, address: str = "127.0.0.1") -> int:
        """Shows the same at http://address:port/metrics until `stop_metrics`; gives the port, a free one for 0.

        Raises PortInUseError, and MissingExtraError without prometheus-client.
        """
        try:
            from prometheus_client import CollectorRegistry, start_http_server
        except ImportError as error:
            raise MissingExtraError("the monitor's page", "server", str(error)) from error
        registry = CollectorRegistry()
        registry.register(self)
        self.stop_metrics()
        try:
            self._page, _ = start_http_server(port, address, registry)
        except OSError as error:
            raise PortInUseError(f"{address}:{port} cannot be listened on ({error.strerror}); choose another") from None
        return int(self._page.server_port)

    def stop_metrics(self) -> None:
        """Ends the page, if there is one."""
        if self._page is not None:
            self._page.shutdown()
            self._page.server_close()
            self._page = None

    def collect(self) -> Iterator[Any]:
        """Prometheus families; what is not known yet is left out."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        metrics = self.get_metrics()
        for key, (name, text, grows) in _FAMILIES.items():
            if metrics[key] is not None:
                family = CounterMetricFamily if grows else GaugeMetricFamily
                yield family(f"{_PREFIX}_{name}", text, value=metrics[key])
