"""Chunks for a streamed model: from the server, or from a disk cache that is checked on every read."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from streamsplit.edge.weight_client import WeightClient
from streamsplit.errors import StreamSplitError
from streamsplit.weights.streaming.buffers import aligned_buffer
from streamsplit.weights.streaming.manifest import Chunk, Delta, file_name

LOG = logging.getLogger(__name__)
MAX_RANGE_BYTES = 1 << 20  # of rows in one request


class RemoteSource:
    """Fetches through a WeightClient; `disk` keeps whole chunks, nothing is written without it.

    Where the disk or `bases` (memory, by digest) holds the chunk of an older revision that a delta of the manifest
    applies to, the delta travels.
    """

    def __init__(self, client: WeightClient, disk: DiskCache | None = None, deltas: Sequence[Delta] = ()) -> None:
        self.deltas_applied = 0
        self.bases: Callable[[str], np.ndarray | None] = lambda digest: None
        self._client = client
        self._disk = disk
        self._deltas = tuple(deltas)

    def fetch(self, chunk: Chunk) -> Future[np.ndarray]:
        """The stored bytes of a chunk."""
        held = None if self._disk is None else self._disk.read(chunk.digest, chunk.stored_bytes)
        if held is not None:
            done: Future[np.ndarray] = Future()
            done.set_result(held)
            return done
        coming = self._by_delta(chunk) or self._client.fetch(chunk.digest, chunk.stored_bytes)
        if self._disk is not None:
            coming.add_done_callback(self._disk.keeper(chunk))
        return coming

    def _by_delta(self, chunk: Chunk) -> Future[np.ndarray] | None:
        """The chunk from an older one and a delta; where that fails, all of it, and the older one stays as it was."""
        disk = self._disk
        for delta in self._deltas:
            if delta.target != chunk.digest:
                continue
            base = self.bases(delta.base)
            if base is None and disk is not None:
                base = disk.read(delta.base, disk.size(delta.base))
            if base is not None:
                return self._apply(chunk, delta, base)
        return None

    def _apply(self, chunk: Chunk, delta: Delta, base: np.ndarray) -> Future[np.ndarray]:
        made: Future[np.ndarray] = Future()

        def finish(coming: Future[np.ndarray]) -> None:
            from streamsplit.weights.streaming.revision_delta import applied

            try:
                try:
                    made.set_result(applied(chunk, delta, base, coming.result()))
                    self.deltas_applied += 1
                except (StreamSplitError, OSError) as error:
                    LOG.warning("chunk '%s': the delta is not used (%s)", chunk.name, error)
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


class DiskCache:
    """Chunks in a folder, named by their hash; what does not hash to its name is thrown away and fetched again."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self.hits = 0

    def size(self, digest: str) -> int:
        """Bytes of a chunk's file; 0 where it is not here."""
        try:
            return (self._folder / file_name(digest)).stat().st_size
        except OSError:
            return 0

    def read(self, digest: str, size_bytes: int) -> np.ndarray | None:
        """The stored bytes, if they are here and good."""
        path = self._folder / file_name(digest)
        buffer = aligned_buffer(size_bytes)
        try:
            if path.stat().st_size != size_bytes:
                path.unlink()
                return None
            with path.open("rb", buffering=0) as file:
                count = file.readinto(buffer)  # type: ignore[arg-type]
        except FileNotFoundError:
            return None
        if count != size_bytes or hashlib.sha256(buffer).hexdigest() != digest:  # type: ignore[arg-type]
            path.unlink(missing_ok=True)
            return None
        self.hits += 1
        return buffer

    def keeper(self, chunk: Chunk) -> Callable[[Future[np.ndarray]], None]:
        """A callback for the future of a chunk that writes it, whole or not at all."""

        def keep(coming: Future[np.ndarray]) -> None:
            if coming.exception() is not None:
                return
            path = self._folder / file_name(chunk.digest)
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                partial.write_bytes(memoryview(coming.result()))  # type: ignore[arg-type]
                partial.replace(path)
            except OSError as error:  # the chunk itself has arrived: the model goes on without the copy
                LOG.warning("%s: chunk '%s' is not kept (%s)", self._folder, chunk.name, error)
            finally:
                partial.unlink(missing_ok=True)

        return keep
