"""The server as one object: store, compute worker, refiner and gateway, started and stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

from streamsplit.errors import CheckpointError, StreamSplitError
from streamsplit.learning.mixture import GaussianMixture
from streamsplit.server import mixture_file
from streamsplit.server.codecs import CodecShelf
from streamsplit.server.compute import BatchReport, ComputeWorker
from streamsplit.server.dialogue.hearing import make_dialogues
from streamsplit.server.encoder_storage import EncoderStorage
from streamsplit.server.first_revision import first_revision
from streamsplit.server.gateway import Gateway
from streamsplit.server.jobs import Done, Sample
from streamsplit.server.labels import LabelledPrototypes
from streamsplit.server.metrics import Metrics
from streamsplit.server.models import EncoderShelf, RevisionFiles, torch_device
from streamsplit.server.policy_shelf import PolicyShelf
from streamsplit.server.precedence import Precedence
from streamsplit.server.records import Commit, WindowRecord
from streamsplit.server.refiner_loop import (
    Centres,
    Gradients,
    NewRevision,
    Progress,
    Saved,
    Started,
    Trouble,
)
from streamsplit.server.refiner_worker import RefinerWorker
from streamsplit.server.settings import ServerSettings
from streamsplit.server.status import status_of
from streamsplit.server.store import Store
from streamsplit.server.streamed_models import StreamedModels
from streamsplit.server.weight_service import WeightService
from streamsplit.server.weight_stream import WeightStream
from streamsplit.weights.revision import Weights, revision_prefix
from streamsplit.wire.messages import Prototypes

LOG = logging.getLogger(__name__)
LAG_PROBE_S = 0.1
HOUSEKEEPING_S = 1.0


class StreamServer:
    """Everything behind the app. `start` and `stop` run in the serving event loop; blocking work goes to threads."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.started_unix_s = time.time()
        self.progress: Progress | None = None
        self.centres: Centres | None = None
        self.alignment: dict[str, float] = {}
        self.refiner_state = "off"
        self.last_checkpoint_unix_s: float | None = None
        self.loop_lag_ms = 0.0
        self._failures: dict[str, str] = {}  # what kind of checkpoint cannot be written now, and why
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self.precedence = Precedence()
        self.weight_stream = WeightStream(
            settings.weights, settings.auth, self.metrics.weight_stream, self.precedence.bulk_turn
        )
        self.encoder_chunks = EncoderStorage(settings.encoder)
        self.streamed = StreamedModels(settings.weights, self.encoder_chunks)
        self.metrics.weight_stream.watch(self.streamed.chunks)

    async def start(self) -> None:
        """Opens the database, loads the current revision and starts the workers; raises StreamSplitError."""
        self._loop = asyncio.get_running_loop()
        await self.streamed.open_chunks()
        await asyncio.to_thread(self._open)
        await self.streamed.encoder.open()
        self.compute.start()
        if self.settings.training.enabled:
            self.refiner_state = "starting"
            await asyncio.to_thread(self.refiner.start)
        self._tasks = [asyncio.create_task(work()) for work in (self._watch, self._announce, self._save_mixture)]
        self.store.record_event("started", f"revision {self.revision[:12]}")

    async def stop(self) -> dict[str, Any]:
        """Finishes what was accepted, writes a checkpoint, closes the database; the status it ended with."""
        self._stopping = True
        await self.gateway.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self.compute.stop)
        if self.settings.training.enabled:
            await asyncio.to_thread(self.refiner.stop)
        await asyncio.to_thread(self._write_mixture)
        last = await self.status()
        await self.streamed.close()
        await asyncio.to_thread(self.store.close)
        return last

    def _open(self) -> None:
        settings = self.settings
        folder = settings.data_path
        device = torch_device(settings.device)
        self.policies = PolicyShelf(settings.policy, folder / "policies", settings.encoder.name)
        self.policies.load()
        codecs = CodecShelf(settings.codecs)
        codecs.load()
        self.store = Store(folder / "server.sqlite", settings.store, clock_ms=lambda: int(1000 * time.time()))
        self.files = RevisionFiles(folder / "revisions")
        self.weights = WeightService(self.files, settings.synchronisation.chunk_bytes)
        self.shelf = EncoderShelf(settings.encoder, device, settings.compute.revisions, self._find_weights)
        self.labels = LabelledPrototypes(folder / "prototypes.json", settings.encoder.embedding_dim)
        self.labels.load()
        self._past: dict[int, tuple[str, int]] = {}
        for row in self.store.revisions():
            self._note(row["revision"], row["space"])
        revision, space, weights = first_revision(settings, self.files)
        self.revision, self.space = revision, space
        self._note(revision, space)
        self.store.record_revision(revision, "", breaks_space=False, space=space, steps=0, report={})
        self.shelf.adopt(revision, space, weights)
        self.encoder_chunks.adopt(weights, space)
        self.weights.adopt(revision, "", space)
        mixture = GaussianMixture(dim=settings.encoder.embedding_dim, seed=settings.training.seed)
        mixture_file.load(folder / "checkpoints" / mixture_file.NAME, mixture, space)
        self.compute = ComputeWorker(
            settings.compute, self.shelf, mixture, self.labels, window_frames=settings.audio.window_frames,
            device=device, deliver=self._deliver, learn=self._learn, report=self._on_batch,
        )  # fmt: skip
        self.refiner = RefinerWorker(settings, self._hear)
        self.dialogues = make_dialogues(settings, self.compute)
        self.gateway = Gateway(
            settings,
            compute=self.compute,
            store=self.store,
            weights=self.weights,
            policies=self.policies,
            codecs=codecs,
            dialogues=self.dialogues,
            metrics=self.metrics,
            precedence=self.precedence,
            merge=self._merge,
        )

    def _note(self, revision: str, space: int) -> None:
        self._past[revision_prefix(revision)] = (revision, space)
        self.weights.know(revision, space)

    def _find_weights(self, prefix: int) -> tuple[str, int, Weights] | None:
        """An older revision by the prefix in a media header; in the compute worker's thread."""
        found = self._past.get(prefix)
        if found is None or found[0] not in self.files:
            return None
        return (*found, self.files.weights(found[0]))

    # -- called in the workers' threads --------------------------------------------------------------------------

    def _deliver(self, commits: list[Commit], done: list[Done]) -> None:
        self.store.submit(commits, lambda: self._in_loop(self.gateway.committed, done))

    def _learn(self, samples: list[Sample]) -> None:
        if self.settings.training.enabled and self.refiner.alive:
            self.refiner.learn(samples)

    def _on_batch(self, report: BatchReport) -> None:
        self.metrics.batch.observe(report.windows)
        self.metrics.compute.observe(report.compute_ms / 1000)

    def _hear(self, message: Any) -> None:
        self._in_loop(self._on_refiner, message)

    def _in_loop(self, function: Any, *arguments: Any) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(function, *arguments)

    # -- the refiner's messages, in the event loop ---------------------------------------------------------------

    def _on_refiner(self, message: Any) -> None:
        if isinstance(message, Started):
            self.refiner_state = "running"
            LOG.info("refiner: %s at step %d", "resumed" if message.resumed else "started", message.steps)
        elif isinstance(message, Progress):
            self.progress = message
            self.metrics.refiner_steps.set(message.step)
            if not message.skipped:
                self.metrics.refiner_loss.set(message.loss)
                self.metrics.refiner_rank.set(message.effective_rank)
        elif isinstance(message, Gradients):
            self.gateway.gradients.send(message.returned, message.unanswered)
        elif isinstance(message, Saved):
            self.last_checkpoint_unix_s = time.time()
            self.metrics.checkpoints.labels("written").inc()
            self._checkpoint_written("refiner")
        elif isinstance(message, NewRevision) and not self._stopping:
            self._tasks.append(asyncio.create_task(self._adopt(message)))
        elif isinstance(message, Trouble) and message.kind == "checkpoint_failed":
            self._checkpoint_failed("refiner", message.detail)
        elif isinstance(message, Centres):
            self.centres = message
            self._offer_prototypes()
        elif isinstance(message, Trouble):
            if message.kind == "refiner_failed":
                self.refiner_state = "failed"
            level = logging.INFO if message.kind == "not_published" else logging.ERROR
            LOG.log(level, "%s: %s", message.kind, message.detail)
            if not self._stopping:
                self.store.record_event(message.kind, message.detail)

    async def _adopt(self, new: NewRevision) -> None:
        """Makes a published revision the one that completes windows and is announced."""
        try:
            weights = await asyncio.to_thread(self.files.weights, new.revision)
            self._note(new.revision, new.space)
            await asyncio.wrap_future(self.compute.call(lambda: self._switch(new, weights)))
            await asyncio.to_thread(self._adopt_chunks, new, weights)
            await asyncio.to_thread(self.weights.adopt, new.revision, new.base, new.space)
        except StreamSplitError as error:
            LOG.error("revision %s could not be taken up: %s", new.revision[:12], error)
            self.store.record_event("revision_failed", str(error))
            return
        self.revision, self.space = new.revision, new.space
        self._offer_prototypes()
        if new.alignment:
            self.alignment = new.alignment
            self.metrics.refiner_alignment.set(sum(new.alignment.values()) / len(new.alignment))
        self.gateway.steer()
        self.metrics.revisions.inc()
        self.store.record_revision(
            new.revision,
            new.base,
            breaks_space=new.breaks_space,
            space=new.space,
            steps=new.steps,
            report={"effective_rank": new.effective_rank, "merged_devices": new.merged_devices, "steps": new.steps},
        )
        kind = "warm_start" if new.breaks_space else "revision"
        self.store.record_event(kind, f"{new.revision[:12]} after {new.steps} steps, rank {new.effective_rank:.1f}")
        kept = [row["revision"] for row in await asyncio.to_thread(self.store.revisions)]
        await asyncio.to_thread(self.files.prune, [r for r in kept if r != new.revision] + [new.revision])

    def _adopt_chunks(self, new: NewRevision, weights: Weights) -> None:
        """Blocks on the disk."""
        delta = self.files.payload(new.revision, new.base) if new.base else None
        self.encoder_chunks.adopt(weights, new.space, new.base, delta or b"")

    def _offer_prototypes(self) -> None:
        """Has the gateway send the newest prototypes; none while they are of another space than the revision."""
        held = self.centres
        self.gateway.prototypes = None
        if held is not None and held.space == self.space:
            count, dim = held.centres.shape
            data = held.centres.astype("<f2").tobytes()
            self.gateway.prototypes = Prototypes(revision=self.revision, count=count, dim=dim, data=data)

    def _switch(self, new: NewRevision, weights: Weights) -> None:
        """In the compute worker's thread."""
        broken = self.shelf.current.space != new.space
        self.shelf.adopt(new.revision, new.space, weights)
        if broken:
            self.compute.mixture.clear()
            if new.mixture is not None:
                self.compute.mixture.load_state(new.mixture)
        self.compute.forget_gmm()

    def _merge(self, device: str, base: str, difference: Weights, samples: int) -> None:
        if self.settings.training.enabled and self.refiner.alive:
            self.refiner.merge(device, base, difference, samples)

    def teach(self, label: str, records: list[WindowRecord]) -> None:
        """Has the refiner learn a label from those of these windows that it has collected."""
        if self.settings.training.enabled and self.refiner.alive:
            self.refiner.label(label, [(r.device, r.window, r.received_ms) for r in records])

    def push_policy(self, version: int, data: bytes) -> int:
        """Takes a newer policy and sends it to the devices that want it; returns to how many. In the event loop.

        Raises CutError for one that devices would refuse, CheckpointError when it cannot be kept.
        """
        self.policies.put(version, data)
        told = self.gateway.offer_policy()
        self.store.record_event("policy", f"v{version}, sent to {told} devices")
        return told

    # -- housekeeping --------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Measures how late the loop is, and looks after sessions and gauges."""
        worst, last = 0.0, time.monotonic()
        while True:
            before = time.monotonic()
            await asyncio.sleep(LAG_PROBE_S)
            worst = max(worst, time.monotonic() - before - LAG_PROBE_S)
            if time.monotonic() - last < HOUSEKEEPING_S:
                continue
            self.loop_lag_ms, worst, last = 1000 * worst, 0.0, time.monotonic()
            self.gateway.housekeeping()
            metrics = self.metrics
            metrics.loop_lag.set(self.loop_lag_ms / 1000)
            metrics.waiting.set(self.compute.waiting)
            metrics.store_ok.set(0 if self.store.failure else 1)
            metrics.store_waiting.set(self.store.waiting)
            metrics.refiner_up.set(1 if self.refiner.alive else 0)
            metrics.refiner_dropped.set(self.refiner.dropped)

    async def _announce(self) -> None:
        """Tells devices of a new revision, a few at a time, so that not all of them fetch at once."""
        interval_s = max(0.1, 1 / self.settings.synchronisation.announce_per_s)
        count = max(1, round(self.settings.synchronisation.announce_per_s * interval_s))
        while True:
            await asyncio.sleep(interval_s)
            self.gateway.announce_to(count)

    async def _save_mixture(self) -> None:
        while True:
            await asyncio.sleep(self.settings.training.checkpoint_interval_s)
            state = await asyncio.wrap_future(self.compute.call(self.compute.mixture.state))
            await asyncio.to_thread(self._write_mixture, state, self.space)

    def _write_mixture(self, state: dict[str, Any] | None = None, space: int | None = None) -> None:
        path = self.settings.data_path / "checkpoints" / mixture_file.NAME
        try:
            mixture_file.save(
                path, self.compute.mixture.state() if state is None else state, self.space if space is None else space
            )
        except CheckpointError as error:
            self._checkpoint_failed("mixture", str(error))
        else:
            self._checkpoint_written("mixture")

    def _checkpoint_failed(self, which: str, why: str) -> None:
        """Told once until it changes: it is tried again every interval, and a full disk stays full for hours."""
        self.metrics.checkpoints.labels("failed").inc()
        if self._failures.get(which) == why:
            return
        self._failures[which] = why
        LOG.error("checkpoint_failed: %s", why)
        if not self._stopping:
            self.store.record_event("checkpoint_failed", why)

    def _checkpoint_written(self, which: str) -> None:
        if self._failures.pop(which, None) is None:
            return
        LOG.info("checkpoint of the %s written again", which)
        if not self._stopping:
            self.store.record_event("checkpoint_written", f"the {which}'s, after it had failed")

    # -- what it tells -------------------------------------------------------------------------------------------

    def not_ready(self) -> str:
        """Why no more windows should come now; '' when all is well."""
        if self._stopping:
            return "shutting down"
        if self.store.failure is not None:
            return f"store: {self.store.failure}"
        return ""

    async def status(self) -> dict[str, Any]:
        """The JSON of /api/status: devices, totals, latencies, revision, refiner, last events."""
        return status_of(self, *await asyncio.to_thread(lambda: (self.store.events(50), self.store.totals())))
