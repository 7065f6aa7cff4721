"""A day of virtual stream with class shifts through one learner: does it collapse, grow or slow down?

    python -m benchmarks.long_stream --hours 24 --checkpoint day.checkpoint

Clips of ESC-10 (folds 1-3) and of spoken digits, or synthetic scenes where there is no data folder, cut into windows
and heard as one device of four hears them: for the first half of the time its class mix drifts from one to another
(gradual), for the second half it changes in jumps (abrupt), every few minutes. Every window counts as half a second,
the stride of a device (those of digits are 0.2 s apart). The learner hears every window and learns a
mini-batch after every `--learn-every`-th; those in between are embedded together, which changes nothing and takes a
third of the time (what a device takes for one is measured on a window in a hundred). Memory is what the process holds
for itself alone (USS) once freed pages are given back, less the benchmark's own copy of the start. The probe (fold
4, the held-out speaker) and the tables are made at the end, so that their memory is not the learner's.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil
import torch

from benchmarks.record import RESULTS, record
from streamsplit.edge.snapshot import load_snapshot, save_snapshot
from streamsplit.errors import CheckpointError
from streamsplit.evaluation.baselines.base import embedder, encoder_of
from streamsplit.evaluation.corpus import Corpus, digits_corpus, esc10_corpus, synthetic_corpus
from streamsplit.evaluation.data.stream import Stream, StreamSettings
from streamsplit.evaluation.datasets import data_folder
from streamsplit.evaluation.judge import judge
from streamsplit.learning import snapshot
from streamsplit.learning.heap import trim_heap
from streamsplit.learning.learner import EdgeLearner
from streamsplit.splitting.device import device_profile
from streamsplit.weights.revision import Weights, encoder_weights, load_weights

WINDOWS_PER_HOUR = 7_200
DEVICES = 4  # of which one is heard: its share of the clips has a mix of its own
GOAL_SHARE = 0.5  # of the rank at hour 1
TIMED_EVERY = 100  # windows, as often as a single one's embedding is timed
LOOK_EVERY = 16  # windows, as often as the running rank is renewed
STRIDE_MS = 3_600_000 / WINDOWS_PER_HOUR
MEGABYTE = 1e6
FIGURES = ("probe", "precision_at_10", "silhouette", "effective_rank")


class Heard(NamedTuple):
    """A window of the stream."""

    corpus: int
    row: int  # of the corpus's `learn.windows`
    continuous: bool


class Day:
    """What is heard, window by window; the same for the same corpora, seed and length."""

    def __init__(self, corpora: list[Corpus], windows: int, seed: int) -> None:
        self.corpora, self.windows, self.seed = corpora, windows, seed
        self._pieces = [(number, piece) for number, c in enumerate(corpora) for piece in range(len(c.learn.labels))]
        self._labels = [
            f"{corpora[number].name} {corpora[number].learn.labels[piece]}" for number, piece in self._pieces
        ]
        self._starts = [np.searchsorted(c.learn.owners, np.arange(len(c.learn.labels) + 1)) for c in corpora]

    def __iter__(self) -> Iterator[Heard]:
        half = self.windows // 2
        yield from itertools.islice(self._part("gradual", half), half)
        yield from itertools.islice(self._part("abrupt", 0), self.windows - half)

    def _part(self, shift: str, windows: int) -> Iterator[Heard]:
        """Windows of one kind of shift: one slow shift over `windows` of them, or endless shifts with 0."""
        total = sum(len(corpus.learn.windows) for corpus in self.corpora)
        passes = math.ceil(1.2 * windows * DEVICES / total)  # a device's windows differ with its mix
        seed = 2 * self.seed + (shift == "abrupt")
        stream = Stream(self._labels, DEVICES, StreamSettings(seed=seed, shift=shift, passes=passes))
        while True:
            for heard in stream.device(0):
                number, piece = self._pieces[heard.clip]
                first, after = self._starts[number][piece : piece + 2]
                for row in range(int(first), int(after)):
                    yield Heard(number, row, row > first)


class Run:
    """One learner through a day, an hour at a time; `save` and `load` let it go on in another process."""

    def __init__(self, corpora: list[Corpus], identity: dict[str, Any], seed: int) -> None:
        self.corpora, self.identity, self.seed = corpora, identity, seed
        self._process = psutil.Process()
        self.started: Weights = {}
        frozen = encoder_of(seed).eval()
        window = torch.from_numpy(corpora[0].learn.batch(slice(0, 1)))
        with torch.no_grad():
            for _ in range(50):  # the allocator's pools, as a device that only infers has them
                frozen(window)
        self.frozen_held = self._held()
        self.frozen_bytes = sum(array.nbytes for array in encoder_weights(frozen).values())
        self.learner = EdgeLearner(frozen, seed=seed)
        self.done = 0
        self.hours: list[dict[str, Any]] = []

    def hear(self, stream: Iterator[Heard], windows: int, learn_every: int) -> dict[str, Any]:
        """Figures of the next `windows` windows."""
        learner = self.learner
        embed = embedder(learner.key)
        learn_s, singles_ms = 0.0, [math.nan]
        ranks: list[tuple[float, float, float]] = []
        losses: list[float] = []
        held = 0
        before = learner.windows_learned, learner.collapse.alarms
        chosen = itertools.islice(stream, windows)
        while chunk := list(itertools.islice(chosen, self._next(learn_every))):
            features = np.concatenate([self.corpora[h.corpus].learn.batch(slice(h.row, h.row + 1)) for h in chunk])
            embeddings = embed(features)  # nothing is learned between them
            if self.done % TIMED_EVERY < len(chunk):
                at = time.process_time()
                learner.embed(features[0])
                singles_ms.append(1000 * (time.process_time() - at))
            for heard, window, z in zip(chunk, features, embeddings, strict=True):
                learner.remember(window, z=z, index=self.done, continuous=heard.continuous)
                if not self.started and learner.started:
                    self.started = encoder_weights(learner.key)
                if self.done % LOOK_EVERY == 0 and learner.target.ready:
                    ranks.append((learner.rank.value, learner.rank.about_origin, learner.heard.about_origin))
                self.done += 1
            if self.done % learn_every == 0:
                at = time.process_time()
                loss = learner.learn()
                learn_s += time.process_time() - at
                losses += [] if loss is None else [loss]
                if self.done % TIMED_EVERY < learn_every:
                    held = max(held, self._held())
        learned = learner.windows_learned - before[0]
        rank = np.array(ranks or [(math.nan,) * 3])
        figures = {
            "until_hour": self.done / WINDOWS_PER_HOUR, "rank_end": rank[-1, 0], "rank_mean": rank[:, 0].mean(),
            "rank_min": rank[:, 0].min(), "rank_about_origin_end": rank[-1, 1],
            "rank_about_origin_mean": rank[:, 1].mean(), "rank_about_origin_min": rank[:, 1].min(),
            "heard_rank_about_origin_mean": rank[:, 2].mean(), "heard_rank_about_origin_min": rank[:, 2].min(),
            "watch_level": learner.collapse.level, "collapsed": learner.collapse.collapsed,
            "alarms": learner.collapse.alarms - before[1], "loss_mean": np.mean(losses) if losses else math.nan,
            "steps": learner.steps, "learned_windows": learned,
            "learned_windows_per_cpu_s": learned / learn_s if learned else math.nan,
            "inference_ms": np.nanmedian(singles_ms),
            "held_above_frozen_mb": (held - self.frozen_held) / MEGABYTE,
            "state_above_frozen_mb": (learner.state_bytes() - self.frozen_bytes) / MEGABYTE,
        }  # fmt: skip
        self.hours.append({name: _finite(value) for name, value in figures.items()})
        return self.hours[-1]

    def _held(self) -> int:
        trim_heap()
        own = sum(array.nbytes for array in self.started.values())
        return int(self._process.memory_full_info().uss) - own

    def _next(self, learn_every: int) -> int:
        """Windows until the next mini-batch; one by one until the space has begun."""
        return learn_every - self.done % learn_every if self.learner.started else 1

    def save(self, path: Path) -> None:
        """Everything up to here, in one file."""
        learner = np.frombuffer(self.learner.snapshot(), np.uint8)
        arrays = {"learner": learner, **snapshot.nest("started", self.started)}
        save_snapshot(path, snapshot.seal(arrays, {"done": self.done, "hours": self.hours, "of": self.identity}))

    def load(self, path: Path) -> bool:
        """Goes on from a file, False where there is none; raises CheckpointError for one of another run."""
        data = load_snapshot(path)
        if data is None:
            return False
        arrays, held = snapshot.unseal(data)
        if held.get("of") != self.identity:
            raise CheckpointError(f"{path}: got a run of {held.get('of')}, expected {self.identity}; give another file")
        self.learner.restore(arrays["learner"].tobytes())
        self.started = snapshot.under("started", arrays)
        self.done, self.hours = held["done"], held["hours"]
        return True

    def probes(self) -> dict[str, Any]:
        """Figures of each corpus with the untrained encoder, after the projection's start, and now."""
        encoder = encoder_of(self.seed).eval()
        stages = {"untrained": encoder_weights(encoder), "after_start": self.started}
        stages["after_learning"] = encoder_weights(self.learner.key)
        rows: dict[str, Any] = {}
        for stage, weights in stages.items():
            if not weights:
                continue  # the stream was too short for a start
            load_weights(encoder, weights)
            for corpus in self.corpora:
                figures = judge(corpus, embedder(encoder), self.seed).figures
                rows.setdefault(corpus.name, {})[stage] = figures
                cells = ", ".join(f"{name} {figures[name]:.3f}" for name in FIGURES)
                print(f"{corpus.name} ({corpus.held_out}), {stage.replace('_', ' ')}: {cells}", flush=True)
        return rows


