"""A prepared data set on disk: the list of its clips, and readers of list and clips."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamsplit.audio.files import read_audio
from streamsplit.audio.resample import resample
from streamsplit.errors import AudioError, ConfigError
from streamsplit.evaluation.data.inspect import file_rate_hz, pieces
from streamsplit.evaluation.data.parts import check_apart
from streamsplit.evaluation.data.settings import LeftOut
from streamsplit.evaluation.data.table import read_rows, read_text, seconds_of
from streamsplit.evaluation.datasets import Clip

MANIFEST, CARD, CARD_TEXT, LEFT_OUT = "manifest.csv", "card.json", "card.md", "left_out.csv"
COLUMNS = ("path", "label", "source", "session", "fold", "part", "start_s", "duration_s", "rate_hz")


def is_prepared(folder: str | Path) -> bool:
    """True for a folder that `streamsplit data prepare` wrote."""
    return (Path(folder) / MANIFEST).is_file() and (Path(folder) / CARD).is_file()


def load_prepared(folder: str | Path, *, root: str | Path | None = None) -> list[Clip]:
    """The clips of a prepared data set; `root` is where the audio is, if it has moved since.

    Raises ConfigError for a folder that is none or is incomplete, AudioError where a source or session is on two sides
    of a split, or there are fewer than two classes.
    """
    folder = Path(folder)
    card = load_card(folder)
    base = Path(root if root is not None else card["source"])
    table = folder / MANIFEST
    clips = [_clip(row, base, f"{table}:{line}") for line, row in read_rows(table, COLUMNS)]
    if len(clips) != card["clips"]:
        raise ConfigError(
            f"{table}: got {len(clips)} clips, expected {card['clips']} as in {CARD}; prepare the data anew"
        )
    if len({clip.label for clip in clips}) < 2:
        raise AudioError(f"{table}: got one class ('{clips[0].label}'), expected at least two")
    check_apart(clips)
    return clips


def load_card(folder: str | Path) -> dict[str, Any]:
    """The data card; raises ConfigError for a folder without one."""
    path = Path(folder) / CARD
    if not path.is_file():
        raise ConfigError(f"{folder}: holds no prepared data set (no {CARD}); make one with `streamsplit data prepare`")
    try:
        card = json.loads(read_text(path))
        return dict(card) | {"source": str(card["source"]), "clips": int(card["clips"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is no data card ({error}); prepare the data anew") from error


def read_clip(clip: Clip, rate_hz: int = 16_000) -> NDArray[np.float32]:
    """A clip's mono samples [n] at `rate_hz`: its file, or the piece of a long one. Raises AudioError."""
    if clip.start_s is None:
        return read_audio(clip.path, rate_hz)
    native_hz = clip.rate_hz or file_rate_hz(clip.path)
    return resample(np.concatenate(list(pieces(clip, native_hz))), native_hz, rate_hz)


def write_manifest(folder: Path, clips: Sequence[Clip], root: Path) -> None:
    """Writes the clips, with paths below `root` where the audio is."""
    with (folder / MANIFEST).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for clip in clips:
            path = clip.path.relative_to(root) if clip.path.is_relative_to(root) else clip.path
            fold, start_s = ("" if value is None else f"{value:g}" for value in (clip.fold, clip.start_s))
            writer.writerow(
                (path.as_posix(), clip.label, clip.source, clip.session, fold, clip.part, start_s,
                 f"{clip.duration_s:.6f}", clip.rate_hz)
            )  # fmt: skip


def write_left_out(folder: Path, left_out: Sequence[LeftOut]) -> None:
    """Writes every name that was left out, with the reason."""
    with (folder / LEFT_OUT).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(LeftOut._fields)
        writer.writerows(left_out)


def _clip(row: dict[str, str], root: Path, where: str) -> Clip:
    for name in ("path", "label"):
        if not row[name]:
            raise ConfigError(f"{where}: got no {name}, expected one in every row")
    for name in ("fold", "rate_hz"):
        if not (row[name].isdecimal() or (name == "fold" and not row[name])):
            raise ConfigError(f"{where}: got {name} '{row[name]}', expected a whole number")
    return Clip(
        root / row["path"],
        row["label"],
        int(row["fold"]) if row["fold"] else None,
        row["source"],
        row["session"],
        row["part"],
        seconds_of(row["start_s"], where, "start_s") if row["start_s"] else None,
        seconds_of(row["duration_s"], where, "duration_s"),
        int(row["rate_hz"]),
    )
