"""Tables that come with data sets: CSV with a header, read with the line of every row."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from streamsplit.errors import ConfigError


def read_text(path: Path) -> str:
    """A text file's content; raises ConfigError where it cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}); give an existing CSV file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text; give a CSV file") from error


def header_of(path: Path) -> list[str]:
    """The names of the columns, lower case; [] for a file that is not such a table."""
    try:
        first = next(iter(read_text(path).splitlines()), "")
    except ConfigError:
        return []
    return [name.strip().lower() for name in next(csv.reader([first]), [])]


def read_rows(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """(line, row by column name) of a CSV file with a header; names are lower case, values without outer spaces.

    Raises ConfigError where a column is missing, a row has another number of values, or there is no row.
    """
    reader = csv.reader(read_text(path).splitlines(), skipinitialspace=True)
    names = [name.strip().lower() for name in next(reader, [])]
    missing = [name for name in columns if name not in names]
    if missing:
        raise ConfigError(f"{path}:1: got columns {', '.join(names) or 'none'}, expected also {', '.join(missing)}")
    rows = []
    for values in reader:
        if not any(value.strip() for value in values):
            continue
        if len(values) != len(names):
            raise ConfigError(f"{path}:{reader.line_num}: got {len(values)} values, expected {len(names)}")
        rows.append((reader.line_num, {name: value.strip() for name, value in zip(names, values, strict=True)}))
    if not rows:
        raise ConfigError(f"{path}: got no row under the header, expected one a clip")
    return rows


def seconds_of(text: str, where: str, name: str) -> float:
    """A time of zero or more seconds; raises ConfigError naming file and line."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < float("inf"):
        raise ConfigError(f"{where}: got {name} '{text}', expected seconds of 0 or more")
    return value
