"""When the device learns: in a thread of its own while there is time, or every few windows without real time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from streamsplit.audio.windows import Window
from streamsplit.edge.counters import Counters
from streamsplit.edge.emulation import Emulator, RealDevice
from streamsplit.edge.gradients import GradientExchange
from streamsplit.edge.model import DeviceModel, EncoderModel, Learned
from streamsplit.edge.pipeline import Outcome
from streamsplit.edge.settings import EdgeSettings
from streamsplit.edge.snapshot import load_snapshot, save_snapshot
from streamsplit.errors import CheckpointError, EncoderError, StreamSplitError
from streamsplit.wire.types import FrameType

log = logging.getLogger(__name__)

_IDLE_S = 0.2
_YIELD_S = 0.01


class LearningLoop:
    """Feeds the learner and makes it learn: load-adaptive, never while the processor is busy with something else."""

    def __init__(
        self,
        settings: EdgeSettings,
        model: DeviceModel,
        device: Emulator | RealDevice,
        counters: Counters,
        note: Callable[..., None],
        problem: Callable[[str], None],
        *,
        paced: bool,
        behind: Callable[[], bool],
        gradients: GradientExchange | None = None,
    ) -> None:
        self._gradients = gradients
        self._paced = paced
        self._behind = behind
        self._length = settings.audio.window_frames
        self._fresh = True  # the first window follows nothing
        self._settings = settings.training
        self._model = model
        self._device = device
        self._counters = counters
        self._note, self._problem = note, problem
        self._path = settings.device.folder / "learner.snapshot"
        self._cpu = self._memory = 0.0
        self._total_bytes = settings.device.memory_bytes
        self._heard = 0
        self._saved_s = time.monotonic()

    def heard(self, window: Window, outcome: Outcome) -> None:
        """Remembers a window; without real time, learns every `learn_every_windows`. Worker thread."""
        self._cpu, self._memory = outcome.observation.cpu, outcome.observation.memory
        if self._gradients is not None and outcome.frame_type is FrameType.GRADIENT:
            self._gradients.asked(window, outcome)
        continuous = window.new_frames < self._length and not self._fresh
        self._fresh = False
        remember = partial(self._model.remember, window.features, outcome.z, outcome.window, continuous=continuous)
        self._device.run(remember)
        self._model.fit_memory((1.0 - self._memory) * self._total_bytes)
        self._heard += 1
        self._watch_rank()
        if not self._paced and self._heard % self._settings.learn_every_windows == 0:
            self._learn(0.0)
            self._save_if_due()

    def run(self, stop: threading.Event) -> None:
        """The learner's thread, until `stop` is set."""
        while not stop.is_set():
            if self._behind():  # audio waits: listening comes first
                stop.wait(_YIELD_S)
                continue
            learned_ms = self._learn(self._cpu) if self._cpu <= self._settings.highest_cpu else 0.0
            self._save_if_due()
            share = self._settings.load_share
            rest_s = learned_ms / 1000 * (1.0 / share - 1.0) if share > 0 else _IDLE_S
            stop.wait(max(rest_s, _YIELD_S) if learned_ms else _IDLE_S)

    def restore(self) -> None:
        """Takes up the last snapshot; one that does not fit is reported and left where it is."""
        if not isinstance(self._model, EncoderModel):
            return
        try:
            data = load_snapshot(self._path)
            if data is not None:
                self._model.restore(data)
                self._note("restored", revision=self._model.revision)
        except StreamSplitError as error:
            self._problem(f"the last snapshot is not used: {error}")

    def save(self) -> None:
        """Writes a snapshot; a full disk is reported and the last one kept."""
        if not isinstance(self._model, EncoderModel):
            return
        self._saved_s = time.monotonic()
        try:
            save_snapshot(self._path, self._model.snapshot())
        except CheckpointError as error:
            self._problem(str(error))

    def _save_if_due(self) -> None:
        if time.monotonic() - self._saved_s >= self._settings.snapshot_s:
            self.save()

    def _watch_rank(self) -> None:
        """Says once when the embeddings begin to collapse, and once when they have recovered."""
        if not isinstance(self._model, EncoderModel):
            return
        watch = self._model.learner.collapse
        with self._counters.lock:
            if watch.collapsed == self._counters.collapsed:
                return
            self._counters.collapsed = watch.collapsed
        share = watch.level / watch.reference if watch.collapsed else None
        self._note("collapse", collapsed=watch.collapsed, share=share)
        if share is not None:
            self._problem(
                f"embeddings collapse: effective rank, beside that of the sound, at {share:.0%} of its reference "
                f"(alarm below {watch.settings.share:.0%}); lower "
                "training.learning_rate, or go back to an earlier revision"
            )
        else:
            log.warning("embeddings no longer collapse")

    def _learn(self, cpu: float) -> float:
        """One mini-batch; returns the device time it took, 0 when there was nothing to learn from."""
        model = self._model
        if not (self._settings.enabled and isinstance(model, EncoderModel)):
            return 0.0
        try:
            learned, spent = self._device.run(partial(self._one_batch, model, cpu))
        except EncoderError as error:
            self._problem(f"learning went wrong and goes on from the last snapshot: {error}")
            self.restore()
            return 0.0
        if learned is None:
            return 0.0
        energy_mj = self._device.device.compute_mj(spent.device_ms)
        self._device.drain(energy_mj)
        with self._counters.lock:
            self._counters.loss = learned.loss
            self._counters.effective_rank = learned.effective_rank
            self._counters.learner_steps = learned.steps
            self._counters.energy_mj += energy_mj
        self._note(
            "learn", loss=learned.loss, steps=learned.steps, effective_rank=learned.effective_rank,
            sigma2=learned.sigma2, ms=spent.device_ms,
        )  # fmt: skip
        return spent.device_ms

    def _one_batch(self, model: EncoderModel, cpu: float) -> Learned | None:
        """What the server returned, then a mini-batch of the device's own."""
        if self._gradients is not None:
            self._gradients.apply(model)
        return model.learn(cpu, self._memory)
