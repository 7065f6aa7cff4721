"""Labelled sound that cuts are judged on: synthetic soundscapes, or a folder of recordings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from streamsplit.audio.files import read_audio
from streamsplit.audio.synth import LABELS, render_scene
from streamsplit.audio.windows import Window, WindowStream
from streamsplit.errors import AudioError
from streamsplit.evaluation.datasets import Clip, Split, load_labelled_folder, split_clips
from streamsplit.evaluation.probe import fit_probe
from streamsplit.splitting.paths import Pair, pairs_of
from streamsplit.splitting.quality import Material, Probe

SYNTHETIC_SCENES = (24, 16)  # of each kind of sound, to learn from and held out
_SCENE_S = 2.6  # four windows, three of which follow another one
WINDOWS_A_CLIP = 4  # held-out windows of a recording, evenly spread
_SILENT = 1e-4  # RMS below which a window has nothing to be named for: the padding of short recordings
_RATE_HZ = 16_000
ProbeMaker = Callable[[np.ndarray], Probe]
"""Embeddings of the training windows to a probe."""


def synthetic_material(seed: int = 0, scenes: tuple[int, int] = SYNTHETIC_SCENES) -> tuple[Material, ProbeMaker]:
    """Scenes of every kind of sound, each in its own room at its own level; and how to make a probe of them."""
    train, labels, sources = [], [], []
    for label, number, window in _scenes(seed, 0, scenes[0]):
        train.append(window[1].features)
        labels.append(label)
        sources.append(f"{label} {number}")
    pairs, held_labels, held_sources = [], [], []
    for label, number, window in _scenes(seed, 1, scenes[1]):
        pairs.append(window)
        held_labels.append(label)
        held_sources.append(f"{label} {number}")
    name = f"synthetic scenes of {len(LABELS)} kinds, {scenes[0]} of each to learn from and {scenes[1]} held out"
    return Material(name, np.stack(train), pairs, held_labels, held_sources), _probe_maker(labels, sources, seed)


def folder_material(root: Path, seed: int = 0, *, limit: int | None = None) -> tuple[Material, ProbeMaker]:
    """Recordings `<root>/<label>/...`; of four or more folds the last two are held out, else what `split_clips` does.

    `limit` recordings of each label at most. Raises AudioError where nothing can be held out.
    """
    split = _split(load_labelled_folder(root, limit=limit), seed)
    train, labels, sources = [], [], []
    for clip in split.train:
        for _, window in _pairs(clip):
            train.append(window.features)
            labels.append(clip.label)
            sources.append(clip.source or clip.path.stem)
    pairs, held_labels, held_sources = [], [], []
    for clip in split.test:
        own = _pairs(clip)
        chosen = np.unique(np.linspace(0, len(own) - 1, min(len(own), WINDOWS_A_CLIP)).round().astype(int))
        for i in chosen if own else ():
            pairs.append(own[i])
            held_labels.append(clip.label)
            held_sources.append(clip.source or clip.path.stem)
    if not train or not pairs:
        raise AudioError(f"{root}: got no sound on one side of the split, expected recordings of 1.5 s or more")
    clips = len(split.train) + len(split.test)
    name = f"{root.name}: {len(split.test)} of {clips} recordings held out ({split.held_out})"
    return Material(name, np.stack(train), pairs, held_labels, held_sources), _probe_maker(labels, sources, seed)


def _probe_maker(labels: Sequence[str], groups: Sequence[str], seed: int) -> ProbeMaker:
    return lambda embeddings: fit_probe(embeddings, labels, groups=groups, seed=seed)


def _scenes(seed: int, side: int, count: int) -> Iterator[tuple[str, int, Pair]]:
    """`count` scenes of each kind, as kind, number and each of its windows with the one before."""
    for kind, label in enumerate(LABELS):
        for number in range(count):
            scene = render_scene(label, _SCENE_S, np.random.default_rng([seed, side, kind, number]))
            for pair in pairs_of(WindowStream().push(scene)):
                yield label, number, pair


def _split(clips: list[Clip], seed: int) -> Split:
    folds = sorted({clip.fold for clip in clips if clip.fold is not None})
    if len(folds) < 4 or any(clip.fold is None for clip in clips):
        return split_clips(clips, seed=seed)
    held = folds[-2:]
    return Split(
        [clip for clip in clips if clip.fold not in held],
        [clip for clip in clips if clip.fold in held],
        f"folds {held[0]} and {held[1]} of {', '.join(map(str, folds))}",
    )


def _pairs(clip: Clip) -> list[Pair]:
    """A recording's windows with the ones before them, but for silent ones."""
    windows: list[Window] = WindowStream().push(read_audio(clip.path, _RATE_HZ))
    return [pair for pair in pairs_of(windows) if np.sqrt(np.square(pair[1].audio).mean()) > _SILENT]
