"""Pretraining on folders of sound: what is read from them, and what the encoder is worth on labelled corpora."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from streamsplit.audio.files import AUDIO_SUFFIXES
from streamsplit.encoders.base import SplitEncoder
from streamsplit.errors import AudioError, ConfigError
from streamsplit.evaluation.baselines.base import embedder
from streamsplit.evaluation.corpus import Corpus, digits_corpus, esc10_corpus, pieces_part, usable
from streamsplit.evaluation.data.manifest import read_clip
from streamsplit.evaluation.datasets import Clip, load_labelled_folder
from streamsplit.evaluation.judge import judge
from streamsplit.refinement.pretraining import Recordings


class Heard(NamedTuple):
    """Recordings to learn from, and how much that is."""

    recordings: Recordings
    hours: float
    about: str  # for the card
    notes: tuple[str, ...] = ()  # what was left out, and why


def hear_clips(root: Path, folds: Sequence[int] = ()) -> Heard:
    """Clips of one sound each in `<root>/<label>/*`, of `folds` only where given; labels are not used.

    Raises AudioError for a folder without usable clips, ConfigError for folds that it does not have.
    """
    clips = load_labelled_folder(root)
    known = {clip.fold for clip in clips if clip.fold is not None}
    if not set(folds) <= known:
        raise ConfigError(f"{root}: got folds {sorted(folds)}, expected some of {sorted(known) or 'none at all'}")
    chosen, notes = usable([clip for clip in clips if not folds or clip.fold in folds])
    of_folds = f", folds {', '.join(map(str, folds))}" if folds else ""
    names = [(read_clip(clip), "") for clip in chosen]
    return _heard(names, f"{len(chosen)} clips of {root.resolve().name}{of_folds}, labels unused", notes)


def hear_speech(root: Path) -> Heard:
    """Recordings of many speakers, any audio file under `root`; raises AudioError where there are none.

    Who speaks is the folder that a file lies in, or in one folder of files the name before its first '-' or '_'.
    """
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES) if root.is_dir() else []
    if not paths:
        raise AudioError(f"{root}: got no audio files, expected recordings of speech ({', '.join(AUDIO_SUFFIXES)})")
    chosen, notes = usable([Clip(path, "speech", None) for path in paths])
    flat = len({clip.path.parent for clip in chosen}) == 1
    named = [(read_clip(clip), _speaker(clip.path, flat)) for clip in chosen]
    speakers = len({name for _, name in named})
    return _heard(named, f"{len(chosen)} recordings of {speakers} speakers in {root.resolve().name}", notes)


def measure(encoder: SplitEncoder, root: Path) -> dict[str, float]:
    """Probe and retrieval on the data folder's corpora: esc10/ (fold 4), and fsdd/ with every speaker left out in turn.

    Raises ConfigError for a folder that has neither.
    """
    found: dict[str, float] = {}
    if (root / "esc10").is_dir():
        figures = _figures(encoder, esc10_corpus(root / "esc10"))
        found |= {f"esc10_fold4_{name}": value for name, value in figures.items()}
    if (root / "fsdd").is_dir():
        speakers = sorted({path.stem.split("_")[1] for path in (root / "fsdd").glob("*_*_*.wav")})
        each = [_figures(encoder, digits_corpus(root / "fsdd", speaker)) for speaker in speakers]
        found |= {f"digits_left_out_{name}_probe": row["probe"] for name, row in zip(speakers, each, strict=True)}
        found |= {f"digits_mean_{name}": float(np.mean([row[name] for row in each])) for name in each[0]}
    if not found:
        raise ConfigError(f"{root}: got neither esc10/ nor fsdd/, expected the data folder to measure on")
    return found


def _figures(encoder: SplitEncoder, corpus: Corpus) -> dict[str, float]:
    figures: dict[str, Any] = judge(corpus, embedder(encoder)).figures
    return {name: round(float(figures[name]), 4) for name in ("probe", "precision_at_10", "precision_at_10_all")}


def _speaker(path: Path, flat: bool) -> str:
    return path.stem.replace("_", "-").split("-")[0] if flat else path.parent.name


def _heard(named: Sequence[tuple[np.ndarray, str]], about: str, notes: tuple[str, ...]) -> Heard:
    """Recordings as windows, from each one's samples and whose voice it is."""
    part = pieces_part([(audio, name, "") for audio, name in named])
    _, voices = np.unique([name for _, name in named], return_inverse=True)
    recordings = Recordings(part.windows, part.owners, voices[part.owners])
    return Heard(recordings, float(part.seconds.sum()) / 3600, about, notes)
