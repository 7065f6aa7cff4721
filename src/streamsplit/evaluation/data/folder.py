"""Clips from folders whose names say everything: `<label>/*`, ESC-10/50 in both layouts, spoken digits."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from streamsplit.audio.files import AUDIO_SUFFIXES
from streamsplit.errors import AudioError, ConfigError
from streamsplit.evaluation.data.settings import Found, LeftOut, PrepareSettings
from streamsplit.evaluation.data.table import read_rows
from streamsplit.evaluation.datasets import Clip, load_labelled_folder

DIGIT_NAME = re.compile(r"^(?P<digit>\d)_(?P<speaker>[^_]+)_(?P<index>\d+)$")
ESC_META = ("meta", "esc50.csv")
_NAMED_SOURCES = 10  # in a fact
ESC10 = "esc10"  # in place of class names: those that ESC-50's own table marks


def audio_files(root: Path) -> list[Path]:
    """Every audio file below the folder, by name; hidden folders are left out."""
    return sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )


def find_labelled(settings: PrepareSettings) -> Found:
    """Any `<label>/*` folder; sources as `load_labelled_folder` tells them, parts to be dealt out."""
    root = Path(settings.source)
    found = Found(clips=load_labelled_folder(root), left_out=empty_labels(root))
    nested = sorted({clip.label for clip in found.clips if clip.path.parent != root / clip.label})
    if nested:
        found.facts["folders in class folders"] = (
            f"in {', '.join(nested)}; they count as source recordings, not as classes. Where they are classes, prepare "
            "each folder above them on its own"
        )
    takes = Counter(clip.source for clip in found.clips if clip.path.parent == root / clip.label)
    several = [f"{source} ({count} files)" for source, count in sorted(takes.items()) if count > 1]
    if several:
        more = ", ..." if len(several) > _NAMED_SOURCES else ""
        found.facts["pieces of one recording, by their names"] = (
            f"{', '.join(several[:_NAMED_SOURCES])}{more}: names that differ in their last number or letter only. "
            "Where they are recordings of their own, put each into a folder of its own"
        )
    if any(clip.fold is None for clip in found.clips):  # some names without one: folds would not cover all
        found.clips = [clip._replace(fold=None) for clip in found.clips]
    return found


def find_esc(settings: PrepareSettings) -> Found:
    """ESC-10/50: `<class>/<fold>-<source>-<take>[-<target>].ext`, or audio/ with meta/esc50.csv as published."""
    root = Path(settings.source)
    if root.joinpath(*ESC_META).is_file():
        return _find_original_esc(root, settings)
    if settings.classes == (ESC10,):
        raise ConfigError(f"got --classes {ESC10} without {'/'.join(ESC_META)}, expected the names of classes")
    clips = load_labelled_folder(root)
    named = [clip._replace(source=clip.source.partition("-")[2]) for clip in clips if clip.fold is not None]
    odd = [LeftOut(clip.path.name, "not named <fold>-<source>-<take>") for clip in clips if clip.fold is None]
    return Found(clips=named, left_out=empty_labels(root) + odd)


def find_digits(settings: PrepareSettings) -> Found:
    """Spoken digits `<digit>_<speaker>_<index>.ext`: the speaker is the source, and a fold of its own."""
    root = Path(settings.source)
    matches = [(path, DIGIT_NAME.match(path.stem)) for path in audio_files(root)]
    speakers = sorted({match["speaker"] for _, match in matches if match})
    if len(speakers) < 2:
        raise AudioError(f"{root}: got {len(speakers)} speakers in names like 7_jackson_0.wav, expected at least two")
    found = Found(short_is_kept=True)
    found.facts["speakers"] = ", ".join(f"fold {number} = {name}" for number, name in enumerate(speakers, 1))
    found.facts["short clips"] = "spoken digits are mostly shorter than a window: kept, zero-padded when cut"
    for path, match in matches:
        if match is None:
            found.left_out.append(LeftOut(path.name, "not named <digit>_<speaker>_<index>"))
            continue
        speaker = match["speaker"]
        found.clips.append(Clip(path, match["digit"], speakers.index(speaker) + 1, speaker, speaker))
    return found


def _find_original_esc(root: Path, settings: PrepareSettings) -> Found:
    table = root.joinpath(*ESC_META)
    rows = read_rows(table, ("filename", "fold", "category"))
    found = Found()
    for line, row in rows:
        path = root / "audio" / row["filename"]
        subset = row.get(ESC10, "").lower() == "true"
        if settings.classes == (ESC10,) and not subset:
            found.left_out.append(LeftOut(row["filename"], "not in the ESC-10 subset"))
        elif not path.is_file():
            found.left_out.append(LeftOut(row["filename"], "listed, but there is no such file"))
        elif not row["fold"].isdecimal():
            raise ConfigError(f"{table}:{line}: got fold '{row['fold']}', expected a whole number")
        else:
            source = row.get("src_file") or row["filename"].split("-")[1 if row["filename"].count("-") > 1 else 0]
            found.clips.append(Clip(path, row["category"], int(row["fold"]), source))
    if settings.classes == (ESC10,) and not found.clips:
        raise ConfigError(f"{table}: got no row marked in a column '{ESC10}', expected ESC-50's own table")
    return found


def empty_labels(root: Path) -> list[LeftOut]:
    """Class folders that hold no audio at all."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [LeftOut(f"{folder.name}/", "class folder without audio") for folder in folders if not audio_files(folder)]
