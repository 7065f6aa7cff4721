"""Long recordings made on devices: segments that several annotators labelled, by majority."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from streamsplit.errors import AudioError, ConfigError
from streamsplit.evaluation.data.agreement import count_votes, fleiss_kappa, majority
from streamsplit.evaluation.data.folder import audio_files
from streamsplit.evaluation.data.settings import SEGMENT_S, Found, LeftOut, PrepareSettings
from streamsplit.evaluation.data.table import header_of, read_rows, seconds_of
from streamsplit.evaluation.datasets import Clip

_ANNOTATOR = "annotator"
_ROUNDING_S = 0.01
_SEEKABLE = (".wav", ".flac")


def find_ondevice(settings: PrepareSettings) -> Found:
    """Segments with a majority's label; the session is the recording, or its folder where there are folders.

    The table has a row a segment: `recording,start_s,annotator_1,...` or `recording,segment,annotator_1,...` with the
    segment's number from 0. Raises ConfigError for a table that is not like that.
    """
    root = Path(settings.source)
    table = Path(settings.labels) if settings.labels else find_annotations(root)
    if table is None:
        raise ConfigError(f"{root}: got no table of labels, expected recording,start_s,annotator_1,... by --labels")
    seconds = settings.seconds or SEGMENT_S
    recordings = _by_name(root)
    rows = read_rows(table, ("recording",))
    annotators = [name for name in rows[0][1] if name.startswith(_ANNOTATOR)]
    if not annotators:
        raise ConfigError(f"{table}:1: got no column annotator_1, expected one an annotator")
    found, votes, seen = Found(), [], set[tuple[Path, float]]()
    for line, row in rows:
        start_s = _start_s(row, f"{table}:{line}", seconds)
        if row.get("end_s"):
            length = seconds_of(row["end_s"], f"{table}:{line}", "end_s") - start_s
            if abs(length - seconds) > _ROUNDING_S:
                raise ConfigError(f"{table}:{line}: got a segment of {length:g} s, expected {seconds:g} s (--seconds)")
        own = [row[name] for name in annotators]
        votes.append(own)
        name = f"{row['recording']} at {start_s:g} s"
        path = _recording(recordings, row["recording"], f"{table}:{line}")
        label = majority(own)
        if path is None:
            found.left_out.append(LeftOut(name, "no such recording"))
            continue
        if (path, start_s) in seen:
            raise ConfigError(f"{table}:{line}: got a second row for {name}, expected one a segment")
        seen.add((path, start_s))
        if label is None:
            found.left_out.append(LeftOut(name, "no majority", " / ".join(vote or "-" for vote in own)))
            continue
        session = path.parent.relative_to(root).as_posix() if path.parent != root else path.stem
        source = path.relative_to(root).as_posix()
        found.clips.append(Clip(path, label, None, source, session, start_s=start_s, duration_s=seconds))
    unlabelled = sorted({path for paths in recordings.values() for path in paths} - {path for path, _ in seen})
    found.left_out += [LeftOut(path.name, "recording without a row in the table") for path in unlabelled]
    _check_apart_in_time(seen, seconds, str(table))
    found.clips.sort(key=lambda clip: (clip.source, clip.start_s or 0.0))
    found.facts |= _agreement(votes, len(annotators), seconds)
    return found


def _check_apart_in_time(seen: set[tuple[Path, float]], seconds: float, table: str) -> None:
    """Raises ConfigError where two segments of a recording share sound: they could be labelled against each other."""
    for (path, start), (next_path, next_start) in pairwise(sorted(seen)):
        if path == next_path and next_start - start < seconds - _ROUNDING_S:
            raise ConfigError(
                f"{table}: got segments of {path.name} at {start:g} s and at {next_start:g} s, expected {seconds:g} s "
                "between two; --seconds says how long a segment is"
            )


def find_annotations(root: Path) -> Path | None:
    """The table of labels in a folder, None where there is none; raises ConfigError for several."""
    tables = [path for path in sorted(root.glob("*.csv")) if _is_table(header_of(path))]
    if len(tables) > 1:
        raise ConfigError(f"{root}: got {len(tables)} tables of labels ({tables[0].name}, ...), choose with --labels")
    return tables[0] if tables else None


def _is_table(names: list[str]) -> bool:
    return "recording" in names and any(name.startswith(_ANNOTATOR) for name in names)


def _by_name(root: Path) -> dict[str, list[Path]]:
    """Recordings by every name that a row may give: path below the folder, file name, each also without suffix."""
    named: dict[str, list[Path]] = {}
    for path in audio_files(root):
        if path.suffix.lower() in _SEEKABLE:
            below = path.relative_to(root)
            for name in {below.as_posix(), below.with_suffix("").as_posix(), path.name, path.stem}:
                named.setdefault(name, []).append(path)
    if not named:
        raise AudioError(f"{root}: got no recording, expected long {' or '.join(_SEEKABLE)} files")
    return named


def _recording(recordings: dict[str, list[Path]], name: str, where: str) -> Path | None:
    paths = recordings.get(name, [])
    if len(paths) > 1:
        raise ConfigError(f"{where}: got recording '{name}', which {len(paths)} files are called; give its folder too")
    return paths[0] if paths else None


def _start_s(row: dict[str, str], where: str, seconds: float) -> float:
    if row.get("start_s"):
        return seconds_of(row["start_s"], where, "start_s")
    if not row.get("segment", "").isdecimal():
        raise ConfigError(f"{where}: got no start_s and segment '{row.get('segment', '')}', expected one of the two")
    return int(row["segment"]) * seconds


def _agreement(votes: list[list[str]], annotators: int, seconds: float) -> dict[str, object]:
    counts = count_votes(votes)
    kappa = fleiss_kappa(counts) if annotators > 1 and len(counts) else float("nan")
    return {
        "segment_s": seconds,
        "annotators": annotators,
        "segments annotated": len(votes),
        "segments that all annotated": len(counts),
        "fleiss kappa": None if kappa != kappa else round(kappa, 4),
    }
