"""StreamSplit: devices learn from their streams, uncertain windows go up, the server refines and sends weights back."""

from __future__ import annotations

import math

import numpy as np

from streamsplit.codec.features import pack_features, unpack_features
from streamsplit.encoders.base import SplitEncoder
from streamsplit.evaluation.baselines.arrivals import Arrivals, Sent
from streamsplit.evaluation.baselines.base import (
    START_WINDOWS,
    Budget,
    Effort,
    Outcome,
    Progress,
    Ranks,
    Stopwatch,
    embedder,
    first_encoder,
    first_refiner,
    heard_by,
)  # fmt: skip
from streamsplit.evaluation.baselines.edge_only import hear
from streamsplit.evaluation.baselines.traffic import InputTraffic, transfer_bytes, weights_bytes
from streamsplit.evaluation.corpus import Corpus
from streamsplit.learning.learner import EdgeLearner
from streamsplit.learning.settings import LearnerSettings
from streamsplit.refinement.hybrid import HybridSettings
from streamsplit.refinement.settings import RefinerSettings
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.transmission import GateSettings, Transmission, UncertaintyGate
from streamsplit.weights.delta import make_delta
from streamsplit.weights.revision import Weights
from streamsplit.wire.media import Encoding

SHARE_SENT = 0.245  # of the windows heard, the start's among them
START_SHARE = 0.75  # of what may go up, at most, for the start
START_RUN = 2  # windows in a row that go up for the start, and while a memory is cold
LEAST_SHARE = 1 / 3  # of what may go up, at most, before the server learns from a published start
PUBLISH_STEPS = 50  # of the server, between two revisions
ENCODING = Encoding.LOGMEL_INT8
REFINER = RefinerSettings(
    min_devices=1, reservoir_bytes=1 << 30, warm_start_windows=START_WINDOWS, loss=HybridSettings()
)


class StreamSplit:
    """The whole: mixture memories and learning on the devices, features of uncertain windows up, revisions down.

    Until the server's first revision every second pair of neighbouring windows goes up: its projection starts from
    them, and a few windows in a row hold too few sounds for that. After that each device's gate lets through what its
    memory is least sure of, so that `SHARE_SENT` of everything heard has crossed in the end.
    Where all begin with published weights, there is no such start, and the gate has its share from the first window on.
    A memory that is still cold finds all windows equally unknown: until it is ready, the same share goes up in evenly
    spread pairs of neighbours. The server learns once it has START_WINDOWS, or LEAST_SHARE of what may go up if less.
    With `merge`, devices ship what they learned, as int8 differences, before every revision. `share_sent` 1 sends
    everything after the start; then windows may reach the server late, in another order, or never (`late_windows`,
    `lost_share`).
    """

    def __init__(
        self, name: str = "streamsplit", about: str = "edge learners + refiner, uncertain windows up", *,
        refiner: RefinerSettings = REFINER, learner: LearnerSettings | None = None, merge: bool = False,
        share_sent: float = SHARE_SENT, late_windows: int = 0, lost_share: float = 0.0,
    ) -> None:  # fmt: skip
        self.name, self.about, self.merge = name, about, merge
        self.share_sent, self.late_windows, self.lost_share = share_sent, late_windows, lost_share
        self.refiner = refiner
        self.learner = (learner or LearnerSettings()).replace(warm_start=False)

    def run(self, corpus: Corpus, budget: Budget, seed: int, progress: Progress) -> Outcome:
        """Hears the stream once; server steps are spread evenly over what follows the start."""
        run = _Run(self, corpus, budget, seed)
        for number, (device, row, continuous) in enumerate(heard_by(corpus, budget, seed, budget.devices)):
            run.hear(number, device, row, continuous)
            progress((number + 1) / budget.heard, f"{run.steps} device, {run.refiner.steps} server updates")
        return run.finish()


class _Device:
    """A device: its learner, its gate, and what the server has of its stream."""

    def __init__(
        self, encoder: SplitEncoder, seed: int, number: int, settings: LearnerSettings, gate: GateSettings
    ) -> None:
        self.name = f"device{number}"
        self.learner = EdgeLearner(encoder, settings, seed + number)
        self.gate = UncertaintyGate(gate)
        self.starts = True  # a gap or a new clip since the window sent last
        self.sent_last = False
        self.shipped: Weights | None = None  # own weights as the server has them for the next revision


