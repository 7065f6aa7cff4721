"""Whether gradients that the server returns help a device, beside learning by itself on the same windows.

`python -m benchmarks.returned_gradients --data esc10` lets devices hear a corpus; each learns one mini-batch a window.
The server hears what crosses at the cut of the most uncertain quarter, takes a step every `--server-every` windows and
returns gradients, as the live system does, packed and unpacked by its codec. Rows differ in the weight of a returned
gradient (0: none) and in whether the devices adopt the server's revisions. All rows hear the same sound in the same
order and make the same number of local steps; a device's own encoder is judged, not the server's.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.record import record
from streamsplit.encoders.crossing import pack_crossing, unpack_crossing
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.evaluation.baselines.base import Budget, embedder, heard_by
from streamsplit.evaluation.corpus import Corpus, digits_corpus, esc10_corpus, piece_vectors, synthetic_corpus
from streamsplit.evaluation.datasets import data_folder
from streamsplit.evaluation.probe import linear_probe
from streamsplit.evaluation.retrieval import precision_at_k
from streamsplit.learning.learner import EdgeLearner, LearnerSettings
from streamsplit.learning.returned import (
    AskedWindow,
    PendingWindows,
    ReturnedGradient,
    pack_gradient,
    unpack_gradient,
)
from streamsplit.refinement.refiner import Refiner, RefinerSettings
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.transmission import GateSettings, Transmission, UncertaintyGate
from streamsplit.weights.revision import revision_prefix
from streamsplit.wire.media import Encoding

PENDING, PUBLISH_STEPS = 32, 50


class Device:
    """A learner with its gate and the windows that wait for a gradient."""

    def __init__(self, name: str, seed: int, share: float, width: float) -> None:
        self.name = name
        encoder = make_encoder(EncoderSettings(width=width))
        self.learner = EdgeLearner(encoder, LearnerSettings(warm_start=False), seed)
        self.gate = UncertaintyGate(
            GateSettings(percentile=100 * (1 - share), warm_up_windows=1, longest_silence_windows=0)
        )
        self.pending = PendingWindows(PENDING)
        self.starts = True
        self.applied = self.late = self.up_bytes = self.down_bytes = self.sent = 0


class Run:
    """One row: the devices, the server, and what went between them."""

    def __init__(self, corpus: Corpus, options: argparse.Namespace, seed: int, weight: float, revisions: bool) -> None:
        self.corpus, self.options, self.weight, self.revisions = corpus, options, weight, revisions
        self.refiner = Refiner(
            make_encoder(EncoderSettings(width=options.width)),
            RefinerSettings(warm_start_windows=options.start, min_devices=1, batch_windows=options.server_batch), seed,
        )  # fmt: skip
        self.devices = [
            Device(f"device{i}", 100 * seed + i, options.share, options.width) for i in range(options.devices)
        ]
        self.budget = Budget(heard=options.heard, devices=options.devices)
        self.seed, self.published_at = seed, 0

    def go(self) -> dict[str, float]:
        """Hears everything; figures at the end."""
        for number, (index, row, continuous) in enumerate(
            heard_by(self.corpus, self.budget, self.seed, self.options.devices)
        ):
            features = self.corpus.learn.batch(slice(row, row + 1))[0]
            self._hear(self.devices[index], number // self.options.devices, features, continuous)
            if self.refiner.warm_start():
                self._publish()
            elif self.refiner.warm_started and number % self.options.server_every == 0:
                self._serve()
        return self._figures()

    def _hear(self, device: Device, window: int, features: np.ndarray, continuous: bool) -> None:
        learner = device.learner
        z = learner.embed(features)
        learner.remember(features, z=z, index=window, continuous=continuous)
        device.starts = device.starts or not continuous
        if not self.refiner.warm_started:
            self.refiner.add(
                device.name, window, features=features, revision=self.refiner.revision, starts=device.starts
            )
            device.starts = False
        else:
            cold = not learner.memory.mixture.ready
            uncertainty = math.nan if cold else learner.uncertainty(z)
            if device.gate.decide(Observation(uncertainty=uncertainty)).action is Transmission.SEND:
                self._send(device, window, features)
        learner.learn()

    def _send(self, device: Device, window: int, features: np.ndarray) -> None:
        block, revision = self.options.block, self.refiner.revision
        payload = pack_crossing(device.learner.encode_to(features, block), Encoding.FP16)
        device.up_bytes += len(payload)
        device.sent += 1
        crossing = unpack_crossing(payload)
        z = self.refiner.known_encoder(revision).forward_from(crossing, block)[0].detach().numpy()
        self.refiner.add(
            device.name, window, crossing=crossing, block=block, embedding=z, revision=revision, starts=device.starts
        )
        if self.weight:
            self.refiner.ask(device.name, window, crossing, block, revision, starts=device.starts)
            asked = AskedWindow(features.astype(np.float16), block, revision_prefix(revision), device.learner.space)
            device.pending.ask(window, asked)
        device.starts = False

    def _serve(self) -> None:
        if not self.refiner.ready():
            return
        report = self.refiner.step()
        for item, gradient in report.gradients:
            payload = pack_gradient(ReturnedGradient(item.window, revision_prefix(item.revision), item.block, gradient))
            self._apply(next(device for device in self.devices if device.name == item.device), payload)
        if self.revisions and self.refiner.steps - self.published_at >= PUBLISH_STEPS:
            self._publish()

    def _apply(self, device: Device, payload: bytes) -> None:
        device.down_bytes += len(payload)
        returned = unpack_gradient(payload)
        asked = device.pending.take(returned)
        if asked is None or asked.space != device.learner.space:
            device.late += 1
            return
        windows = asked.features.astype(np.float32)[None]
        device.learner.take_gradient(windows, asked.block, returned.gradient, self.weight)
        device.applied += 1

    def _publish(self) -> None:
        published = self.refiner.publish()
        self.published_at = self.refiner.steps
        if not published.note:
            for device in self.devices:
                device.learner.adopt(published.weights, breaks_space=published.breaks_space)

    def _figures(self) -> dict[str, float]:
        found = [judge(self.corpus, device.learner) for device in self.devices]
        sums = {name: sum(getattr(device, name) for device in self.devices) for name in
                ("applied", "late", "sent", "up_bytes", "down_bytes")}  # fmt: skip
        means = {name: float(np.mean([values[name] for values in found])) for name in found[0]}
        steps = float(np.mean([device.learner.steps for device in self.devices]))
        return {**means, **sums, "device_steps": steps, "server_steps": self.refiner.steps,
                "unanswered": self.refiner.asked.unanswered}  # fmt: skip


def judge(corpus: Corpus, learner: EdgeLearner) -> dict[str, float]:
    """Probe top-1, Precision@10 and effective rank of a device's momentum encoder on the held-out part."""
    embed = embedder(learner.key)
    train, test = (piece_vectors(embed(part.batch(slice(None))), part) for part in (corpus.train, corpus.test))
    probe = linear_probe(train, corpus.train.labels, test, corpus.test.labels, groups=corpus.train.sources)
    return {
        "probe": probe.accuracy, "precision_at_10": precision_at_k(test, corpus.test.labels, 10),
        "effective_rank": learner.effective_rank,
    }  # fmt: skip


