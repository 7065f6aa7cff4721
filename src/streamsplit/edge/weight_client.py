"""The device's end of the weight stream: one connection in a thread of its own, bytes checked before anyone sees them.

Every range is fetched once however many ask for it; a lost connection is opened again and goes on in mid-chunk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from streamsplit.edge.transport import open_socket, trusted
from streamsplit.edge.weight_job import Job
from streamsplit.edge.weight_link import WeightLinkSettings, full_url
from streamsplit.edge.weight_receiver import FrameReceiver
from streamsplit.errors import ConnectionRefused, ManifestError, ProtocolError
from streamsplit.transport.count import ByteCount
from streamsplit.weights.streaming.manifest import Manifest, decode_manifest
from streamsplit.weights.streaming.pieces import unpacked_piece, zstandard_module
from streamsplit.wire.chunks import MAX_PENDING, ChunkClient, Event, Failed, Placement
from streamsplit.wire.codes import may_retry

LOG = logging.getLogger(__name__)
MAX_BACKOFF_S = 2.0
HASH_BYTES = 1 << 20  # hashed at a time, in a thread of its own: what is left at the end is waited for
SMALL_BYTES = 1 << 20  # hashed at once
HASHERS = 2
_IN_FLIGHT = MAX_PENDING // 2
_JOIN_S = 10.0


class WeightClient:
    """Fetches ranges of chunks from a server; every method may be called from any thread."""

    def __init__(self, url: str, settings: WeightLinkSettings | None = None) -> None:
        self.url = full_url(url)
        self.settings = settings or WeightLinkSettings()
        if self.settings.compress:
            zstandard_module()
        trusted(self.url, self.settings.tls_ca_file)  # a file that cannot be read is said here
        self.count = ByteCount()
        self.connections = 0
        self._closed = False
        self._lock = threading.Lock()  # over the two below
        self._flights: dict[tuple[str, int, int], Job] = {}
        self._waiting: deque[Job] = deque()  # not asked for on the present connection
        self._asked: dict[int, Job] = {}
        self._heard_s = 0.0
        self._progress_bytes = 0
        self._loop = asyncio.new_event_loop()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._connected = False
        # hashing takes longer than receiving: on more cores, two chunks at once
        self._hashers = [ThreadPoolExecutor(1, "weights-hash") for _ in range(min(HASHERS, os.cpu_count() or 1))]
        self._thread = threading.Thread(target=self._run, name="weights", daemon=True)
        self._thread.start()

    def manifest(self) -> Manifest:
        """The server's manifest; raises ManifestError, ConnectionRefused or ConnectionError."""
        return decode_manifest(self._submit(Job("", 0, 0, ())).result().tobytes())

    def fetch(self, digest: str, size_bytes: int) -> Future[np.ndarray]:
        """All stored bytes of a chunk [size] uint8, whose SHA-256 is `digest`."""
        return self.fetch_range(digest, 0, size_bytes, [(size_bytes, bytes.fromhex(digest))])

    def fetch_range(
        self, digest: str, offset: int, length: int, parts: Sequence[tuple[int, bytes]]
    ) -> Future[np.ndarray]:
        """A range of a chunk; `parts` are the lengths and SHA-256 of the pieces that it consists of."""
        return self._submit(Job(digest, offset, length, parts))

    def close(self) -> None:
        """Ends the connection; whoever still waits gets a ConnectionError. The threads are gone when this returns.

        It may be called again, by others at the same time, and from a future's callback, which cannot wait for itself.
        """
        with self._lock:
            self._closed = True
        self._in_loop(self._stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_S)
            if self._thread.is_alive():
                LOG.warning("%s: the connection's thread did not end within %g s", self.url, _JOIN_S)

    @property
    def closed(self) -> bool:
        """Whether nothing can be fetched any more."""
        return self._closed

    def _submit(self, job: Job) -> Future[np.ndarray]:
        with self._lock:
            if self._closed:
                job.future.set_exception(ConnectionError("the weight client is closed"))
                return job.future
            flying = self._flights.get(job.key)
            if flying is not None:
                return flying.future
            self._flights[job.key] = job
            self._waiting.append(job)
        self._in_loop(self._wake.set)
        return job.future

    def _in_loop(self, work: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended; what was asked for has failed with it
            self._loop.call_soon_threadsafe(work)

    def _stop(self) -> None:
        """In the loop: a connection says goodbye; what waits for one is given up."""
        self._wake.set()
        if self._task is not None and not self._connected:
            self._task.cancel()

    # -- in the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        finally:
            for hasher in self._hashers:
                hasher.shutdown()
            self._loop.close()

    async def _main(self) -> None:
        self._task = asyncio.current_task()
        try:
            await self._work()
        except asyncio.CancelledError:  # closed while it waited for a connection
            pass
        finally:
            with self._lock:
                self._closed = True  # whatever ended it: nothing may wait for ever
            self._fail_all(ConnectionError("the weight client was closed"))

    async def _work(self) -> None:
        failures = 0
        while not self._closed:
            self._wake.clear()
            if not self._flights:
                await self._wake.wait()
                continue
            before = self._progress_bytes
            try:
                await self._connection()
                failures = 0
            except ConnectionRefused as error:
                self._fail_all(error)
            except (OSError, asyncio.TimeoutError, ProtocolError) as error:
                self._lost(error)
                failures = 1 if self._progress_bytes > before else failures + 1
                if failures >= self.settings.attempts:
                    self._fail_all(ConnectionError(f"{self.url} cannot be reached ({_said(error)})"))
                    failures = 0
                elif self._flights:
                    await asyncio.sleep(min(MAX_BACKOFF_S, self.settings.backoff_s * 2 ** (failures - 1)))

    async def _connection(self) -> None:
        """One connection; returns at an end that harms nobody, raises what ended it otherwise."""
        settings = self.settings
        connection = await open_socket(self.url, self.count, settings.connect_timeout_s, settings.tls_ca_file)
        session = ChunkClient()
        self.connections += 1
        self._connected = True
        socket = FrameReceiver(
            connection, self.count, session, place=self._place, placed=self._placed, happened=self._happened
        )
        try:
            session.open(self.settings.device_id, self.settings.token, compress=self.settings.compress)
            socket.send(session.bytes_to_send())
            self._heard_s = time.monotonic()
            await self._pump(socket, session)
        finally:
            self._connected = False
            socket.abort()

    async def _pump(self, socket: FrameReceiver, session: ChunkClient) -> None:
        """Asks for what waits, and ends a connection on which nothing comes."""
        while not self._closed:
            self._wake.clear()
            self._ask(session)
            socket.send(session.bytes_to_send())
            waits = session.ready is None or bool(self._asked)
            limit_s = self.settings.connect_timeout_s if session.ready is None else self.settings.silence_s
            woken = asyncio.ensure_future(self._wake.wait())
            either: set[asyncio.Future[Any]] = {woken, socket.ended}
            await asyncio.wait(either, timeout=limit_s / 4 if waits else None, return_when=asyncio.FIRST_COMPLETED)
            woken.cancel()
            if socket.ended.done():
                if self._flights or isinstance(socket.ended.exception(), ProtocolError):
                    socket.ended.result()
                return
            if waits and time.monotonic() - self._heard_s > limit_s:
                raise ConnectionError(f"nothing came for {limit_s:g} s")
        socket.close()

    def _ask(self, session: ChunkClient) -> None:
        if session.ready is None:
            return
        while session.pending < _IN_FLIGHT:
            with self._lock:
                if not self._waiting:
                    return
                job = self._waiting.popleft()
            if not self._asked:
                self._heard_s = time.monotonic()
            if job.digest:
                request = session.request(job.digest, job.offset + job.received, job.length - job.received)
            else:
                job.start(session.ready.manifest_bytes)
                request = session.request_manifest()
            self._asked[request] = job

    def _place(self, placement: Placement) -> memoryview:
        return self._asked[placement.request].room(placement.length)

    def _placed(self, placement: Placement, size_bytes: int) -> None:
        self._heard_s = time.monotonic()
        self._progress_bytes += size_bytes
        job = self._asked[placement.request]
        before = job.received
        job.placed(size_bytes)
        if job.received < job.length and job.received // HASH_BYTES > before // HASH_BYTES:
            self._hash(job.hash_up_to, job.received, job.hashing, job=job)

    def _happened(self, events: list[Event]) -> None:
        """A frame has come: the server lets us in, a request has ended, or packed data came, which is not placed."""
        self._heard_s = time.monotonic()
        for event in events:
            if isinstance(event, Failed):
                self._refused(event)
                continue
            if event.packed_bytes:
                data = unpacked_piece(event.data, event.packed_bytes)
                self._progress_bytes += len(data)
                self._asked[event.request].take(data)
            if event.last:
                self._check(self._asked.pop(event.request))
        if not events or any(isinstance(event, Failed) or event.last for event in events):
            self._wake.set()  # there may be something to ask for; between two pieces there is not

    def _hash(self, work: Callable[..., Any], *values: Any, job: Job) -> Future[Any]:
        """Has a job's bytes hashed: one thread a job, so that they come in order, and several jobs at once."""
        return self._hashers[job.number % len(self._hashers)].submit(work, *values)

    def _check(self, job: Job) -> None:
        """Has the rest hashed, behind what was there before, while the connection goes on."""
        if job.length <= SMALL_BYTES:
            self._arrived(job, job.damage())
            return
        checked = self._hash(job.damage, job=job)
        checked.add_done_callback(lambda done: self._loop.call_soon_threadsafe(self._arrived, job, done.result()))

    def _arrived(self, job: Job, damage: str) -> None:
        if self._flights.get(job.key) is not job:  # given up meanwhile
            return
        if not damage:
            with self._lock:
                del self._flights[job.key]
            job.deliver()
        else:
            self._try_again(job, ManifestError(damage))
            self._wake.set()

    def _refused(self, event: Failed) -> None:
        if event.request:
            job, error = self._asked.pop(event.request), ProtocolError(event.code, event.detail)
            if may_retry(event.code) and event.code != "bad_transfer":
                self._try_again(job, error)
            else:
                self._fail(job, error)
        elif may_retry(event.code):
            raise ConnectionError(event.detail)
        else:
            raise ConnectionRefused(f"{self.url}: {event.code}: {event.detail}")

    def _try_again(self, job: Job, error: Exception) -> None:
        """Asks for all of it once more, unless it went wrong too often."""
        job.faults += 1
        if job.faults > self.settings.faults:
            self._fail(job, error)
            return
        job.start(job.length)
        with self._lock:
            self._waiting.appendleft(job)

    def _lost(self, error: Exception) -> None:
        """Puts back what was asked for, to go on from where it was; a peer that breaks the protocol has few tries."""
        jobs = list(self._asked.values())
        self._asked.clear()
        for job in reversed(jobs):
            if isinstance(error, ProtocolError):
                self._try_again(job, error)
            else:
                with self._lock:
                    self._waiting.appendleft(job)

    def _fail(self, job: Job, error: Exception) -> None:
        with self._lock:
            self._flights.pop(job.key, None)
        job.future.set_exception(error)

    def _fail_all(self, error: Exception) -> None:
        with self._lock:
            jobs = list(self._flights.values())
            self._waiting.clear()
        self._asked.clear()
        for job in jobs:
            self._fail(job, error)


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
