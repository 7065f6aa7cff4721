"""Labelled sound that cuts are judged on: synthetic soundscapes, or a folder of recordings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from streamsplit.audio.files import read_audio
from streamsplit.audio.synth import Soundscape
from streamsplit.audio.windows import Window, WindowStream
from streamsplit.errors import AudioError
from streamsplit.evaluation.datasets import Clip, Split, load_labelled_folder, split_clips
from streamsplit.evaluation.probe import fit_probe
from streamsplit.splitting.paths import Pair, pairs_of
from streamsplit.splitting.quality import Material, Probe

SYNTHETIC_S = (300, 150)  # of soundscape to learn from, and held out
WINDOWS_A_CLIP = 4  # held-out windows of a recording, evenly spread
_SILENT = 1e-4  # RMS below which a window has nothing to be named for: the padding of short recordings
_RATE_HZ = 16_000
ProbeMaker = Callable[[np.ndarray], Probe]
"""Embeddings of the training windows to a probe."""


def synthetic_material(seed: int = 0, seconds: tuple[int, int] = SYNTHETIC_S) -> tuple[Material, ProbeMaker]:
    """Two soundscapes of other seeds, windows named by what covers most of them; and how to make a probe of it."""
    train, labels, segments = _soundscape(seed + 1_001, seconds[0])
    pairs, held_labels, held_segments = _soundscape(seed + 2_001, seconds[1])
    name = f"synthetic soundscapes, {seconds[0]} s to learn from and {seconds[1]} s held out (seed {seed})"
    features = np.stack([window.features for _, window in train])
    return Material(name, features, pairs, held_labels, held_segments), _probe_maker(labels, segments, seed)


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


def _soundscape(seed: int, seconds: int) -> tuple[list[Pair], list[str], list[str]]:
    """Labelled pairs, their labels, and the segment that each is from."""
    scape, stream = Soundscape(seed), WindowStream()
    windows = stream.push(scape.read(seconds * _RATE_HZ))
    pairs, labels, segments = [], [], []
    for pair in pairs_of(windows):
        end_s = pair[1].end_ms / 1000
        label = scape.label_at(end_s - 1.0, end_s)
        if label is not None:
            middle = end_s - 0.5
            pairs.append(pair)
            labels.append(label)
            segments.append(str(next(i for i, part in enumerate(scape.truth) if part.end_s > middle)))
    return pairs, labels, segments


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
