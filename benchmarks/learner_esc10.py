"""What a device learns: probes before and after learning from a stream, next to fixed statistics (ESC-10, synthetic).

`python -m benchmarks.learner_esc10` learns from folds 1-3 clip by clip and tests on fold 4; with `--validate` it learns
from and trains on folds 1-2 and tests on fold 3: settings are chosen there. Synthetic: learns from a soundscape, tests
on scenes made from other seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.record import record
from streamsplit.audio.files import read_audio
from streamsplit.audio.synth import LABELS, Soundscape, render_scene
from streamsplit.audio.windows import cut_windows
from streamsplit.encoders.base import SplitEncoder
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.encoders.fixed import five_statistics, mean_and_deviation
from streamsplit.encoders.pca import fit_pca
from streamsplit.evaluation.datasets import clip_vectors, data_folder, load_labelled_folder
from streamsplit.evaluation.probe import linear_probe
from streamsplit.evaluation.retrieval import precision_at_k, silhouette
from streamsplit.learning.learner import EdgeLearner, LearnerSettings
from streamsplit.learning.rank import effective_rank

STREAM_S, SCENES, SCENE_S = 1200, 180, 4.0
MEASURES = ("probe", "probe_with_std", "precision_at_10", "silhouette")


class Pieces(NamedTuple):
    """Labelled pieces of sound (clips or scenes), cut into windows."""

    windows: np.ndarray  # [n, f, t] float32
    owners: np.ndarray  # [n] piece of each window
    labels: list[str]  # of each piece
    sources: list[str]  # recording of each piece


class Task(NamedTuple):
    """A stream to learn from, and pieces to train and test the probe on."""

    stream: Callable[[int], Iterator[tuple[np.ndarray, bool]]]  # seed -> (window [f, t], follows the one before)
    train: Pieces
    test: Pieces


def esc10(root: Path, train_folds: Sequence[int], test_fold: int) -> Task:
    """Learns from the training folds, clips in an order drawn by the seed, pass after pass."""
    clips = load_labelled_folder(root)
    train = _pieces([(read_audio(c.path), c.label, c.source) for c in clips if c.fold in train_folds])
    test = _pieces([(read_audio(c.path), c.label, c.source) for c in clips if c.fold == test_fold])

    def stream(seed: int) -> Iterator[tuple[np.ndarray, bool]]:
        rng = np.random.default_rng(seed)
        while True:
            for clip in rng.permutation(len(train.labels)):
                for place, window in enumerate(train.windows[train.owners == clip]):
                    yield window, place > 0

    return Task(stream, train, test)


def synthetic() -> Task:
    """Learns from an endless soundscape; scenes of other seeds for the probe."""

    def scenes(seed: int) -> Pieces:
        rng = np.random.default_rng(seed)
        names = [LABELS[i % len(LABELS)] for i in range(SCENES)]
        return _pieces([(render_scene(name, SCENE_S, rng), name, str(i)) for i, name in enumerate(names)])

    def stream(seed: int) -> Iterator[tuple[np.ndarray, bool]]:
        windows = cut_windows(Soundscape(seed).read(16_000 * STREAM_S))
        while True:
            for place, window in enumerate(windows):
                yield window.features, place > 0

    return Task(stream, scenes(100_001), scenes(200_002))


def learn(task: Task, settings: LearnerSettings, steps: int, seed: int) -> dict[str, Any]:
    """One device: untrained, warm-started and learned embeddings of all pieces, and what learning cost."""
    encoder = make_encoder(EncoderSettings(seed=seed))
    learner = EdgeLearner(encoder, settings, seed)
    vectors = {"untrained encoder": _embed_task(learner.key, task)}
    seen, started, losses = 0, 0.0, []
    stream = task.stream(seed)
    while learner.steps < steps:
        window, continuous = next(stream)
        z = learner.embed(window)
        ready = learner.target.ready
        learner.remember(window, z=z, index=seen, continuous=continuous)
        seen += 1
        if learner.target.ready and not ready:
            vectors["after warm start"] = _embed_task(learner.key, task)
            started = time.process_time()
        loss = learner.learn()
        if loss is not None:
            losses.append(loss)
    seconds = time.process_time() - started
    vectors["after learning"] = _embed_task(learner.key, task)
    cost = {
        "learning_cpu_s": seconds, "windows_seen": seen, "steps": learner.steps, "sigma2": learner.sigma2,
        "first_loss": float(np.mean(losses[:40])), "last_loss": float(np.mean(losses[-40:])),
        "state_bytes": learner.state_bytes(),
    }  # fmt: skip
    return {"vectors": vectors, "cost": cost}


def baselines(task: Task, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Vectors of all windows that took no learning."""
    five = five_statistics(task.train.windows), five_statistics(task.test.windows)
    pca = fit_pca(five[0], 128, seed)
    return {
        "log-mel mean + std": (mean_and_deviation(task.train.windows), mean_and_deviation(task.test.windows)),
        "five fixed statistics": five,
        "five fixed statistics, PCA to 128": (pca(five[0]), pca(five[1])),
    }


