"""StreamingEncoder: StreamSplit's own encoder on a device that has no room for all of its blocks."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from streamsplit.edge.disk_cache import BUDGET_BYTES, DiskCache
from streamsplit.edge.weight_client import WeightClient
from streamsplit.edge.weight_link import WeightLinkSettings
from streamsplit.edge.weight_source import RemoteSource
from streamsplit.encoders.base import SplitEncoder
from streamsplit.encoders.crossing import Crossing
from streamsplit.errors import ClosedError, LayerUnavailable
from streamsplit.weights.streaming.encoder import StreamedEncoder


class StreamingEncoder:
    """A SplitEncoder from a weight server; `encoder` stops and goes on after any block, as a plain one does."""

    def __init__(
        self, uri: str, *, cache_bytes: int | None = None, prefetch: int = 1, disk_cache_dir: str = "",
        disk_cache_bytes: int = BUDGET_BYTES, link: WeightLinkSettings | None = None,
    ) -> None:  # fmt: skip
        """`cache_bytes` bounds the blocks in memory. Raises what is wrong with server, manifest or budget."""
        self._lock = threading.Lock()  # one block at a time
        self._closed = False
        self._client = WeightClient(uri, link)
        try:
            manifest = self._client.manifest()
            disk = DiskCache(disk_cache_dir, disk_cache_bytes) if disk_cache_dir else None
            self.streamed = StreamedEncoder(
                manifest, RemoteSource(self._client, disk, manifest.deltas), cache_bytes=cache_bytes,
                prefetch=prefetch, clock_s=time.monotonic,
            )  # fmt: skip
        except BaseException:
            self._client.close()
            raise
        self._advance = self.streamed.encoder.advance
        self.streamed.encoder.advance = self._guarded  # type: ignore[method-assign]

    @property
    def encoder(self) -> SplitEncoder:
        """Runs like a plain encoder; blocks that are not in memory are fetched as they come up."""
        return self.streamed.encoder

    @property
    def held_blocks(self) -> int:
        """Blocks 1..n in memory, for `Observation.blocks`."""
        return self.streamed.held_blocks

    @property
    def bytes_received(self) -> int:
        """On the socket so far."""
        return self._client.count.down

    def close(self) -> None:
        """Ends the connection and gives the blocks' memory back; the encoder cannot be used any more.

        A forward in another thread ends with a ClosedError at its next block. May be called again.
        """
        self._closed = True
        self._client.close()
        with self._lock:
            self.streamed.layers.release()

    def _guarded(self, crossing: Crossing, block: int) -> Crossing:
        with self._lock:
            try:
                if not self._closed:
                    return self._advance(crossing, block)
            except LayerUnavailable as error:
                if self._closed:
                    raise ClosedError("the streaming encoder") from error
                raise
        raise ClosedError("the streaming encoder")

    def __enter__(self) -> StreamingEncoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
