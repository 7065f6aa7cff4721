"""From a source folder to a data set: found, inspected, split, described, written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from streamsplit.config import nearest
from streamsplit.errors import AudioError, ConfigError
from streamsplit.evaluation.data.audioset import find_audioset, find_segments
from streamsplit.evaluation.data.card import card_text, make_card
from streamsplit.evaluation.data.folder import (
    DIGIT_NAME,
    ESC10,
    ESC_META,
    audio_files,
    find_digits,
    find_esc,
    find_labelled,
)
from streamsplit.evaluation.data.inspect import inspect_clips
from streamsplit.evaluation.data.manifest import CARD, CARD_TEXT, load_card, write_left_out, write_manifest
from streamsplit.evaluation.data.ondevice import find_annotations, find_ondevice
from streamsplit.evaluation.data.parts import balance, check_apart, deal_parts
from streamsplit.evaluation.data.settings import KINDS, Found, LeftOut, PrepareSettings
from streamsplit.evaluation.datasets import ESC_NAME
from streamsplit.evaluation.provenance import revision_of_code

_FINDERS: dict[str, Callable[[PrepareSettings], Found]] = {
    "esc": find_esc, "audioset": find_audioset, "ondevice": find_ondevice, "folder": find_labelled,
    "digits": find_digits,
}  # fmt: skip
Progress = Callable[[int, int, str], None]


def prepare(
    settings: PrepareSettings, output: str | Path, *, command: str = "", progress: Progress | None = None
) -> dict[str, Any]:
    """Writes a data set's list and card into `output` and gives the card; the audio stays where it is.

    Raises ConfigError for a folder that holds something else, AudioError where too little is left: fewer than two
    classes, or no clip of a class that was asked for.
    """
    output, root = Path(output), Path(settings.source)
    if not root.is_dir():
        raise AudioError(f"{root}: there is no such folder; give one with audio inside")
    settings = settings.replace(source=str(root.resolve()))
    settings = settings.replace(kind=settings.kind or find_kind(settings))
    check_output(output, settings)
    found = _FINDERS[settings.kind](settings)
    clips, left_out = _of_classes(found, settings)
    clips, unfit = inspect_clips(clips, keep_short=settings.keep_short or found.short_is_kept, progress=progress)
    left_out = [*found.left_out, *left_out, *unfit]
    _check_classes(found, clips, settings, left_out)
    if settings.balanced:
        kept = set(balance(clips, settings.seed))
        left_out += [LeftOut(clip.path.name, "beyond the smallest class's count") for clip in clips if clip not in kept]
        clips = [clip for clip in clips if clip in kept]
    if any(clip.fold is None for clip in clips):
        clips = deal_parts(clips, settings.seed)
    check_apart(clips)
    card = make_card(clips, found, left_out, settings.kind, settings)
    card |= {"command": command, "code": revision_of_code()}
    output.mkdir(parents=True, exist_ok=True)
    (output / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_manifest(output, clips, Path(settings.source))
    write_left_out(output, left_out)
    (output / CARD_TEXT).write_text(card_text(card), encoding="utf-8")
    return card


def find_kind(settings: PrepareSettings) -> str:
    """What kind of data set a folder looks like; raises ConfigError where it looks like none."""
    root = Path(settings.source)
    if root.joinpath(*ESC_META).is_file():
        return "esc"
    if settings.segments or find_segments(root) is not None:
        return "audioset"
    if settings.labels or find_annotations(root) is not None:
        return "ondevice"
    files = audio_files(root)
    if files and all(DIGIT_NAME.match(path.stem) for path in files):
        return "digits"
    below = [path for path in files if path.parent != root]
    if below and all(ESC_NAME.match(path.stem) for path in below):
        return "esc"
    if below:
        return "folder"
    what = f"{len(files)} audio files without class folders or a table" if files else "no audio"
    raise ConfigError(f"{root}: got {what}, expected a data set; name its --kind, one of {', '.join(KINDS)}")


def check_output(output: Path, settings: PrepareSettings) -> None:
    """Raises ConfigError where the folder holds another data set, or files that are none."""
    if not output.exists():
        return
    if not output.is_dir():
        raise ConfigError(f"{output}: is a file, expected a folder to write; name another --output")
    if not (output / CARD).is_file():
        if any(output.iterdir()):
            raise ConfigError(f"{output}: holds files that are no prepared data set; name an empty or new --output")
        return
    before, now = load_card(output).get("settings"), json.loads(json.dumps(asdict(settings)))
    if before != now:
        before = before if isinstance(before, dict) else {}
        differing = [name for name in now if before.get(name) != now[name]]
        raise ConfigError(
            f"{output}: holds a data set of other settings ({', '.join(differing) or 'unknown ones'} differ), "
            "expected the same; name another --output"
        )


def _of_classes(found: Found, settings: PrepareSettings) -> tuple[list[Any], list[LeftOut]]:
    """The clips of the chosen classes, and the others."""
    chosen = _chosen_labels(found, settings)
    if not chosen:
        return found.clips, []
    left_out = [LeftOut(clip.path.name, "class not chosen") for clip in found.clips if clip.label not in chosen]
    return [clip for clip in found.clips if clip.label in chosen], left_out


def _chosen_labels(found: Found, settings: PrepareSettings) -> set[str]:
    """The labels asked for, () for all; raises ConfigError for a name that is none."""
    if settings.classes == (ESC10,) and settings.kind == "esc":
        return set()
    chosen = {found.names.get(name, name) for name in settings.classes}
    if settings.kind != "audioset":  # whose reader knows the list's classes, with clips or without
        labels = {clip.label for clip in found.clips}
        for name in sorted(chosen - labels):
            raise ConfigError(f"{settings.source}: got class '{name}', which has no clip; {nearest(name, labels)}")
    return chosen


def _check_classes(found: Found, clips: list[Any], settings: PrepareSettings, left_out: list[LeftOut]) -> None:
    labels = {clip.label for clip in clips}
    reasons = Counter(each.reason for each in left_out)
    out = f"{len(left_out)} left out" + "".join(f"; {count} {reason}" for reason, count in reasons.most_common(3))
    if any("shorter than a window" in reason for reason in reasons):
        out += "; --keep-short keeps short ones"
    for name in sorted(_chosen_labels(found, settings) - labels):
        raise AudioError(f"{settings.source}: got no usable clip of class '{name}', expected at least one ({out})")
    for name in sorted({clip.label for clip in found.clips} - labels if not settings.classes else ()):
        left_out.append(LeftOut(name, "class without a usable clip"))
    if len(labels) < 2:
        raise AudioError(f"{settings.source}: got {len(labels)} class with usable clips, expected at least 2 ({out})")
