"""Simulated devices and servers that really compute: the live pipeline and the live completion, at the table's prices.

Payloads, gate, uncertainty and results are the real ones of real audio; only times come from the cut table.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from streamsplit.audio.windows import Floats, Window, WindowStream
from streamsplit.edge.emulation import Spent
from streamsplit.edge.model import DeviceModel, EncoderModel
from streamsplit.edge.payload import PieceChain
from streamsplit.edge.pipeline import Outcome, Surroundings, WindowPipeline
from streamsplit.errors import CutError
from streamsplit.learning.mixture import GaussianMixture
from streamsplit.server.compute import ComputeWorker
from streamsplit.server.jobs import DeviceStream, Done, Job
from streamsplit.server.labels import LabelledPrototypes
from streamsplit.server.models import EncoderShelf
from streamsplit.server.records import Commit
from streamsplit.server.results import answer
from streamsplit.server.settings import ServerSettings
from streamsplit.simulation.compute import Answered, Arrived
from streamsplit.splitting.decision import Policy
from streamsplit.splitting.device import DeviceProfile
from streamsplit.splitting.table import CutTable
from streamsplit.splitting.transmission import UncertaintyGate
from streamsplit.weights.revision import Weights
from streamsplit.wire.messages import Gmm, Result

T = TypeVar("T")


class _TableWorker:
    """Runs the pipeline's work and says that it took what the table says for the cut at which it ended."""

    def __init__(self, device: DeviceProfile) -> None:
        self.device = device
        self.edge_ms = 0.0  # on an idle device, of the work done last
        self.free_share = 1.0

    def run(self, work: Callable[[], T]) -> tuple[T, Spent]:
        result = work()
        return result, Spent(self.edge_ms / self.free_share, 0.0)

    def drain(self, energy_mj: float) -> None:
        """Whoever simulates adds up energy."""


class _TimedPipeline(WindowPipeline):
    """Tells its worker what the work just done costs on the device."""

    worker: _TableWorker

    def _compute(self, *arguments: Any) -> Any:
        computed = super()._compute(*arguments)
        self.worker.edge_ms = self.table.row(computed[1]).edge_ms
        return computed


class PipelineWork:
    """One device with the live `WindowPipeline` on pieces of 16 kHz audio; raises CutError when they have run out."""

    def __init__(
        self,
        model: DeviceModel,
        table: CutTable,
        policy: Policy,
        gate: UncertaintyGate,
        device: DeviceProfile,
        audio: Iterable[Floats],
        *,
        window_frames: int = 100,
        stride_frames: int = 50,
    ) -> None:
        self.encoder, self.revision = model.name, model.revision
        self._model = model
        self._worker = _TableWorker(device)
        self._pipeline = _TimedPipeline(
            model, table, policy, gate, self._worker, PieceChain(window_frames, stride_frames)
        )
        self._stream = WindowStream(length_frames=window_frames, stride_frames=stride_frames)
        self._length = window_frames
        self._audio = iter(audio)
        self._ready: deque[Window] = deque()
        self._window: Window | None = None
        self._fresh = True

    def process(self, index: int, around: Surroundings, free_share: float, *, starts: bool) -> Outcome:
        """Decides, computes and packs the window as the live device does."""
        window = self._next(index)
        if starts:
            window = window._replace(new_frames=self._length)
        self._window = window
        self._worker.free_share = free_share
        return self._pipeline.process(window, around)

    def accepted(self, index: int, outcome: Outcome) -> None:
        """The window is in the queue."""
        if self._window is not None:
            self._pipeline.accepted(self._window, outcome)

    def refused(self) -> None:
        """The queue was full, or the server could not use a window."""
        self._pipeline.refused()

    def heard(self, index: int, outcome: Outcome) -> None:
        """Remembers the window as the live device's learning loop does; nothing is trained."""
        if self._window is None:
            return
        continuous = self._window.new_frames < self._length and not self._fresh
        self._fresh = False
        self._model.remember(self._window.features, outcome.z, outcome.window, continuous=continuous)

    def result(self, result: Result) -> None:
        """The server's embedding, where the device has none."""
        if result.embedding and not self._pipeline.embedded_here(result.window):
            self._model.result(np.frombuffer(result.embedding, "<f2").astype(np.float32), result.window)

    def adopt(self, message: Gmm) -> None:
        """The server's mixture."""
        self._model.adopt_mixture(message)

    def _next(self, index: int) -> Window:
        while True:
            while self._ready:
                window = self._ready.popleft()
                if window.index == index:
                    return window
            samples = next(self._audio, None)
            if samples is None:
                raise CutError(f"the audio ends before window {index}: give more of it or simulate a shorter time")
            self._ready.extend(self._stream.push(samples))


class _InlineWorker(ComputeWorker):
    """The live compute worker without its thread: a batch is completed while the caller waits."""

    def complete(self, batch: Sequence[Job]) -> None:
        """Decodes, groups, completes and delivers."""
        self._complete(batch)


class EncoderServer:
    """Completes windows with the live worker's own decoding, grouping, encoder and mixture."""

    def __init__(
        self, settings: ServerSettings, revision: str, weights: Weights, *, want_embedding: bool = True
    ) -> None:
        """`revision` and `weights` are those that the devices hold."""
        self._signal, self._want_embedding = settings.audio, want_embedding
        shelf = EncoderShelf(settings.encoder, "cpu", settings.compute.revisions, lambda prefix: None)
        shelf.adopt(revision, 0, weights)
        dim = settings.encoder.embedding_dim
        self._worker = _InlineWorker(
            settings.compute, shelf, GaussianMixture(dim=dim), LabelledPrototypes(Path("labels.json"), dim),
            window_frames=settings.audio.window_frames, device="cpu", deliver=self._deliver,
            learn=lambda samples: None, report=lambda report: None,
        )  # fmt: skip
        self._streams: dict[int, DeviceStream] = {}
        self._delivered: list[list[Done]] = []

    @classmethod
    def like(cls, model: EncoderModel, settings: ServerSettings, *, want_embedding: bool = True) -> EncoderServer:
        """A server that holds what a device holds before it has learned anything."""
        return cls(settings, model.revision, model.base_weights(), want_embedding=want_embedding)

    def complete(self, batch: Sequence[Arrived]) -> list[list[Answered]]:
        """The answers, by group, in the order in which the worker computed them."""
        of_job = {}
        jobs = []
        for window in batch:
            stream = self._stream_of(window.owner)
            frame = window.frame
            of_job[stream.device, window.sequence] = window
            jobs.append(
                Job(
                    stream, frame.type, window.sequence, window.capture_ms, window.arrived_s, 0, frame.payload,
                    frame.wire_bytes, self._want_embedding, window.want_gmm,
                )
            )  # fmt: skip
        self._delivered = []
        self._worker.complete(jobs)
        return [
            [
                Answered(
                    of_job[done.job.stream.device, done.job.sequence],
                    answer(done.record, want_embedding=self._want_embedding), done.gmm,
                )
                for done in group
            ]
            for group in self._delivered
        ]  # fmt: skip

    def _deliver(self, commits: list[Commit], done: list[Done]) -> None:
        self._delivered.append(done)

    def _stream_of(self, owner: Any) -> DeviceStream:
        stream = self._streams.get(id(owner))
        if stream is None:
            name = f"device-{len(self._streams)}"
            stream = DeviceStream.start(name, 1, 0, frozenset(), None, self._signal)
            self._streams[id(owner)] = stream
        return stream