class _Run:
    def __init__(self, method: StreamSplit, corpus: Corpus, budget: Budget, seed: int) -> None:
        self.corpus, self.budget, self.method = corpus, budget, method
        self.watch, self.effort, self.ranks = Stopwatch(), Effort(), Ranks()
        self.allowed = math.floor(method.share_sent * budget.heard)
        few = math.floor(min(SHARE_SENT, method.share_sent) * budget.heard)  # the start does not depend on what follows
        self.start = min(method.refiner.warm_start_windows, math.floor(START_SHARE * few))
        self.start_heard = 0 if budget.start else 2 * self.start
        self.learns_from = None if budget.start else self.start_heard  # windows heard when the server's steps began
        self.least = min(self.start, math.floor(LEAST_SHARE * few))  # windows before that, with a published start
        settings = method.refiner.replace(batch_windows=budget.server_batch, warm_start_windows=self.start)
        self.refiner = first_refiner(budget, settings, seed)
        self.revision = self.refiner.revision
        left = self.allowed if budget.start else self.allowed - self.start
        self.share = min(1.0, max(0.0, left / max(1, budget.heard - self.start_heard)))
        gate = GateSettings(
            enabled=self.share < 1.0, percentile=100.0 * (1.0 - self.share), warm_up_windows=1,
            longest_silence_windows=0,
        )  # fmt: skip
        self.devices = [
            _Device(first_encoder(budget, seed), seed, number, method.learner, gate) for number in range(budget.devices)
        ]
        self.arrivals = Arrivals(method.late_windows, method.lost_share, seed)
        self.traffic = InputTraffic(corpus.learn, ENCODING)
        self.published_at = 0
        self.revisions = 0

    @property
    def steps(self) -> int:
        """Optimiser steps of all devices."""
        return sum(device.learner.steps for device in self.devices)

    def hear(self, number: int, index: int, row: int, continuous: bool) -> None:
        """One window on one device, and what the server does meanwhile."""
        device, window = self.devices[index], number // self.budget.devices
        device.starts = device.starts or not continuous
        follows = device.sent_last and continuous
        features, z = hear(device.learner, self.corpus, row, window, continuous, self.effort)
        device.sent_last = self._sends(device, window, z)
        if device.sent_last:
            heard = unpack_features(pack_features(features, ENCODING))
            sent = Sent(device.name, window, heard, z, self.revision, device.starts)
            self.arrivals.send(number, sent, at_once=not self.refiner.warm_started)
            device.starts = False
            self.effort.sent += 1
            self.effort.uplink_bytes += self.traffic.bytes_of(row, follows=follows)
        for sent in self.arrivals.due(number):
            self.refiner.add(
                sent.device, sent.window, features=sent.features, embedding=sent.embedding, revision=sent.revision,
                starts=sent.starts,
            )  # fmt: skip
        if self._learned() < self.budget.windows and self.steps < self.budget.updates:
            device.learner.learn()
        self.ranks.see(device.learner.effective_rank)
        self._serve(number)

    def _sends(self, device: _Device, window: int, z: np.ndarray) -> bool:
        if not self.refiner.warm_started:
            return window // START_RUN % 2 == 0
        cold = not device.learner.memory.mixture.ready  # all windows are equally unknown then: the gate learns nothing
        if cold and self.budget.start:
            run = window // START_RUN
            sends = math.floor((run + 1) * self.share) > math.floor(run * self.share)
        else:
            uncertainty = math.nan if cold else device.learner.uncertainty(z)
            sends = device.gate.decide(Observation(uncertainty=uncertainty)).action is Transmission.SEND
        return sends and self.effort.sent < self.allowed

    def _serve(self, number: int) -> None:
        refiner = self.refiner
        if refiner.warm_start():
            self._publish()
        if not refiner.warm_started:
            return
        if self.learns_from is None:
            if len(refiner.reservoir) < self.least:
                return
            self.learns_from = number
        since = number + 1 - self.learns_from
        due = self.budget.updates * since / max(1, self.budget.heard - self.learns_from)
        while refiner.steps < min(due, self.budget.updates) and refiner.ready():
            report = refiner.step()
            if report.skipped:
                break
            self.effort.server_windows += report.samples
            if refiner.steps - self.published_at >= PUBLISH_STEPS:
                self._publish()

    def _publish(self) -> None:
        """A revision goes to all devices; before it, where devices merge, what they learned goes up."""
        if self.method.merge and (self.revisions or self.budget.start):
            for device in self.devices:
                self._send_difference(device)
        published = self.refiner.publish()
        self.published_at = self.refiner.steps
        if published.note:
            return
        self.revisions += 1
        self.revision = published.revision
        down = weights_bytes(published.weights) if published.delta is None else transfer_bytes(len(published.delta))
        for device in self.devices:
            shipped = None if published.breaks_space else device.shipped
            device.learner.adopt(published.weights, base=shipped, breaks_space=published.breaks_space)
            device.shipped = None
            if published.breaks_space:
                device.gate.restart()
            self.effort.downlink_bytes += down

    def _send_difference(self, device: _Device) -> None:
        difference, base = device.learner.local_difference(), device.learner.base
        if difference is None:
            return
        grown: Weights = {name: base[name] + array for name, array in difference.items()}
        packed, received = make_delta(base, grown)
        self.effort.uplink_bytes += transfer_bytes(len(packed))
        change = {name: received[name] - base[name] for name in base}
        device.shipped = received
        self.refiner.merge_local(device.name, self.revision, change, max(1, device.learner.windows_learned))

    def _learned(self) -> int:
        return sum(device.learner.windows_learned for device in self.devices)

    def finish(self) -> Outcome:
        """The last revision is what devices and server end with."""
        self._publish()
        effort = self.effort
        effort.windows, effort.updates = self._learned(), self.steps
        effort.server_updates, effort.cpu_s = self.refiner.steps, self.watch.read()
        notes = [f"{self.revisions} revisions, {self.budget.devices} devices, {ENCODING.label}"]
        notes += [self.arrivals.about] if self.arrivals.late_windows else []
        final = self.refiner.known_encoder(self.refiner.revision)
        return Outcome(embedder(final), effort, self.ranks.peak, self.ranks.last, tuple(notes), encoder=final)
