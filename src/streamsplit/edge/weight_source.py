"""Chunks for a streamed model: from the server, from a disk cache, or from an older revision and a delta."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np

from streamsplit.edge.disk_cache import DiskCache
from streamsplit.edge.weight_client import WeightClient
from streamsplit.errors import StreamSplitError
from streamsplit.weights.streaming.buffers import Base
from streamsplit.weights.streaming.manifest import Chunk, Delta

LOG = logging.getLogger(__name__)
MAX_RANGE_BYTES = 1 << 20  # of rows in one request


class RemoteSource:
    """Fetches through a WeightClient; `disk` keeps whole chunks, nothing is written without it.

    Where the chunk of an older revision that a delta of the manifest applies to is in memory (of a caller, or in
    `bases`, by digest) or on the disk, the delta travels.
    """

    def __init__(self, client: WeightClient, disk: DiskCache | None = None, deltas: Sequence[Delta] = ()) -> None:
        self.deltas_applied = 0
        self.bases: Callable[[str], np.ndarray | None] = lambda digest: None
        self._client = client
        self._disk = disk
        self._deltas = tuple(deltas)

    def fetch(self, chunk: Chunk, base: Base | None = None) -> Future[np.ndarray]:
        """The stored bytes of a chunk; they may come in the memory of `base`, an older one's that is used up."""
        if self._disk is not None:
            held = self._disk.read(chunk.digest, chunk.stored_bytes)
            if held is not None:
                done: Future[np.ndarray] = Future()
                done.set_result(held)
                return done
        coming = self._by_delta(chunk, base) or self._client.fetch(chunk.digest, chunk.stored_bytes)
        if self._disk is not None:
            coming.add_done_callback(_keeper(self._disk, chunk))
        return coming

    def _by_delta(self, chunk: Chunk, base: Base | None) -> Future[np.ndarray] | None:
        """The chunk from an older one and a delta, where there are such; all of it where that fails."""
        for delta in (delta for delta in self._deltas if delta.target == chunk.digest):
            if base is not None and delta.base == base.digest:
                return self._apply(chunk, delta, base)
            data = self.bases(delta.base)
            if data is not None:
                return self._apply(chunk, delta, Base(delta.base, data))
            if self._disk is not None and self._disk.size(delta.base) == chunk.stored_bytes:
                data = self._disk.read(delta.base, chunk.stored_bytes)
                if data is not None:
                    return self._apply(chunk, delta, Base(delta.base, data))
        return None

    def _apply(self, chunk: Chunk, delta: Delta, base: Base) -> Future[np.ndarray]:
        made: Future[np.ndarray] = Future()
        bases = [base]
        del base  # its memory is the chunk's, or is free before all of the chunk is asked for

        def finish(coming: Future[np.ndarray]) -> None:
            from streamsplit.weights.streaming.revision_delta import applied

            try:
                try:
                    made.set_result(applied(chunk, delta, bases[0].data, coming.result()))
                    self.deltas_applied += 1
                except (StreamSplitError, OSError) as error:
                    LOG.warning("chunk '%s': the delta is not used (%s)", chunk.name, error)
                    bases.clear()
                    self._client.fetch(chunk.digest, chunk.stored_bytes).add_done_callback(whole)
            except Exception as error:  # whoever waits must hear of it
                made.set_exception(error)

        def whole(coming: Future[np.ndarray]) -> None:
            error = coming.exception()
            if error is not None:
                made.set_exception(error)
            else:
                made.set_result(coming.result())

        self._client.fetch(delta.digest, delta.stored_bytes).add_done_callback(finish)
        return made

    def fetch_rows(self, chunk: Chunk, blocks: list[int]) -> list[Future[np.ndarray]]:
        """Blocks of rows; neighbours travel together."""
        rows = chunk.rows
        if rows is None:
            raise ValueError(f"chunk '{chunk.name}' has no rows")
        per_range = max(1, MAX_RANGE_BYTES // (rows.block_rows * rows.row_bytes))
        runs: list[list[int]] = []
        for block in blocks:
            if runs and runs[-1][-1] + 1 == block and len(runs[-1]) < per_range:
                runs[-1].append(block)
            else:
                runs.append([block])
        futures = []
        for run in runs:
            spans = [rows.span(block) for block in run]
            parts = [(length, rows.digest(block)) for block, (_, length) in zip(run, spans, strict=True)]
            length = sum(length for _, length in spans)
            futures.append(self._client.fetch_range(chunk.digest, spans[0][0], length, parts))
        return futures


def _keeper(disk: DiskCache, chunk: Chunk) -> Callable[[Future[np.ndarray]], None]:
    """A callback for a chunk's future that writes what has come."""

    def keep(coming: Future[np.ndarray]) -> None:
        if coming.exception() is not None:
            return
        try:
            disk.keep(chunk.digest, coming.result())
        except OSError as error:  # the chunk itself has arrived: the model goes on without the copy
            LOG.warning("chunk '%s' is not kept on disk (%s)", chunk.name, error)

    return keep
