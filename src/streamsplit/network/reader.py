"""Traces from files: tables with a header (CSV), tables without one, and mahimahi's lists of delivery times."""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from streamsplit.config import nearest
from streamsplit.errors import ConfigError
from streamsplit.network.bandwidth import DEFAULT_RTT_MS, BandwidthTrace, make_trace

MAHIMAHI_BYTES = 1504  # that one line of a mahimahi file lets through
_MAHIMAHI_BIN_MS = 100
_GAP_STEPS, _GAP_S = 10.0, 2.0  # a step longer than both is a hole in the recording
_FEWEST_STEPS = 4  # to know what the usual step is
# No mobile uplink has a 95th percentile of more than 1 Gbit/s, nor of more than 200 Mbit/s where kbit/s were written.
_KBPS_FROM, _BPS_FROM = 1000.0, 200_000.0
_ASK = "give a CSV with a header (t_s,mbps,rtt_ms), a table of seconds, Mbit/s and ms, or a mahimahi file"

_UNITS = {"mbps": 1e6, "mbit_s": 1e6, "kbps": 1e3, "kbit_s": 1e3, "bps": 1.0, "bit_s": 1.0}
_TIMES = {"t": 1.0, "t_s": 1.0, "time": 1.0, "time_s": 1.0, "seconds": 1.0, "t_ms": 1e-3, "time_ms": 1e-3}
_RTTS = {"rtt": 1.0, "rtt_ms": 1.0, "rtt_s": 1e3}
_LOSSES = {"loss": 1.0, "loss_share": 1.0, "loss_percent": 1e-2, "loss_pct": 1e-2}


class _Column(NamedTuple):
    name: str
    place: int
    factor: float  # to seconds, bit/s, ms or a share


class _Columns(NamedTuple):
    time: _Column
    rate: _Column
    rtt: _Column | None = None
    loss: _Column | None = None
    run: int | None = None


_PLAIN = (_Column("t", 0, 1.0), _Column("Mbit/s", 1, 1e6), _Column("RTT", 2, 1.0))


def read_trace(path: str | Path, run: str | None = None, rtt_ms: float = DEFAULT_RTT_MS) -> BandwidthTrace:
    """A trace from a file (.gz too) of any known format, found by its first line.

    With a header: columns t_s (or t, time, t_ms), a rate whose name ends in its unit (uplink_mbps, kbps, bps), and
    where there are rtt_ms, loss (share of pings) and run (the named one is read, or the first). Without: seconds,
    Mbit/s and where there is ms of round trip, by commas or blanks. One number a line: mahimahi, the ms at which 1504
    bytes may pass. `rtt_ms` is used where the file has no round trips. Nothing is dropped or filled in: gaps, missing,
    negative and falling values and rates of another unit raise ConfigError naming the file, the line and what to do.
    """
    path = Path(path)
    lines = _lines(path)
    first = lines[0][1]
    if not all(_is_number(word) for word in first):
        columns = _columns(path, *lines[0])
        rows = lines[1:]
        if columns.run is not None:
            rows, run = _rows_of(path, rows, columns.run, run)
        elif run is not None:
            raise ConfigError(
                f"{path}:{lines[0][0]}: no column 'run', expected one to find run '{run}' by; leave it out"
            )
        return _table(path, rows, columns, rtt_ms, run or path.name.split(".")[0])
    if run is not None:
        raise ConfigError(f"{path}: a file without a header holds one run; leave out run '{run}'")
    if len(first) == 1:
        return _mahimahi(path, lines, rtt_ms)
    if len(first) > 3:
        raise ConfigError(f"{path}:{lines[0][0]}: got {len(first)} columns and no header; name them in a first line")
    plain = _Columns(_PLAIN[0], _PLAIN[1], _PLAIN[2] if len(first) == 3 else None)
    return _table(path, lines, plain, rtt_ms, path.name.split(".")[0])


def trace_runs(path: str | Path) -> list[str]:
    """Names of the runs in a file of measured drives, in order; [] for a file of one trace. Raises ConfigError."""
    path = Path(path)
    lines = _lines(path)
    if "run" not in [word.lower() for word in lines[0][1]]:
        return []
    column = [word.lower() for word in lines[0][1]].index("run")
    return list(dict.fromkeys(words[column] for _, words in lines[1:] if len(words) > column))


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, words) of what is not blank and no comment; at least one."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: trace cannot be read ({error}); {_ASK}") from error
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            mark = next((mark for mark in ",;" if mark in line), None)
            lines.append((number, [word.strip() for word in line.split(mark)]))
    if not lines:
        raise ConfigError(f"{path}: the file is empty; {_ASK}")
    return lines


def _columns(path: Path, number: int, header: Sequence[str]) -> _Columns:
    names = [re.sub(r"[^a-z0-9]+", "_", word.strip('"').lower()).strip("_") for word in header]

    def find(known: dict[str, float]) -> _Column | None:
        return next((_Column(name, names.index(name), known[name]) for name in known if name in names), None)

    rates = [
        _Column(name, index, factor)
        for index, name in enumerate(names)
        for unit, factor in _UNITS.items()
        if name == unit or name.endswith("_" + unit)
    ]
    time = find(_TIMES)
    if time is None:
        raise ConfigError(
            f"{path}:{number}: got columns {', '.join(header)}, expected one for time (t_s or t_ms); {_ASK}"
        )
    if not rates:
        raise ConfigError(
            f"{path}:{number}: got columns {', '.join(header)}, expected a rate with its unit in its name (mbps, kbps "
            "or bps); rename it"
        )
    rate = next((column for column in rates if column.name.startswith("up")), rates[0])
    return _Columns(time, rate, find(_RTTS), find(_LOSSES), names.index("run") if "run" in names else None)


