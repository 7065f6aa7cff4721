"""What was learned: fixed statistics, the untrained encoder and learned ones, probed on the same held-out sound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from streamsplit.audio.files import read_audio
from streamsplit.audio.synth import LABELS, render_scene
from streamsplit.audio.windows import cut_windows
from streamsplit.encoders.base import SplitEncoder
from streamsplit.encoders.fixed import five_statistics, mean_and_deviation
from streamsplit.evaluation.datasets import Clip, load_labelled_folder, split_clips
from streamsplit.evaluation.probe import linear_probe
from streamsplit.evaluation.retrieval import precision_at_k, silhouette
from streamsplit.learning.rank import effective_rank

SCENE_S = 2.0
_BATCH = 64


class Item(NamedTuple):
    """One labelled piece of sound: a clip, or a synthetic scene."""

    windows: np.ndarray  # [n, f, 100], what devices would see of it
    label: str
    source: str  # recording that it was cut from; never on both sides of a split


class ProbeSet(NamedTuple):
    """Labelled sound to train a probe on, and held-out sound to test it on."""

    train: list[Item]
    test: list[Item]
    held_out: str  # for people: what the test part is


def folder_probe(root: Path, seed: int = 0) -> tuple[ProbeSet, list[Clip], list[Clip]]:
    """Clips of `<root>/<label>/...` as a probe set (the last fold held out where names have folds), and both parts."""
    split = split_clips(load_labelled_folder(root), seed=seed)
    return ProbeSet(_clip_items(split.train), _clip_items(split.test), split.held_out), split.train, split.test


def synthetic_probe(scenes: int, seed: int = 0) -> ProbeSet:
    """Scenes of SCENE_S seconds, made like the soundscapes that devices hear but from other seeds; as many to test."""
    train, test = _scene_items(seed + 100_001, scenes), _scene_items(seed + 200_002, scenes)
    return ProbeSet(train, test, f"{scenes} other scenes of {SCENE_S:g} s")


def compare(
    data: ProbeSet, encoders: Sequence[tuple[str, str, SplitEncoder]], *, seed: int = 0
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Rows of the probe table (fixed statistics first), and every row's held-out vectors of windows [n, d] by name.

    `encoders` holds (name, kind, encoder) with kind 'before' or 'after'. `accuracy` is the probe's on single windows,
    `clip_accuracy` on the mean over an item's windows. The probe is trained on windows that do not overlap.
    """
    columns: list[tuple[str, str, Callable[[np.ndarray], np.ndarray]]] = [
        ("log-mel mean + std", "baseline", mean_and_deviation),
        ("five fixed statistics", "baseline", five_statistics),
    ]
    columns += [(name, kind, partial(embed, encoder.eval())) for name, kind, encoder in encoders]
    rows, vectors = [], {}
    for name, kind, vector in columns:
        train = [vector(item.windows) for item in data.train]
        test = [vector(item.windows) for item in data.test]
        apart = [part[::2] for part in train]  # every second window: none shares sound with another
        held_out = vectors[name] = np.concatenate(test)
        labels, sources = _per_window(data.test, test)
        probe = linear_probe(
            np.concatenate(apart),
            _per_window(data.train, apart)[0],
            held_out,
            labels,
            groups=_per_window(data.train, apart)[1],
            seed=seed,
        )
        clips = linear_probe(
            np.stack([part.mean(0) for part in train]),
            [item.label for item in data.train],
            np.stack([part.mean(0) for part in test]),
            [item.label for item in data.test],
            groups=[item.source for item in data.train],
            seed=seed,
        )
        unit = held_out / np.linalg.norm(held_out, axis=1, keepdims=True)
        rows.append(
            {
                "name": name,
                "kind": kind,
                "dim": held_out.shape[1],
                "accuracy": probe.accuracy,
                "clip_accuracy": clips.accuracy,
                "clip_standard_error": clips.standard_error,
                "precision_at_10": precision_at_k(held_out, labels, 10, groups=sources),
                "silhouette": silhouette(held_out, labels),
                "effective_rank": effective_rank(unit),
            }
        )
    return rows, vectors


def _per_window(items: Sequence[Item], parts: Sequence[np.ndarray]) -> tuple[list[str], list[str]]:
    """Label and source of every window."""
    labels = [item.label for item, part in zip(items, parts, strict=True) for _ in part]
    return labels, [item.source for item, part in zip(items, parts, strict=True) for _ in part]


def map_2d(vectors: np.ndarray, seed: int = 0) -> np.ndarray:
    """t-SNE of vectors [n, d]: [n, 2]."""
    from sklearn.manifold import TSNE

    perplexity = float(min(30, max(2, (len(vectors) - 1) // 3)))
    points: np.ndarray = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors)
    return points


def embed(encoder: SplitEncoder, windows: np.ndarray) -> np.ndarray:
    """Unit-norm embeddings [n, d] of windows [n, f, t]."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(windows), _BATCH):
            parts.append(encoder(torch.from_numpy(windows[start : start + _BATCH])).numpy())
    return np.concatenate(parts)


def _clip_items(clips: Sequence[Clip]) -> list[Item]:
    return [_item(read_audio(clip.path), clip.label, clip.source) for clip in clips]


def _scene_items(seed: int, scenes: int) -> list[Item]:
    """Independent scenes, the labels in turn."""
    rng = np.random.default_rng(seed)
    scenes_of = (LABELS[index % len(LABELS)] for index in range(scenes))
    return [_item(render_scene(label, SCENE_S, rng), label, str(index)) for index, label in enumerate(scenes_of)]


def _item(audio: np.ndarray, label: str, source: str) -> Item:
    return Item(np.stack([window.features for window in cut_windows(audio)]), label, source)
