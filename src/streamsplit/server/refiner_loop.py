"""What the refiner's own process (or thread) runs: takes samples, trains, publishes revisions, writes checkpoints."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from streamsplit.encoders.crossing import Crossing
from streamsplit.errors import CheckpointError, EncoderError, StreamSplitError
from streamsplit.learning.returned import ReturnedGradient, pack_gradient
from streamsplit.refinement.refiner import Published
from streamsplit.refinement.split_step import SplitGradient
from streamsplit.server.checkpoint import write_atomic, write_json
from streamsplit.server.jobs import Sample
from streamsplit.server.models import RevisionFiles, weights_file
from streamsplit.server.refiner_messages import (
    Centres,
    Gradients,
    Label,
    Learn,
    Merge,
    NewRevision,
    Progress,
    Saved,
    SaveNow,
    Started,
    Stop,
    Stopped,
    Trouble,
)
from streamsplit.server.refiner_start import (
    CHECKPOINT,
    CHECKPOINT_INFO,
    CHECKPOINTS,
    current_revision,
    refiner_settings,
    start_refiner,
)
from streamsplit.server.settings import ServerSettings
from streamsplit.weights.revision import revision_prefix
from streamsplit.wire.media import Encoding

__all__ = [
    "Centres", "Gradients", "Label", "Learn", "Merge", "NewRevision", "Progress", "SaveNow", "Saved", "Started", "Stop",
    "Stopped", "Trouble", "current_revision", "refiner_process", "refiner_settings", "run_refiner",
]  # fmt: skip

LOG = logging.getLogger(__name__)
PROTOTYPES_INTERVAL_S = 1.0  # least time between two reports of the prototypes


def refiner_process(connection: Connection, settings: ServerSettings) -> None:
    """Entry point of the process: gives way to the server's other work, and ends when the server's end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server decides when to stop
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(5)
    logging.basicConfig(level=settings.server.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    run_refiner(connection, settings)


def run_refiner(connection: Connection, settings: ServerSettings) -> None:
    """Serves one connection until `Stop` or until the other end is gone."""
    torch.set_num_threads(settings.training.threads)
    try:
        _Loop(connection, settings).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        LOG.info("refiner: the server is gone")
    except StreamSplitError as error:
        connection.send(Trouble("refiner_failed", str(error)))
        connection.send(Stopped())
    finally:
        connection.close()


class _Loop:
    def __init__(self, connection: Connection, settings: ServerSettings) -> None:
        self._connection = connection
        self._training = settings.training
        self._folder = settings.data_path / CHECKPOINTS
        self._files = RevisionFiles(settings.data_path / "revisions")
        self._refiner, self._resumed = start_refiner(settings, self._files)
        self._unpublished: Published | None = None
        now = time.monotonic()
        self._step_due = now
        self._publish_due = now + self._training.publish_interval_s
        self._save_due = now + self._training.checkpoint_interval_s
        self._dirty = not self._resumed
        self._prototypes_due = now
        self._prototypes_changed = True
        self._refused = 0
        self._unanswered = 0

    def run(self) -> None:
        refiner = self._refiner
        self._send(Started(refiner.revision, refiner.space, self._resumed, refiner.steps))
        if self._dirty:
            self._save()
        while True:
            if not self._receive():
                self._save()
                self._send(Stopped())
                return
            now = time.monotonic()
            if refiner.warm_start():
                LOG.info("refiner: projection fitted to the collected windows")
                self._dirty = True
                self._publish()
            if now >= self._step_due and refiner.ready():
                self._step()
            if self._unpublished is not None or (self._has_news() and now >= self._publish_due):
                self._publish()
            if self._prototypes_changed and refiner.prototypes.ready and now >= self._prototypes_due:
                self._send_prototypes()
            if self._dirty and now >= self._save_due:
                self._save()

    def _has_news(self) -> bool:
        refiner = self._refiner
        return refiner.steps_since_publish >= self._training.publish_steps or refiner.local.samples > 0

    def _receive(self) -> bool:
        """Takes everything that waits, or waits until something is due; False after Stop."""
        due = [self._save_due] if self._dirty else []
        if self._refiner.ready():
            due.append(self._step_due)
        if self._unpublished is not None:
            due.append(time.monotonic() + 1.0)
        wait_s = max(0.0, min(due) - time.monotonic()) if due else 1.0
        while self._connection.poll(min(wait_s, 1.0)):
            message = self._connection.recv()
            wait_s = 0.0
            if isinstance(message, Learn):
                self._learn(message.samples)
            elif isinstance(message, Merge):
                self._merge(message)
            elif isinstance(message, Label):
                self._label(message)
            elif isinstance(message, SaveNow):
                self._save()
            else:
                return False
        return True

    def _learn(self, samples: list[Sample]) -> None:
        for sample in samples:
            crossing = None
            if sample.h is not None and sample.partial is not None:
                crossing = Crossing(
                    torch.from_numpy(sample.h.astype(np.float32))[None], torch.from_numpy(sample.partial)[None]
                )
            features = None if sample.features is None else sample.features.astype(np.float32)
            try:
                self._refiner.add(
                    sample.device,
                    sample.window,
                    float(sample.at_ms),
                    features=features,
                    crossing=crossing,
                    block=sample.block,
                    embedding=sample.embedding,
                    revision=sample.revision,
                    starts=sample.starts,
                )
            except StreamSplitError as error:  # of a revision too old to learn from; it was answered all the same
                self._refused += 1
                if self._refused in (1, 10, 100) or self._refused % 1000 == 0:
                    LOG.info("refiner: %d windows not used, the last one because: %s", self._refused, error)
            else:
                self._dirty = self._prototypes_changed = True
                if crossing is not None and sample.wants_gradient and self._training.return_gradients:
                    self._ask(sample, crossing)

    def _ask(self, sample: Sample, crossing: Crossing) -> None:
        try:
            self._refiner.ask(
                sample.device, sample.window, crossing, sample.block, sample.revision, starts=sample.starts
            )
        except EncoderError as error:
            LOG.info("refiner: no gradient for window %d of %s: %s", sample.window, sample.device, error)

    def _label(self, message: Label) -> None:
        for device, window, at_ms in message.windows:
            if self._refiner.label(device, window, float(at_ms), message.label):
                self._dirty = True

    def _merge(self, message: Merge) -> None:
        try:
            self._refiner.merge_local(message.device, message.base, message.difference, message.samples)
        except StreamSplitError as error:
            self._send(Trouble("merge_refused", f"{message.device}: {error}"))
        else:
            self._dirty = True

    def _step(self) -> None:
        started = time.monotonic()
        report = self._refiner.step()
        finished = time.monotonic()
        self._step_due = finished + self._training.step_interval_s
        self._dirty = True
        self._send(
            Progress(
                report.step,
                report.loss,
                report.task,
                report.wasserstein,
                report.laplacian,
                report.effective_rank,
                report.samples,
                report.devices,
                report.skipped,
                1000 * (finished - started),
                len(self._refiner.reservoir),
            )
        )

        self._return(report.gradients)

    def _return(self, gradients: tuple[SplitGradient, ...]) -> None:
        """Packs what a step gave for windows that asked; says also when some will get nothing."""
        encoding = Encoding[self._training.gradient_encoding.upper()]
        packed = []
        for item, gradient in gradients:
            returned = ReturnedGradient(item.window, revision_prefix(item.revision), item.block, gradient)
            packed.append((item.device, pack_gradient(returned, encoding)))
        unanswered, self._unanswered = self._refiner.asked.unanswered - self._unanswered, self._refiner.asked.unanswered
        if packed or unanswered:
            self._send(Gradients(packed, unanswered))

    def _publish(self) -> None:
        """Makes and writes a revision; one whose files cannot be written is tried again and announced only then."""
        self._publish_due = time.monotonic() + self._training.publish_interval_s
        refiner = self._refiner
        published = self._unpublished or refiner.publish()
        if published.note:
            self._send(Trouble("not_published", published.note))
            return
        try:
            self._files.write(
                published.revision,
                weights_file(published.weights),
                published.full,
                published.delta,
                published.base or "",
            )
        except CheckpointError as error:
            if self._unpublished is None:
                self._send(Trouble("checkpoint_failed", str(error)))
            self._unpublished = published
            return
        self._unpublished = None
        self._save()
        self._send(
            NewRevision(
                published.revision,
                published.base or "",
                refiner.space,
                published.breaks_space,
                published.effective_rank if math.isfinite(published.effective_rank) else -1.0,
                published.merged_devices,
                refiner.steps,
                refiner.mixture.state() if published.breaks_space else None,
                _distances(published),
            )
        )

    def _send_prototypes(self) -> None:
        self._prototypes_due = time.monotonic() + PROTOTYPES_INTERVAL_S
        self._prototypes_changed = False
        self._send(Centres(self._refiner.space, self._refiner.prototypes.centres.astype(np.float32)))

    def _save(self) -> None:
        """Snapshot and its description; the old files stay when the disk refuses."""
        self._save_due = time.monotonic() + self._training.checkpoint_interval_s
        if self._unpublished is not None:
            return  # a snapshot must not name a revision whose files are missing
        started = time.monotonic()
        refiner = self._refiner
        try:
            data = refiner.snapshot()
            write_atomic(self._folder / CHECKPOINT, data)
            write_json(
                self._folder / CHECKPOINT_INFO,
                {
                    "revision": refiner.revision,
                    "space": refiner.space,
                    "steps": refiner.steps,
                    "windows": len(refiner.reservoir),
                    "warm_started": refiner.warm_started,
                    "saved_unix_s": time.time(),
                },
            )
        except CheckpointError as error:
            self._send(Trouble("checkpoint_failed", str(error)))
            return
        self._dirty = False
        self._send(Saved(len(data), 1000 * (time.monotonic() - started)))

    def _send(self, message: Any) -> None:
        self._connection.send(message)


def _distances(published: Published) -> dict[str, float]:
    found = published.alignment
    if found is None:
        return {}
    return dict(zip(found.devices, found.mean_distance.tolist(), strict=True))