def verdict(hours: list[dict[str, Any]]) -> dict[str, Any]:
    """The day in a few figures; ranks after hour 1 against hour 1, None for a run of an hour or less."""
    first, later = hours[0], [hour for hour in hours if hour["until_hour"] > 1.0]
    figures: dict[str, Any] = {}
    for name in ("rank", "rank_about_origin"):
        figures[f"{name}_at_hour_1"] = first[f"{name}_end"] if first["until_hour"] >= 1.0 else None
        figures[f"{name}_mean_in_hour_1"] = first[f"{name}_mean"] if first["until_hour"] >= 1.0 else None
        least = min((hour[f"{name}_min"] for hour in later), default=None)
        least_mean = min((hour[f"{name}_mean"] for hour in later), default=None)
        figures[f"{name}_min_after_hour_1"], figures[f"{name}_least_hourly_mean_after_hour_1"] = least, least_mean
        figures[f"{name}_share_kept"] = least / first[f"{name}_end"] if least is not None else None
    figures["goal_share"] = GOAL_SHARE
    figures["no_collapse"] = figures["rank_share_kept"] >= GOAL_SHARE if later else None
    figures["alarms"] = sum(hour["alarms"] for hour in hours)
    figures["held_above_frozen_mb_first"] = first["held_above_frozen_mb"]
    figures["held_above_frozen_mb_max"] = max(hour["held_above_frozen_mb"] for hour in hours)
    figures["state_above_frozen_mb"] = hours[-1]["state_above_frozen_mb"]
    rates = [hour["learned_windows_per_cpu_s"] for hour in hours if hour["learned_windows_per_cpu_s"]]
    figures["learned_windows_per_cpu_s_median"] = float(np.median(rates)) if rates else None
    figures["inference_ms_median"] = inference_ms = float(np.median([hour["inference_ms"] for hour in hours]))
    if rates:  # one embedding and one anchor learned a window, on one core
        host_ms = inference_ms + 1000 / float(np.median(rates))
        figures["pi4_core_share"] = host_ms * device_profile("pi4").factor / STRIDE_MS
    return figures