def judge(task: Task, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """All measures of one row, on one vector a piece."""
    figures: dict[str, float] = {}
    for name, deviation in (("probe", False), ("probe_with_std", True)):
        x = clip_vectors(train, task.train.owners, deviation=deviation)
        y = clip_vectors(test, task.test.owners, deviation=deviation)
        groups = task.train.sources
        figures[name] = linear_probe(x, task.train.labels, y, task.test.labels, groups=groups).accuracy
    means = clip_vectors(test, task.test.owners)
    figures["precision_at_10"] = precision_at_k(means, task.test.labels, 10, groups=task.test.sources)
    figures["silhouette"] = silhouette(means, task.test.labels)
    figures["effective_rank"] = effective_rank(test)
    return figures


def table(rows: dict[str, list[dict[str, float]]], errors: float) -> dict[str, Any]:
    """Prints mean (and spread over seeds) of every row, and gives them."""
    print(f"{'':36}" + "".join(f"{name:>18}" for name in MEASURES) + f"{'eff. rank':>10}")
    result = {}
    for name, runs in rows.items():
        mean = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
        spread = {key: float(np.std([run[key] for run in runs])) for key in runs[0]}
        cells = "".join(f"{mean[key]:>11.3f} ±{spread[key]:.3f}" for key in MEASURES)
        print(f"{name:36}{cells}{mean['effective_rank']:>10.1f}", flush=True)
        result[name] = {"mean": mean, "std_over_seeds": spread, "runs": runs}
    print(f"one probe's standard error: about {errors:.3f}\n")
    return result


def main() -> None:
    """Prints the tables and writes benchmarks/results/learner_esc10.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found = data_folder()
    parser.add_argument(
        "--data", type=Path, default=found / "esc10" if found else None,
        help="folder of ESC-10 (default: esc10/ in STREAMSPLIT_DATA or the data folder; skipped where it is missing)",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=250, help="optimiser steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--validate", action="store_true", help="ESC-10 folds 1-2 against 3, nothing is written")
    parser.add_argument("--only", choices=("esc10", "synthetic"))
    parser.add_argument("--settings", type=json.loads, default={}, help='LearnerSettings as JSON, {"temperature": 0.2}')
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = LearnerSettings.from_mapping(arguments.settings)
    tasks: dict[str, Callable[[], Task]] = {}
    if arguments.only != "synthetic" and (arguments.data is None or not arguments.data.is_dir()):
        missing = "there is no data folder" if arguments.data is None else f"{arguments.data} is no folder"
        print(f"esc10: skipped, {missing}; set STREAMSPLIT_DATA or --data")
    elif arguments.only != "synthetic":
        folds = ((1, 2), 3) if arguments.validate else ((1, 2, 3), 4)
        tasks["esc10"] = lambda: esc10(arguments.data, *folds)
    if arguments.only != "esc10":
        tasks["synthetic"] = synthetic
    figures: dict[str, Any] = {}
    for name, make in tasks.items():
        task = make()
        rows: dict[str, list[dict[str, float]]] = {}
        costs = []
        for seed in range(arguments.seeds):
            outcome = learn(task, settings, arguments.steps, seed)
            for row, (train, test) in {**baselines(task, seed), **outcome["vectors"]}.items():
                rows.setdefault(row, []).append(judge(task, train, test))
            costs.append(outcome["cost"])
        print(f"{name}: {len(task.train.labels)} pieces to train, {len(task.test.labels)} to test, {costs[0]}")
        accuracy = rows["after learning"][0]["probe"]
        figures[name] = {
            "rows": table(rows, float(np.sqrt(accuracy * (1 - accuracy) / len(task.test.labels)))), "costs": costs
        }  # fmt: skip
    if not figures:
        raise SystemExit("nothing was measured")
    if not arguments.validate:
        used = {"steps": arguments.steps, **settings.as_dict()}
        print(record("learner_esc10", figures, used, range(arguments.seeds)))


def _pieces(sounds: Sequence[tuple[np.ndarray, str, str]]) -> Pieces:
    cut = [np.stack([window.features for window in cut_windows(audio)]) for audio, _, _ in sounds]
    owners = np.repeat(np.arange(len(cut)), [len(part) for part in cut])
    return Pieces(np.concatenate(cut), owners, [label for _, label, _ in sounds], [source for _, _, source in sounds])


@torch.no_grad()
def _embed_task(encoder: SplitEncoder, task: Task) -> tuple[np.ndarray, np.ndarray]:
    def embed(windows: np.ndarray) -> np.ndarray:
        parts = [encoder(torch.from_numpy(windows[i : i + 64])).numpy() for i in range(0, len(windows), 64)]
        return np.concatenate(parts)

    return embed(task.train.windows), embed(task.test.windows)


if __name__ == "__main__":
    main()
