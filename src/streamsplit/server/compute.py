"""The compute worker: completes windows of many devices together, in micro-batches, away from the event loop."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from streamsplit.encoders.crossing import Crossing, stack_crossings, unpack_crossing
from streamsplit.encoders.embedding_codec import unpack_embedding
from streamsplit.errors import CutError, ProtocolError, StreamSplitError
from streamsplit.learning.mixture import GaussianMixture
from streamsplit.server.jobs import Done, Job, Sample
from streamsplit.server.labels import LabelledPrototypes
from streamsplit.server.models import EncoderShelf, Served
from streamsplit.server.records import Commit, WindowRecord
from streamsplit.server.settings import ComputeSettings
from streamsplit.splitting.cut import Cut
from streamsplit.wire.media import Encoding, MediaFlag, MediaHeader, Resolution, unpack_media
from streamsplit.wire.messages import Gmm
from streamsplit.wire.types import FrameType

LOG = logging.getLogger(__name__)
GRADIENT_ENCODINGS = frozenset({Encoding.FP32, Encoding.FP16, Encoding.INT8, Encoding.BOTTLENECK_INT8})
NORM_TOLERANCE = 0.05  # of an embedding's norm; int8 of 128 values stays well within
T = TypeVar("T")


class _Prepared(NamedTuple):
    """A window that decoded: what is left is blocks k+1..L, or nothing where an embedding came."""

    job: Job
    header: MediaHeader
    served: Served
    crossing: Crossing | None
    embedding: np.ndarray | None
    overlap: bytes | None


class BatchReport(NamedTuple):
    """For the metrics: one micro-batch."""

    windows: int
    block: int
    compute_ms: float
    queue_ms: float  # of the oldest window in it


class ComputeWorker:
    """One thread: takes windows, decodes them in order, completes equal cuts together and hands over what came out.

    `deliver(commits, done)` gets them grouped by batch, in this thread; `learn(samples)` gets what the refiner may use.
    `call` runs a function in this thread between two batches, so that nothing here needs a lock.
    """

    def __init__(
        self,
        settings: ComputeSettings,
        shelf: EncoderShelf,
        mixture: GaussianMixture,
        labels: LabelledPrototypes,
        *,
        window_frames: int,
        device: str,
        deliver: Callable[[list[Commit], list[Done]], None],
        learn: Callable[[list[Sample]], None],
        report: Callable[[BatchReport], None],
    ) -> None:
        self.settings = settings
        self.shelf = shelf
        self.mixture = mixture
        self.labels = labels
        self.mixture_version = 0
        self._window_frames = window_frames
        self._device = torch.device(device)
        self._deliver = deliver
        self._learn = learn
        self._report = report
        self._condition = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._stopping = False
        self._gmm: Gmm | None = None
        self._heard = 0  # windows of `hear` so far
        self._thread = threading.Thread(target=self._run, name="streamsplit-compute", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queues a window; returns at once."""
        with self._condition:
            self._jobs.append(job)
            self._condition.notify()

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Runs `function` in the worker's thread, between two batches."""
        future: Future[T] = Future()
        with self._condition:
            self._calls.append((function, future))
            self._condition.notify()
        return future

    @property
    def waiting(self) -> int:
        """Windows not yet taken up."""
        return len(self._jobs)

    def forget_gmm(self) -> None:
        """The next mixture for a device is made anew; in the worker's thread."""
        self._gmm = None

    def stop(self, timeout_s: float = 30.0) -> None:
        """Completes what is queued, then ends the thread."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        torch.set_num_threads(self.settings.threads)
        while True:
            batch, calls = self._take()
            for function, future in calls:
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    future.set_result(function())
                except Exception as error:
                    future.set_exception(error)
            if batch:
                self._complete(batch)
            elif not calls:
                return

    def _take(self) -> tuple[list[Job], list[tuple[Callable[[], Any], Future[Any]]]]:
        """The next windows: as many as are there, or as come within `wait_ms`; both empty at the end."""
        with self._condition:
            while not (self._jobs or self._calls or self._stopping):
                self._condition.wait()
            if self._jobs and not self._calls:
                deadline = self._jobs[0].arrived_s + self.settings.wait_ms / 1000
                while len(self._jobs) < self.settings.batch_windows and not (self._calls or self._stopping):
                    left = deadline - time.monotonic()
                    if left <= 0:
                        break
                    self._condition.wait(left)
            calls, self._calls = list(self._calls), deque()
            batch = [self._jobs.popleft() for _ in range(min(len(self._jobs), self.settings.batch_windows))]
        return batch, calls

    def _complete(self, batch: Sequence[Job]) -> None:
        taken_s = time.monotonic()
        groups: dict[tuple[Any, ...], list[_Prepared]] = {}
        refused: list[tuple[Commit, Done]] = []
        for job in batch:
            try:
                item = self._prepare(job)
            except StreamSplitError as error:
                code = error.code if isinstance(error, ProtocolError) else "bad_media"
                detail = error.detail if isinstance(error, ProtocolError) else str(error)
                refused.append(self._refuse(job, code, detail))
            except Exception as error:  # a bug must cost one window, not the worker that serves everybody
                LOG.exception("compute: window %d of %s", job.sequence, job.stream.device)
                refused.append(self._refuse(job, "internal", f"{type(error).__name__}: {error}"))
            else:
                shape = () if item.crossing is None else tuple(item.crossing.h.shape[1:])
                groups.setdefault((-item.header.block, item.header.resolution, item.served.revision, shape), []).append(
                    item
                )
        if refused:
            self._deliver([commit for commit, _ in refused], [done for _, done in refused])
        for key in sorted(groups, key=lambda key: key[:2]):  # the cheap ones first: deep cuts need little of the server
            self._complete_group(groups[key], taken_s)

    def _complete_group(self, group: list[_Prepared], taken_s: float) -> None:
        started_s = time.monotonic()
        try:
            z = self._embed(group)
        except Exception as error:
            LOG.exception("compute: batch of %d at block %d", len(group), group[0].header.block)
            refused = [self._refuse(item.job, "internal", f"{type(error).__name__}: {error}") for item in group]
            self._deliver([commit for commit, _ in refused], [done for _, done in refused])
            return
        compute_ms = 1000 * (time.monotonic() - started_s)
        commits, dones, samples = [], [], []
        for item, embedding in zip(group, z, strict=True):
            job = item.job
            if not np.isfinite(embedding).all():
                commit, done = self._refuse(job, "nan_features", "the completed embedding is not finite")
            else:
                commit, done = self._answer(item, embedding, compute_ms, 1000 * (taken_s - job.arrived_s))
                samples.append(self._sample(item, embedding))
            commits.append(commit)
            dones.append(done)
        self._deliver(commits, dones)
        self._learn(samples)
        oldest_ms = 1000 * (started_s - min(item.job.arrived_s for item in group))
        self._report(BatchReport(len(group), group[0].header.block, compute_ms, oldest_ms))

    def _embed(self, group: list[_Prepared]) -> np.ndarray:
        """Embeddings [n, d] of one group."""
        if group[0].crossing is None:
            return np.stack([item.embedding for item in group if item.embedding is not None])
        crossing = stack_crossings([item.crossing for item in group if item.crossing is not None])
        with torch.inference_mode():
            moved = Crossing(crossing.h.to(self._device), crossing.partial.to(self._device))
            z = group[0].served.encoder.forward_from(moved, group[0].header.block)
        embeddings: np.ndarray = z.float().cpu().numpy()
        return embeddings

    def _prepare(self, job: Job) -> _Prepared:
        """Decodes one window; raises ProtocolError or CutError with what to tell the device."""
        header, payload = unpack_media(job.payload)
        current = self.shelf.current
        depth = current.encoder.num_blocks
        encoding, resolution = Encoding(header.encoding), Resolution(header.resolution)
        if not 0 <= header.block <= depth or encoding is Encoding.NONE:
            raise CutError(f"got cut {header.block}:{encoding.label}, expected block 0..{depth} and something to carry")
        Cut(header.block, encoding).check(depth)
        if job.frame_type is FrameType.GRADIENT and not (0 < header.block < depth and encoding in GRADIENT_ENCODINGS):
            raise ProtocolError(
                "bad_media",
                f"got cut {header.block}:{encoding.label}, expected activations after block 1..{depth - 1}: there are "
                "no gradients to return elsewhere; send AUDIO, FEATURES or EMBEDDING",
            )
        if header.block == 0:
            window = job.stream.assembler.add(header, payload)
            crossing = Crossing(torch.from_numpy(window)[None, None], torch.zeros(1, current.encoder.embedding_dim))
            return _Prepared(job, header, current, crossing, None, job.stream.assembler.save())
        served = self.shelf.find(header.revision)
        if served is None:
            raise ProtocolError(
                "unknown_revision", f"got features of revision {header.revision:08x}, expected {current.revision[:8]}"
            )
        if len(payload) > 1 and payload[0] != header.encoding:
            raise ProtocolError("bad_media", f"got encoding {payload[0]} inside a payload of {header.encoding}")
        if header.block == depth or encoding is Encoding.EXIT_FP16:  # nothing left to do, or nothing to do it with
            return _Prepared(job, header, served, None, _checked(unpack_embedding(payload), current), None)
        through = served.encoder.bottlenecks[header.block] if encoding is Encoding.BOTTLENECK_INT8 else None
        with torch.inference_mode():
            crossing = unpack_crossing(bytes(payload), through)
        expected = self.shelf.crossing_shape(header.block, resolution, self._window_frames)
        if tuple(crossing.h.shape[1:]) != expected or crossing.partial.shape[1] != current.encoder.embedding_dim:
            raise ProtocolError("bad_media", f"got activations {tuple(crossing.h.shape[1:])}, expected {expected}")
        return _Prepared(job, header, served, crossing, None, None)

    def _answer(
        self, item: _Prepared, embedding: np.ndarray, compute_ms: float, queue_ms: float
    ) -> tuple[Commit, Done]:
        job, header = item.job, item.header
        uncertainty, cluster = math.nan, -1
        label, confidence = "", 0.0
        if item.served.space == self.shelf.current.space:
            if self.mixture.ready:
                uncertainty = self.mixture.entropy(embedding, self.settings.entropy_temperature)
            posterior = self.mixture.observe(embedding)
            self._gmm = None
            if math.isfinite(uncertainty):
                cluster = int(posterior.argmax())
            label, confidence = self.labels.nearest(embedding, item.served.space)
        record = _record(
            job,
            header,
            revision=item.served.revision,
            server_ms=compute_ms,
            queue_ms=queue_ms,
            uncertainty=uncertainty,
            cluster=cluster,
            label=label,
            confidence=confidence,
            embedding=embedding.astype("<f2").tobytes(),
        )
        return Commit(record, item.overlap), Done(job, record, self._current_gmm() if job.want_gmm else None)

    def _refuse(self, job: Job, code: str, detail: str) -> tuple[Commit, Done]:
        """A window that cannot be completed is kept as rejected, so that it is acknowledged and never comes again."""
        try:
            header: MediaHeader | None = unpack_media(job.payload)[0]
        except ProtocolError:
            header = None
        record = _record(job, header, error=code, detail=detail[:500])
        overlap = job.stream.assembler.save() if header is not None and header.block == 0 else None
        return Commit(record, overlap), Done(job, record, self._current_gmm() if job.want_gmm else None)

    def hear(
        self, device: str, windows: Sequence[np.ndarray], at_ms: int, *, learn: bool = True
    ) -> tuple[np.ndarray, tuple[str, float]]:
        """Embeddings [n, d] of log-mel windows [f, t] in a row that came in another way than as windows, and their
        mean's nearest label; with `learn` what they teach goes the usual ways. In the worker's thread; at least one
        window."""
        current = self.shelf.current
        with torch.inference_mode():
            inputs = torch.from_numpy(np.stack(windows)).to(self._device)
            embeddings: np.ndarray = current.encoder(inputs).float().cpu().numpy()
        if learn:
            self._learn_from(device, windows, embeddings, at_ms)
        mean = embeddings.mean(0)
        return embeddings, self.labels.nearest(mean / np.linalg.norm(mean), current.space)

    def _learn_from(self, device: str, windows: Sequence[np.ndarray], embeddings: np.ndarray, at_ms: int) -> None:
        current = self.shelf.current
        samples = []
        for number, (window, z) in enumerate(zip(windows, embeddings, strict=True)):
            self.mixture.observe(z)
            crossing = Crossing(torch.from_numpy(window)[None, None], torch.zeros(1, current.encoder.embedding_dim))
            about = (device, self._heard + number, at_ms, current.revision, 0, int(Resolution.FULL))
            samples.append(Sample.of_crossing(*about, crossing, z, number == 0))
        self._heard += len(windows) + 1  # the next ones are no neighbours of these
        self._gmm = None
        self._learn(samples)

    def _sample(self, item: _Prepared, embedding: np.ndarray) -> Sample:
        header, job = item.header, item.job
        about = (job.stream.device, header.window, job.received_ms, item.served.revision, header.block)
        starts = bool(header.flags & MediaFlag.STARTS)
        if item.crossing is None:
            return Sample(*about, header.resolution, None, None, None, embedding, starts)
        sample = Sample.of_crossing(*about, header.resolution, item.crossing, embedding, starts)
        return sample._replace(wants_gradient=job.frame_type is FrameType.GRADIENT)

    def _current_gmm(self) -> Gmm | None:
        """The mixture's statistics for a device; made once per change, None before the cold start is over."""
        if self._gmm is None and self.mixture.ready:
            self.mixture_version += 1
            self._gmm = Gmm(
                version=self.mixture_version,
                revision=self.shelf.current.revision,
                components=self.mixture.components,
                dim=self.mixture.dim,
                data=self.mixture.to_bytes(),
            )
        return self._gmm