def _rows_of(
    path: Path, rows: list[tuple[int, list[str]]], column: int, run: str | None
) -> tuple[list[tuple[int, list[str]]], str]:
    known = dict.fromkeys(words[column] for _, words in rows if len(words) > column)
    if run is None:
        run = next(iter(known), "")
    if run not in known:
        raise ConfigError(f"{path}: no run '{run}'; {nearest(run, known) if known else 'the file holds no rows'}")
    return [(number, words) for number, words in rows if len(words) <= column or words[column] == run], run


def _table(
    path: Path, rows: Sequence[tuple[int, list[str]]], columns: _Columns, rtt_ms: float, name: str
) -> BandwidthTrace:
    if not rows:
        raise ConfigError(f"{path}: the file holds no rows; {_ASK}")
    numbers = [number for number, _ in rows]
    times = _values(path, rows, columns.time, negative=True)
    rates = _values(path, rows, columns.rate)
    _check_times(path, numbers, times)
    if columns.rate.factor == 1e6:
        _check_unit(path, rates / 1e6, columns.rate.name)
    rtts = rtt_ms if columns.rtt is None else _values(path, rows, columns.rtt)
    loss = None if columns.loss is None else _values(path, rows, columns.loss)
    if loss is not None and np.any(loss > 1):
        worst = int(np.argmax(loss > 1))
        raise ConfigError(
            f"{path}:{numbers[worst]}: got a loss of {loss[worst]:g}, expected a share of at most 1; name the column "
            "loss_percent if it is in percent"
        )
    return make_trace(times, rates, rtts, loss, name=name)


def _values(
    path: Path, rows: Sequence[tuple[int, list[str]]], column: _Column, negative: bool = False
) -> np.ndarray:  # fmt: skip
    values = np.empty(len(rows))
    for place, (number, words) in enumerate(rows):
        word = words[column.place] if column.place < len(words) else ""
        if word.lower() in ("", "nan", "na", "n/a", "null", "none", "-"):
            lost_ping = "write the last known one (and 1 under 'loss' if the ping was lost)"
            remedy = lost_ping if column.name.lower().startswith("rtt") else "fill it in, or leave out the trace's rest"
            raise ConfigError(f"{path}:{number}: the value of '{column.name}' is missing; {remedy}")
        if not _is_number(word):
            raise ConfigError(f"{path}:{number}: got '{word}' for '{column.name}', expected a number; correct the row")
        value = float(word)
        if not math.isfinite(value) or (value < 0 and not negative):
            raise ConfigError(
                f"{path}:{number}: got {word} for '{column.name}', expected a finite number that is not negative; "
                "correct the row (0 where the link is dead)"
            )
        values[place] = value * column.factor
    return values


def _check_times(path: Path, numbers: Sequence[int], times: np.ndarray) -> None:
    steps = np.diff(times)
    if np.any(steps <= 0):
        place = int(np.argmax(steps <= 0)) + 1
        raise ConfigError(
            f"{path}:{numbers[place]}: the time {times[place]:g} s does not rise above {times[place - 1]:g} s of the "
            "row before; sort the rows and keep one for each time"
        )
    if len(steps) < _FEWEST_STEPS:
        return
    usual_s = float(np.median(steps))
    if steps.max() > max(_GAP_STEPS * usual_s, _GAP_S):
        place = int(np.argmax(steps)) + 1
        raise ConfigError(
            f"{path}:{numbers[place]}: a gap of {steps[place - 1]:g} s after {times[place - 1] - times[0]:g} s, where "
            f"rows are {usual_s:g} s apart; fill it in (rate 0 for an outage), or make two traces of it"
        )


def _check_unit(path: Path, mbps: np.ndarray, name: str) -> None:
    p95 = float(np.percentile(mbps, 95))
    if p95 <= _KBPS_FROM:
        return
    unit, header = ("bit/s", "bps") if p95 > _BPS_FROM else ("kbit/s", "kbps")
    raise ConfigError(
        f"{path}: the rates of '{name}' (95th percentile {p95:g}) look like {unit}, not Mbit/s; name the column "
        f"'{header}' in a header to have them converted, or divide them"
    )


def _mahimahi(path: Path, lines: Sequence[tuple[int, list[str]]], rtt_ms: float) -> BandwidthTrace:
    at_ms = np.empty(len(lines), dtype=np.int64)
    before = 0
    for place, (number, words) in enumerate(lines):
        word = " ".join(words)
        if not word.isdigit() or len(word) > 15:
            raise ConfigError(
                f"{path}:{number}: got '{word}', expected one whole number of ms a line (mahimahi); a table needs its "
                "time and its rate in every row"
            )
        if int(word) < before:
            raise ConfigError(
                f"{path}:{number}: {word} ms does not rise above {before} ms of the line before; mahimahi files list "
                "delivery times in order, rates go into a table with times"
            )
        at_ms[place] = before = int(word)
    if before == 0:
        raise ConfigError(f"{path}: the last delivery is at 0 ms, so the trace has no length; {_ASK}")
    edges_ms = np.append(np.arange(0, before, _MAHIMAHI_BIN_MS), before)
    # An opportunity at m ms closes the millisecond before it; the file repeats after its last one.
    counts = np.bincount(np.maximum(at_ms - 1, 0) // _MAHIMAHI_BIN_MS, minlength=len(edges_ms) - 1)
    rates = counts * MAHIMAHI_BYTES * 8 / (np.diff(edges_ms) / 1000)
    return make_trace(edges_ms[:-1] / 1000, rates, rtt_ms, duration_s=before / 1000, name=path.name.split(".")[0])


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