def line(hour: dict[str, Any]) -> str:
    """One virtual hour for the eye."""
    cells = {name: math.nan if value is None else value for name, value in hour.items()}
    return (
        f"{cells['until_hour']:6.2f} h: rank {cells['rank_end']:5.1f} (mean {cells['rank_mean']:5.1f}, least "
        f"{cells['rank_min']:5.1f}), about origin {cells['rank_about_origin_mean']:5.1f} (least "
        f"{cells['rank_about_origin_min']:5.1f}; sound {cells['heard_rank_about_origin_mean']:5.1f}), "
        f"loss {cells['loss_mean']:.3f}, {cells['steps']} steps, {cells['learned_windows_per_cpu_s']:.0f} windows/s, "
        f"inference {cells['inference_ms']:.1f} ms, memory {cells['held_above_frozen_mb']:+.1f} MB, state "
        f"+{cells['state_above_frozen_mb']:.1f} MB{', COLLAPSE' if cells['collapsed'] else ''}"
    )


def load_corpora(folder: Path | None) -> list[Corpus]:
    """ESC-10 and digits of the data folder, synthetic scenes without one."""
    if folder is None:
        print("no data folder (STREAMSPLIT_DATA or --data): synthetic scenes")
        return [synthetic_corpus()]
    return [esc10_corpus(folder / "esc10"), digits_corpus(folder / "fsdd")]


