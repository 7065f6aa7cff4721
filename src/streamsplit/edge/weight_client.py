"""The device's end of the weight stream: one connection in a thread of its own, bytes checked before anyone sees them.

Every range is fetched once however many ask for it; a lost connection is opened again and goes on in mid-chunk.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from streamsplit.edge.transport import open_socket
from streamsplit.edge.weight_job import Job
from streamsplit.edge.weight_link import WeightLinkSettings, full_url
from streamsplit.errors import ConnectionRefused, ManifestError, ProtocolError
from streamsplit.transport.count import ByteCount
from streamsplit.weights.streaming.manifest import Manifest, decode_manifest
from streamsplit.weights.streaming.pieces import unpacked_piece, zstandard_module
from streamsplit.wire.chunks import MAX_PENDING, ChunkClient, Failed, Piece
from streamsplit.wire.codes import may_retry

MAX_BACKOFF_S = 2.0
HASH_BYTES = 1 << 20  # hashed at a time, in a thread of its own
_IN_FLIGHT = MAX_PENDING // 2


class WeightClient:
    """Fetches ranges of chunks from a server; every method may be called from any thread."""

    def __init__(self, url: str, settings: WeightLinkSettings | None = None) -> None:
        self.url = full_url(url)
        self.settings = settings or WeightLinkSettings()
        if self.settings.compress:
            zstandard_module()
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
        self._hasher = ThreadPoolExecutor(1, "weights-hash")  # hashing takes longer than receiving
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
        """Ends the connection; whoever still waits gets a ConnectionError."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._notify()
        self._thread.join(10.0)

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
        self._notify()
        return job.future

    def _notify(self) -> None:
        self._loop.call_soon_threadsafe(self._wake.set)

    # -- in the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        finally:
            self._hasher.shutdown()
            self._loop.close()

    async def _main(self) -> None:
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
            except (OSError, asyncio.TimeoutError, ConnectionClosed, ProtocolError) as error:
                self._lost(error)
                failures = 1 if self._progress_bytes > before else failures + 1
                if failures >= self.settings.attempts:
                    self._fail_all(ConnectionError(f"{self.url} cannot be reached ({_said(error)})"))
                    failures = 0
                elif self._flights:
                    await asyncio.sleep(min(MAX_BACKOFF_S, self.settings.backoff_s * 2 ** (failures - 1)))
        self._fail_all(ConnectionError("the weight client was closed"))

    async def _connection(self) -> None:
        """One connection; returns at an end that harms nobody, raises what ended it otherwise."""
        socket = await open_socket(self.url, self.count, self.settings.connect_timeout_s)
        session = ChunkClient()
        pump: asyncio.Task[None] | None = None
        self.connections += 1
        try:
            session.open(self.settings.device_id, self.settings.token, compress=self.settings.compress)
            await _flush(socket, session)
            while session.ready is None:
                data = await asyncio.wait_for(socket.recv(), self.settings.connect_timeout_s)
                self._take(session, data)
            pump = asyncio.create_task(self._pump(socket, session))
            async for data in socket:
                self._heard_s = time.monotonic()
                if self._take(session, data):
                    self._wake.set()
            if self._flights and not self._closed:
                raise ConnectionError("the connection ended")
        finally:
            if pump is not None:
                pump.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionClosed):
                    await pump
            socket.transport.abort()

    async def _pump(self, socket: ClientConnection, session: ChunkClient) -> None:
        """Asks for what waits, and ends a connection on which nothing comes."""
        while not self._closed:
            self._wake.clear()
            self._ask(session)
            await _flush(socket, session)
            if not self._asked:
                await self._wake.wait()
                continue
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self.settings.silence_s / 4)
            if self._asked and time.monotonic() - self._heard_s > self.settings.silence_s:
                socket.transport.abort()
                return
        await socket.close()

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

    def _take(self, session: ChunkClient, message: bytes | str) -> bool:
        """Handles one message; True when a request has ended."""
        if isinstance(message, str):
            raise ProtocolError("bad_message", "got a text message, expected binary ones")
        ended = False
        for event in session.receive(message):
            if isinstance(event, Piece):
                data = event.data if not event.packed_bytes else unpacked_piece(event.data, event.packed_bytes)
                self._progress_bytes += len(data)
                job = self._asked[event.request]
                job.take(data)
                ended = event.last
                if event.last:
                    self._check(self._asked.pop(event.request))
                elif job.received // HASH_BYTES > (job.received - len(data)) // HASH_BYTES:
                    self._hasher.submit(job.hash_up_to, job.received, job.hashing)
            elif isinstance(event, Failed):
                self._refused(event)
                ended = True
        return ended

    def _check(self, job: Job) -> None:
        """Has the rest hashed, behind what was there before, while the connection goes on."""
        if job.length <= HASH_BYTES:
            self._arrived(job, job.damage())
            return
        checked = self._hasher.submit(job.damage)
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


async def _flush(socket: ClientConnection, session: ChunkClient) -> None:
    for data in session.bytes_to_send():
        await socket.send(data)


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
