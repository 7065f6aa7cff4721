"""What completing windows of many devices together saves: the compute worker with micro-batches against one at a time.

python -m benchmarks.micro_batch [--windows 192] [--cuts 0:logmel-int8 3:int8 6:int8 9:int8 12:int8]

The same windows, the same worker, one thread; only `batch_windows` differs. Process time, because the machine is
shared; the ratio is taken within one run, the median over rounds that alternate between the two.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import record
from streamsplit.codec.features import pack_features
from streamsplit.encoders.base import SplitEncoder
from streamsplit.encoders.crossing import pack_crossing
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.learning.mixture import GaussianMixture
from streamsplit.server.compute import ComputeWorker
from streamsplit.server.jobs import DeviceStream, Done, Job
from streamsplit.server.labels import LabelledPrototypes
from streamsplit.server.models import EncoderShelf
from streamsplit.server.records import Commit
from streamsplit.server.settings import ComputeSettings, SignalSettings
from streamsplit.splitting.cut import Cut
from streamsplit.weights.revision import encoder_weights, revision_of, revision_prefix
from streamsplit.wire.media import MediaHeader, pack_media
from streamsplit.wire.types import FrameType

SEED = 0
WANTED_RATIO = 2.0  # micro-batches over one at a time, at the same cut
CUTS = ("0:logmel-int8", "3:int8", "6:int8", "9:int8", "12:int8")


class Bench:
    """One worker with the given batch size."""

    def __init__(self, encoder: SplitEncoder, batch_windows: int, folder: Path) -> None:
        weights = encoder_weights(encoder)
        shelf = EncoderShelf(EncoderSettings(), "cpu", 3, lambda _: None)
        shelf.adopt(revision_of(weights), 0, weights)
        self._done = threading.Semaphore(0)
        self.errors: list[str] = []
        self.batches = 0
        self.worker = ComputeWorker(
            ComputeSettings(batch_windows=batch_windows, wait_ms=3.0, threads=1),
            shelf,
            GaussianMixture(),
            LabelledPrototypes(folder / "labels.json", 128),
            window_frames=100,
            device="cpu",
            deliver=self._deliver,
            learn=lambda _: None,
            report=lambda _: setattr(self, "batches", self.batches + 1),
        )
        self.worker.start()

    def _deliver(self, _: list[Commit], done: list[Done]) -> None:
        for item in done:
            if item.record.error:
                self.errors.append(item.record.detail)
            self._done.release()

    def run(self, payloads: Sequence[bytes]) -> float:
        """Process seconds per window for windows of as many devices that are all there at once."""
        started = time.process_time()
        for number, payload in enumerate(payloads):
            stream = DeviceStream.start(f"d{number}", 1, 0, frozenset(), None, SignalSettings())
            now_s = time.monotonic()
            self.worker.submit(Job(stream, FrameType.FEATURES, 1, 0, now_s, 0, payload, len(payload), False, False))
        for _ in payloads:
            self._done.acquire()
        return (time.process_time() - started) / len(payloads)


def make_payloads(encoder: SplitEncoder, cut: Cut, count: int) -> list[bytes]:
    """What devices send at this cut."""
    rng = np.random.default_rng(SEED)
    prefix = revision_prefix(revision_of(encoder_weights(encoder)))
    payloads = []
    for number in range(count):
        features = (rng.standard_normal((128, 100)) * 2 - 7).astype(np.float32)
        if cut.block == 0:
            body, new = pack_features(features, cut.encoding), 100
        else:
            with torch.inference_mode():
                crossing = encoder.forward_to(torch.from_numpy(features)[None], cut.block)
            body, new = pack_crossing(crossing, cut.encoding), 0
        payloads.append(pack_media(MediaHeader(number, prefix, cut.block, cut.encoding, 0, 0, 0.0, new, 0.0, 0), body))
    return payloads


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--cuts", nargs="+", default=list(CUTS))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    encoder = make_encoder()
    figures: dict[str, Any] = {}
    print(f"{'cut':>15} {'one by one':>12} {'together':>12} {'ratio':>7}   (windows per second of processor time)")
    print(f"{'wanted':>15} {'':12} {'':12} {WANTED_RATIO:7.2f}")
    with tempfile.TemporaryDirectory() as folder:
        single, batched = Bench(encoder, 1, Path(folder)), Bench(encoder, options.batch, Path(folder))
        for text in options.cuts:
            payloads = make_payloads(encoder, Cut.parse(text).check(encoder.num_blocks), options.windows)
            rounds = [(single.run(payloads), batched.run(payloads)) for _ in range(options.rounds + 1)][1:]
            one, many = (statistics.median(times) for times in zip(*rounds, strict=True))
            ratio = statistics.median(a / b for a, b in rounds)
            figures[text] = {"one_by_one_per_s": 1 / one, "together_per_s": 1 / many, "ratio": ratio}
            verdict = "meets it" if ratio >= WANTED_RATIO else "does not"
            print(f"{text:>15} {1 / one:12.0f} {1 / many:12.0f} {ratio:7.2f} {verdict}")
        errors = single.errors + batched.errors
        single.worker.stop()
        batched.worker.stop()
    if errors:
        raise SystemExit(f"{len(errors)} windows were refused, the first because: {errors[0]}")
    good = [text for text in options.cuts if figures[text]["ratio"] >= WANTED_RATIO]
    missed = [text for text in options.cuts if text not in good]
    print(f"at least {WANTED_RATIO:g} times: {', '.join(good) or 'no cut'}; less: {', '.join(missed) or 'no cut'}")
    figures |= {"wanted_ratio": WANTED_RATIO, "cuts_that_meet_it": good}
    print(record("micro_batch", figures, vars(options), [SEED]))


if __name__ == "__main__":
    main()