def main() -> int:
    """Prints a line an hour, writes long_stream.json; returns 1 where the rank fell below half of hour 1's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0, help="of virtual stream")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learn-every", type=int, default=8, help="windows a mini-batch")
    parser.add_argument("--data", type=Path, default=data_folder(), help="folder with esc10/ and fsdd/")
    parser.add_argument("--checkpoint", type=Path, help="file to save to every hour and to go on from")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for long_stream.json")
    arguments = parser.parse_args()
    total = round(arguments.hours * WINDOWS_PER_HOUR)
    if total < 1_000 or arguments.learn_every < 1:
        parser.error(
            f"got {arguments.hours} hours and --learn-every {arguments.learn_every}, expected >= 0.14 and >= 1"
        )
    torch.set_num_threads(1)
    corpora = load_corpora(arguments.data)
    identity = {
        "windows": total, "seed": arguments.seed, "learn_every": arguments.learn_every,
        "corpora": {corpus.name: corpus.fingerprint for corpus in corpora},
    }  # fmt: skip
    run = Run(corpora, identity, arguments.seed)
    if arguments.checkpoint is not None and run.load(arguments.checkpoint):
        print(f"goes on after {run.done / WINDOWS_PER_HOUR:.2f} h from {arguments.checkpoint}")
        for hour in run.hours:
            print(line(hour))
    stream = itertools.islice(Day(corpora, total, arguments.seed), run.done, None)
    while run.done < total:
        print(line(run.hear(stream, min(WINDOWS_PER_HOUR, total - run.done), arguments.learn_every)), flush=True)
        if arguments.checkpoint is not None:
            run.save(arguments.checkpoint)
    figures = verdict(run.hours)
    print({name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()})
    settings = {**identity, "devices": DEVICES, "learner": run.learner.settings.as_dict()}
    figures |= {"hours": run.hours, "probes": run.probes()}
    print(record("long_stream", figures, settings, [arguments.seed], arguments.results))
    return 0 if figures["no_collapse"] in (True, None) else 1


def _finite(value: Any) -> Any:
    """Plain numbers, None for those that are not finite."""
    plain = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


if __name__ == "__main__":
    raise SystemExit(main())