def corpus_of(name: str) -> Corpus:
    """The corpus by its name in the command."""
    root = data_folder()
    if name == "synthetic":
        return synthetic_corpus()
    if root is None:
        raise SystemExit("no data folder; set STREAMSPLIT_DATA")
    return esc10_corpus(root / "esc10") if name == "esc10" else digits_corpus(root / "fsdd")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("esc10", "digits", "synthetic"), default="esc10")
    parser.add_argument("--heard", type=int, default=1200, help="windows of all devices together")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--block", type=int, default=5, help="of the cut")
    parser.add_argument("--width", type=float, default=0.75, help="of the encoder")
    parser.add_argument("--start", type=int, default=192, help="windows that the projection's start is fitted to")
    parser.add_argument("--share", type=float, default=0.25, help="of windows that cross after the start")
    parser.add_argument("--server-every", type=int, default=4, help="windows heard from one server step to the next")
    parser.add_argument("--server-batch", type=int, default=32)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 1.0, 8.0])
    parser.add_argument("--revisions", choices=("no", "yes", "both"), default="both")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    corpus, rows = corpus_of(options.data), []
    for seed in range(options.seeds):
        for revisions in {"no": (False,), "yes": (True,), "both": (False, True)}[options.revisions]:
            for weight in options.weights:
                started = time.process_time()
                row: dict[str, Any] = {"seed": seed, "weight": weight, "revisions": revisions}
                row |= Run(corpus, options, seed, weight, revisions).go()
                row["cpu_s"] = time.process_time() - started
                print({name: round(v, 4) if isinstance(v, float) else v for name, v in row.items()}, flush=True)
                rows.append(row)
    path = record(f"returned_gradients_{options.data}", {"rows": rows}, vars(options), range(options.seeds))
    print(path)


if __name__ == "__main__":
    main()
