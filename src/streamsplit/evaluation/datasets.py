"""Folders of labelled audio: clips with label, fold and source recording, fair splits, clips as vectors."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from streamsplit.audio.files import AUDIO_SUFFIXES
from streamsplit.errors import AudioError, ConfigError

ESC_NAME = re.compile(r"^(?P<fold>\d+)-(?P<source>\d+)-(?P<take>[A-Za-z]+)(-\d+)?$")  # <fold>-<source>-<take>[-<class>]
_TWO_TESTED_FROM = 4  # sources of a label: with one clip of it in the test part there is nothing to find there
_TAKE = re.compile(r"[-_. ](?:seg|part|take|slice|chunk)?(?:\d+|[A-Za-z])$")


class Clip(NamedTuple):
    """One labelled file, or a piece of one; `fold` where it has one, `source` names the recording it was cut from.

    The fields after `source` are those of a prepared data set: `streamsplit.evaluation.data.manifest.read_clip` reads
    the piece.
    """

    path: Path
    label: str
    fold: int | None
    source: str = ""
    session: str = ""  # what was recorded in one go, by one device or speaker; "" = the source
    part: str = ""  # 'train', 'validation' or 'test', where there are no folds
    start_s: float | None = None  # None = the whole file
    duration_s: float | None = None
    rate_hz: int | None = None  # of the file


class Split(NamedTuple):
    """Clips to train on and to test on, and in words what was held out."""

    train: list[Clip]
    test: list[Clip]
    held_out: str


def data_folder() -> Path | None:
    """The folder of real recordings and traces for tests and benchmarks, None where there is none.

    STREAMSPLIT_DATA if it is set, otherwise `data/` in the checkout or `shared/data/` beside it.
    """
    named = os.environ.get("STREAMSPLIT_DATA")
    checkout = Path(__file__).resolve().parents[3]
    candidates = [Path(named)] if named else [checkout / "data", checkout.parent / "shared" / "data"]
    return next((folder for folder in candidates if folder.is_dir()), None)


def load_labelled_folder(root: str | Path, *, limit: int | None = None) -> list[Clip]:
    """Clips of `<root>/<label>/**/*.ext`, by label and name; at most `limit` of each label, evenly spread over folds.

    Names like '1-100032-A' (ESC: fold, source, take) give the fold. The source recording is that of the name, else the
    folder under the label where there is one, else the name without its last number or letter ('street_12-3' ->
    'street_12'), unless that would make one source of all the label's clips. Raises AudioError for a missing or empty
    folder, and for one with a single label.
    """
    root = Path(root)
    if not root.is_dir():
        raise AudioError(f"{root}: there is no such folder; give one with <label>/<audio file> inside")
    clips: list[Clip] = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in AUDIO_SUFFIXES)
        clips += _spread(_label_clips(folder, files), limit)
    labels = sorted({clip.label for clip in clips})
    if not clips:
        raise AudioError(
            f"{root}: got no audio under <label>/, expected files like {root.name}/dog/bark.wav "
            f"({', '.join(sorted(AUDIO_SUFFIXES))})"
        )
    if len(labels) < 2:
        published = (root / "meta" / "esc50.csv").is_file()
        hint = "; it is ESC-50 as published: make it ready with `streamsplit data prepare`" if published else ""
        raise AudioError(f"{root}: got one label ('{labels[0]}'), expected at least two folders with audio{hint}")
    return clips


def split_clips(
    clips: Sequence[Clip], *, test_fold: int | None = None, test_share: float = 0.25, seed: int = 0
) -> Split:
    """Splits clips so that no source recording is on both sides.

    Where every clip has a fold, one fold is held out (`test_fold`, default the last); where every clip has a part, the
    test part is, and the validation part is left out. Otherwise whole sources are drawn at random until each label has
    about `test_share` of its clips in the test part, and two at least where it has four sources or more. Raises
    AudioError where a label has a single source, ConfigError for an unknown fold.
    """
    if not 0.0 < test_share < 1.0:
        raise ConfigError(f"got test_share {test_share}, expected between 0 and 1")
    folds = sorted({clip.fold for clip in clips if clip.fold is not None})
    if test_fold is not None and test_fold not in folds:
        raise ConfigError(f"got test_fold {test_fold}, expected one of {folds or 'none (names without folds)'}")
    if len(folds) > 1 and all(clip.fold is not None for clip in clips):
        fold = folds[-1] if test_fold is None else test_fold
        train = [clip for clip in clips if clip.fold != fold]
        test = [clip for clip in clips if clip.fold == fold]
        _check_sides(train, test)
        return Split(train, test, f"fold {fold} of {', '.join(map(str, folds))}")
    if clips and all(clip.part for clip in clips):
        train = [clip for clip in clips if clip.part == "train"]
        test = [clip for clip in clips if clip.part == "test"]
        _check_sides(train, test)
        return Split(train, test, f"the test part, {len({clip.session or clip.source for clip in test})} sessions")
    test_sources = _draw_sources(clips, test_share, np.random.default_rng(seed))
    train = [clip for clip in clips if clip.source not in test_sources]
    test = [clip for clip in clips if clip.source in test_sources]
    _check_sides(train, test)
    sources = len({clip.source for clip in clips})
    return Split(train, test, f"{len(test)} of {len(clips)} clips, {len(test_sources)} of {sources} source recordings")


def clip_vectors(vectors: np.ndarray, owners: np.ndarray, *, deviation: bool = False) -> np.ndarray:
    """One vector a clip from its windows' vectors [n, d]: their mean, with their standard deviation appended if asked.

    Rows follow the clip index in `owners` [n].
    """
    rows = []
    for owner in np.unique(owners):
        own = vectors[owners == owner]
        rows.append(np.concatenate([own.mean(axis=0), own.std(axis=0)]) if deviation else own.mean(axis=0))
    return np.stack(rows)


def _label_clips(folder: Path, files: Sequence[Path]) -> list[Clip]:
    label = folder.name
    named = {path: f"{label}/{_TAKE.sub('', path.stem)}" for path in files}
    if len(set(named.values())) < 2:  # 'dog_1', 'dog_2': numbers that tell recordings apart, not takes of one
        named = {path: f"{label}/{path.stem}" for path in files}
    clips = []
    for path in files:
        esc = ESC_NAME.match(path.stem)
        if esc is not None:
            clips.append(Clip(path, label, int(esc["fold"]), f"{esc['fold']}-{esc['source']}"))
        elif path.parent != folder:
            clips.append(Clip(path, label, None, f"{label}/{path.parent.relative_to(folder).as_posix()}"))
        else:
            clips.append(Clip(path, label, None, named[path]))
    return clips


def _spread(clips: list[Clip], limit: int | None) -> list[Clip]:
    """The first `limit` clips, taking folds in turn."""
    if limit is None or len(clips) <= limit:
        return clips
    by_fold: dict[int | None, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_fold[clip.fold].append(clip)
    turns = [clip for row in range(len(clips)) for held in by_fold.values() for clip in held[row : row + 1]]
    return sorted(turns[:limit], key=lambda clip: clip.path)


def _draw_sources(clips: Sequence[Clip], share: float, rng: np.random.Generator) -> set[str]:
    """Sources for the test part: label by label, the rarest first, until each has its share; never all of a label."""
    sources: dict[str, Counter[str]] = defaultdict(Counter)
    for clip in clips:
        sources[clip.label][clip.source] += 1
    for label, held in sources.items():
        if len(held) < 2:
            raise AudioError(f"label '{label}' has one source recording ('{next(iter(held))}'), expected two or more")
    test: set[str] = set()
    train: set[str] = set()  # kept, so that every label has something to train on
    for label in sorted(sources, key=lambda name: (len(sources[name]), name)):
        held = sources[label]
        order = [str(source) for source in rng.permutation(sorted(held))]
        keep = next((source for source in order if source not in test), None)
        if keep is None:
            raise AudioError(f"label '{label}' shares all its source recordings with labels already held out")
        train.add(keep)
        least = 2 if len(held) >= _TWO_TESTED_FROM else 1
        wanted = max(least, round(share * sum(held.values())))
        have = sum(count for source, count in held.items() if source in test)
        for source in order:
            if have >= wanted:
                break
            if source not in test and source not in train:
                test.add(source)
                have += held[source]
        if have == 0:
            raise AudioError(f"label '{label}' shares its source recordings with other labels; none can be held out")
    return test


def _check_sides(train: Sequence[Clip], test: Sequence[Clip]) -> None:
    labels = {clip.label for clip in train} | {clip.label for clip in test}
    for name, side in (("training", train), ("test", test)):
        missing = sorted(labels - {clip.label for clip in side})
        if missing:
            raise AudioError(f"label '{missing[0]}' has no clip in the {name} part, expected some of every label")
