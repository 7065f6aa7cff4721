"""Parts that share no recording: whole sessions dealt out to train, validation and test; equal clips a class."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from streamsplit.errors import AudioError
from streamsplit.evaluation.data.settings import PARTS
from streamsplit.evaluation.datasets import Clip

_ORDER = ("train", "test", "validation")  # who gets a label's first sessions
_TWO_TESTED_FROM = 8  # sessions of a label: with one in the test part there is nothing to find there


def session_of(clip: Clip) -> str:
    """What must stay on one side of a split: the session, else the source recording, else the file."""
    return clip.session or clip.source or str(clip.path)


def deal_parts(clips: Sequence[Clip], seed: int, shares: Mapping[str, float] = PARTS) -> list[Clip]:
    """The clips with their part: every session whole, labels near their `shares`, the rarest label first.

    A label of three sessions or more is in every part, of two in train and test, of one in train (Sechidis et al.
    2011, with sessions in place of samples); of eight or more two are tested on. Raises AudioError for fewer than
    three sessions.
    """
    sessions: dict[str, Counter[str]] = defaultdict(Counter)
    for clip in clips:
        sessions[session_of(clip)][clip.label] += 1
    if len(sessions) < len(shares):
        raise AudioError(
            f"got {len(sessions)} sessions or source recordings, expected at least {len(shares)}, one each for "
            f"{', '.join(shares)}"
        )
    drawn = [str(name) for name in np.random.default_rng(seed).permutation(sorted(sessions))]
    drawn.sort(key=lambda name: -sum(sessions[name].values()))
    total = Counter(clip.label for clip in clips)
    have: dict[str, Counter[str]] = {part: Counter() for part in shares}
    part_of: dict[str, str] = {}
    holders = {label: [name for name in drawn if sessions[name][label]] for label in total}
    for label in sorted(total, key=lambda name: (len(holders[name]), name)):
        waiting = [name for name in holders[label] if name not in part_of]
        for left, name in zip(range(len(waiting), 0, -1), waiting, strict=True):
            least = {"test": 2 if len(holders[label]) >= _TWO_TESTED_FROM else 1}
            lacking = [part for part in _ORDER if part in shares and have[part][label] < least.get(part, 1)]
            need = {part: share * total[label] - have[part][label] for part, share in shares.items()}
            part = lacking[0] if len(lacking) >= left else max(shares, key=lambda part: need[part])
            part_of[name] = part
            have[part] += sessions[name]
    return [clip._replace(part=part_of[session_of(clip)]) for clip in clips]


def balance(clips: Sequence[Clip], seed: int) -> list[Clip]:
    """As many clips of every class as the smallest has, drawn by the seed; the order stays."""
    counts = Counter(clip.label for clip in clips)
    size = min(counts.values())
    rng = np.random.default_rng(seed)
    kept: set[int] = set()
    for label in sorted(counts):
        rows = [row for row, clip in enumerate(clips) if clip.label == label]
        kept.update(rng.choice(rows, size, replace=False).tolist())
    return [clip for row, clip in enumerate(clips) if row in kept]


def check_apart(clips: Sequence[Clip]) -> None:
    """Raises AudioError where a source recording or a session is in two folds or two parts."""
    for kind in ("source", "session"):
        side: dict[str, tuple[int | None, str]] = {}
        for clip in clips:
            name = getattr(clip, kind)
            first = side.setdefault(name, (clip.fold, clip.part)) if name else (clip.fold, clip.part)
            if first != (clip.fold, clip.part):
                here, there = (part or f"fold {fold}" for fold, part in (first, (clip.fold, clip.part)))
                raise AudioError(
                    f"got {kind} '{name}' in {here} and in {there}, expected every {kind} on one side of a split; "
                    "prepare the data anew"
                )
