"""AudioSet: the published list of segments beside a folder of clips that the user has."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from streamsplit.errors import ConfigError
from streamsplit.evaluation.data.folder import audio_files
from streamsplit.evaluation.data.inspect import file_duration_s
from streamsplit.evaluation.data.settings import Found, LeftOut, PrepareSettings
from streamsplit.evaluation.data.table import read_rows, read_text, seconds_of
from streamsplit.evaluation.datasets import Clip

NAMES_FILE = "class_labels_indices.csv"
_WHOLE_SOUNDTRACK_S = 1.0  # a file this much longer than its segment is not the segment alone


class Segment(NamedTuple):
    """One line of the list."""

    ytid: str  # the video's name: the source recording
    start_s: float
    end_s: float
    mids: tuple[str, ...]  # machine names of its labels, like /m/0bt9lr


def find_audioset(settings: PrepareSettings) -> Found:
    """Clips with exactly one of the chosen classes (default: all in the list), labelled by display name if known."""
    root = Path(settings.source)
    table = Path(settings.segments) if settings.segments else find_segments(root)
    if table is None:
        raise ConfigError(f"{root}: got no list of segments, expected AudioSet's CSV there or by --segments")
    names = _display_names(root, table, settings.labels)
    segments = read_segments(table)
    chosen = _chosen(settings.classes, names, segments, table)
    files = {path.stem: path for path in reversed(audio_files(root))}
    used: set[tuple[Path, float | None]] = set()
    found = Found(names={mid: name for mid, name in names.items() if mid in chosen})
    for segment in segments:
        own = [mid for mid in segment.mids if mid in chosen]
        name = f"{segment.ytid} from {segment.start_s:g} s"
        path = next((files[stem] for stem in _stems(segment) if stem in files), None)
        if not own:
            found.left_out.append(LeftOut(name, "none of the chosen classes"))
        elif len(own) > 1:
            found.left_out.append(LeftOut(name, "more than one of the chosen classes"))
        elif path is None:
            found.left_out.append(LeftOut(name, "no clip of it in the folder"))
        else:
            clip = _clip(path, segment, names.get(own[0], own[0]))
            if (clip.path, clip.start_s) in used:
                found.left_out.append(LeftOut(name, "its file is that of another segment too", path.name))
                continue
            used.add((clip.path, clip.start_s))
            found.clips.append(clip)
    found.facts["segments listed"] = len(segments)
    found.facts["classes by"] = "display name" if names else f"machine name (no {NAMES_FILE} found)"
    return found


def read_segments(path: Path) -> list[Segment]:
    """The lines of a list as AudioSet publishes it: `YTID, start_seconds, end_seconds, "/m/..,/m/.."`, # comments.

    Raises ConfigError naming the line that is not like that.
    """
    segments = []
    for number, text in enumerate(read_text(path).splitlines(), 1):
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        values = [value.strip() for value in next(csv.reader([text], skipinitialspace=True))]
        where = f"{path}:{number}"
        if len(values) != 4 or not values[0] or not values[3]:
            raise ConfigError(f'{where}: got {text.strip()[:60]!r}, expected YTID, start_s, end_s, "/m/..,/m/.."')
        start_s, end_s = seconds_of(values[1], where, "start"), seconds_of(values[2], where, "end")
        if end_s <= start_s:
            raise ConfigError(
                f"{where}: got a segment from {start_s:g} to {end_s:g} s, expected its end after its start"
            )
        segments.append(Segment(values[0], start_s, end_s, tuple(mid.strip() for mid in values[3].split(","))))
    if not segments:
        raise ConfigError(f"{path}: got no segment, expected lines of YTID, start_s, end_s and labels")
    return segments


def find_segments(root: Path) -> Path | None:
    """The list of segments in a folder, None where there is none; raises ConfigError for several."""
    lists = [path for path in sorted(root.glob("*.csv")) if _is_list(path)]
    if len(lists) > 1:
        raise ConfigError(f"{root}: got {len(lists)} lists of segments ({lists[0].name}, ...), choose with --segments")
    return lists[0] if lists else None


def _is_list(path: Path) -> bool:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[:8]
    return any(line.startswith("#") and "YTID" in line for line in lines)


def _display_names(root: Path, table: Path, named: str) -> dict[str, str]:
    """Display name of every machine name, {} where there is no such table."""
    places = [Path(named)] if named else [root / NAMES_FILE, table.parent / NAMES_FILE]
    path = next((place for place in places if place.is_file()), None)
    if path is None and named:
        raise ConfigError(f"{named}: there is no such file; give AudioSet's {NAMES_FILE}")
    rows = read_rows(path, ("mid", "display_name")) if path else []
    return {row["mid"]: row["display_name"] for _, row in rows}


def _chosen(classes: tuple[str, ...], names: Mapping[str, str], segments: list[Segment], table: Path) -> set[str]:
    """Machine names of the classes, by either name; raises ConfigError for one that is not listed."""
    listed = {mid for segment in segments for mid in segment.mids}
    if not classes:
        return listed
    by_name = {name: mid for mid, name in names.items()}
    chosen = {by_name.get(name, name) for name in classes}
    for name in classes:
        if by_name.get(name, name) not in listed:
            raise ConfigError(f"{table}: got no segment of class '{name}', expected a display or machine name listed")
    return chosen


def _stems(segment: Segment) -> list[str]:
    """How a clip's file may be called, the most exact name first; some collections put a Y before the YTID."""
    start, end = segment.start_s, segment.end_s
    tails = [f"_{round(start * 1000)}_{round(end * 1000)}", f"_{start:.3f}_{end:.3f}", f"_{start:g}_{end:g}"]
    tails += [f"_{round(start * 1000)}", f"_{start:.3f}", f"_{start:g}", ""]
    return [f"{before}{segment.ytid}{tail}" for tail in tails for before in ("", "Y")]


def _clip(path: Path, segment: Segment, label: str) -> Clip:
    """The file, or the segment's piece of it where the file is the video's whole soundtrack."""
    clip = Clip(path, label, None, segment.ytid)
    length_s = segment.end_s - segment.start_s
    if not path.stem.endswith(segment.ytid) or file_duration_s(path) <= length_s + _WHOLE_SOUNDTRACK_S:
        return clip
    return clip._replace(start_s=segment.start_s, duration_s=length_s)