def _checked(z: np.ndarray, current: Served) -> np.ndarray:
    """An embedding from a device; raises ProtocolError unless it is finite, of the right width and of unit norm."""
    dim = current.encoder.embedding_dim
    if z.shape != (dim,):
        raise ProtocolError("bad_media", f"got an embedding of {z.size} values, expected {dim}")
    norm = float(np.linalg.norm(z))
    if not abs(norm - 1.0) <= NORM_TOLERANCE:
        raise ProtocolError("bad_media", f"got an embedding of norm {norm:.3g}, expected 1")
    return z


def _record(
    job: Job,
    header: MediaHeader | None,
    *,
    revision: str = "",
    server_ms: float = 0.0,
    queue_ms: float = 0.0,
    uncertainty: float = math.nan,
    cluster: int = -1,
    label: str = "",
    confidence: float = 0.0,
    embedding: bytes | None = None,
    error: str = "",
    detail: str = "",
) -> WindowRecord:
    head = header or MediaHeader(0, 0, 0, 0, 0, 0, math.nan, 0, 0.0, 0)
    return WindowRecord(
        job.stream.device,
        job.stream.epoch,
        job.sequence,
        head.window,
        job.capture_ms,
        job.received_ms,
        head.block,
        head.encoding,
        head.resolution,
        revision,
        job.frame_bytes,
        head.skipped,
        float(head.edge_ms),
        server_ms,
        queue_ms,
        uncertainty,
        cluster,
        label,
        confidence,
        embedding,
        error,
        detail,
    )
