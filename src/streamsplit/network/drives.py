"""The measured drives of the data folder as traces: an uplink run each, with round trips and losses laid under it."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from streamsplit.config import nearest
from streamsplit.errors import ConfigError
from streamsplit.network.bandwidth import BandwidthTrace, make_trace

TRAINING_DRIVES = (1, 2)
VALIDATION_DRIVES = (3,)
ALL_DRIVES = (*TRAINING_DRIVES, *VALIDATION_DRIVES)
SHORTEST_S = 30.0
PINGS = 150  # of one recording, 30 s long
PING_S = 0.2  # between pings, as asked for
_PING_CLOCK_S = 0.2008  # between pings, as found in what was sent: median over recordings of all operators


class PingRecording(NamedTuple):
    """Thirty seconds of pings by when they were sent; a lost one holds the round trip before it."""

    rtt_ms: np.ndarray  # [PINGS]
    lost: np.ndarray  # [PINGS], 1.0 where no reply came, else 0.0


def read_drives(
    folder: Path, drives: Sequence[int] = TRAINING_DRIVES, operators: Sequence[str] | None = None
) -> list[BandwidthTrace]:
    """Runs of `folder`/traces (or of `folder` itself) as traces named by the run, in the order of the index.

    `operators` defaults to all. Runs shorter than 30 s are left out. Round trips are recordings of their own (30 s of
    pings): each operator's are dealt to its drives in order, in proportion to their runs, so that no two drives share
    one, and laid end to end under each run from the place in the drive where the run lies. Raises ConfigError.
    """
    folder = folder if (folder / "uplink_index.csv").exists() else folder / "traces"
    index = [(row["run"], row["operator"], _number(row["drive"])) for row in _rows(folder / "uplink_index.csv")]
    for what, asked, there in (
        ("drive", [str(drive) for drive in drives], {str(drive) for _, _, drive in index}),
        ("operator", list(operators or ()), {operator for _, operator, _ in index}),
    ):
        for name in asked:
            if name not in there:
                raise ConfigError(f"{folder}: no {what} '{name}'; {nearest(name, there)}")
    samples = _uplink(folder / "uplink_runs.csv.gz")
    traces: dict[str, BandwidthTrace] = {}
    for operator in dict.fromkeys(operator for _, operator, _ in index):
        if operators is not None and operator not in operators:
            continue
        mine = [(run, drive) for run, of, drive in index if of == operator]
        pings = read_pings(folder / f"rtt_{operator}.csv.gz")
        dealt = 0
        for drive in sorted({drive for _, drive in mine}):
            runs = [run for run, of in mine if of == drive]
            first, dealt = dealt, dealt + len(runs)
            if drive in drives:
                part = pings[first * len(pings) // len(mine) : dealt * len(pings) // len(mine)]
                traces.update(_laid_under(runs, samples, part, folder))
    return [traces[run] for run, _, _ in index if run in traces]


def read_pings(path: Path) -> list[PingRecording]:
    """The recordings of one operator in order; recordings without any reply are not in the file. Raises ConfigError.

    A row holds when a reply came; when its ping was sent is that less the round trip. Pings were sent on a steady
    clock, so what is missing on it was lost. Losses before the first reply cannot be seen.
    """
    replies: dict[str, list[tuple[float, float]]] = {}
    for line, row in enumerate(_rows(path), start=2):
        try:
            replies.setdefault(row["run"], []).append((float(row["t_s"]), float(row["rtt_ms"])))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}:{line}: not a ping ({error}); expected run,t_s,rtt_ms") from None
    if not replies:
        raise ConfigError(f"{path}: the file holds no pings; expected rows of run,t_s,rtt_ms")
    return [_recording(np.array(rows)) for rows in replies.values()]


def _recording(replies: np.ndarray) -> PingRecording:
    sent = (replies[:, 0] - replies[:, 1] / 1000) / _PING_CLOCK_S
    phase = np.angle(np.exp(2j * np.pi * sent).sum()) / (2 * np.pi)  # a wake-up late by a few ms must not cost a slot
    slots = np.round(sent - phase).astype(int)
    slots -= slots.min()
    order = np.argsort(slots, kind="stable")
    slots, rtts = slots[order], replies[order, 1]
    lost = np.ones(PINGS)
    lost[slots[slots < PINGS]] = 0.0
    before = np.maximum(np.searchsorted(slots, np.arange(PINGS), side="right") - 1, 0)
    return PingRecording(rtts[before], lost)


def _laid_under(
    runs: Sequence[str], samples: dict[str, np.ndarray], pings: Sequence[PingRecording], folder: Path
) -> Iterator[tuple[str, BandwidthTrace]]:
    if not pings:
        raise ConfigError(f"{folder}: fewer ping recordings than drives; give the whole data set")
    for place, run in enumerate(runs):
        if run not in samples:
            raise ConfigError(f"{folder}: the index names run '{run}', which uplink_runs.csv.gz does not hold")
        times, mbps = samples[run].T
        times = times - times[0]
        if times[-1] < SHORTEST_S:
            continue
        duration_s = float(2 * times[-1] - times[-2])
        count = -(-int(np.ceil(duration_s / PING_S)) // PINGS)
        start = place * len(pings) // len(runs)
        chosen = [pings[(start + number) % len(pings)] for number in range(count)]
        ping_times = np.arange(count * PINGS) * PING_S
        # On the union of the grids both hold exactly: the rate of the uplink's sample, the round trip of the ping's.
        union = np.unique(np.round(np.concatenate([times, ping_times[ping_times < duration_s]]), 6))
        rate_at = np.searchsorted(times, union + 1e-6, side="right") - 1
        ping_at = np.searchsorted(ping_times, union + 1e-6, side="right") - 1
        rtt_ms = np.concatenate([recording.rtt_ms for recording in chosen])[ping_at]
        lost = np.concatenate([recording.lost for recording in chosen])[ping_at]
        yield run, make_trace(union, mbps[rate_at] * 1e6, rtt_ms, lost, duration_s=duration_s, name=run)


def _uplink(path: Path) -> dict[str, np.ndarray]:
    """run -> [n, 2] of seconds and Mbit/s."""
    runs: dict[str, list[tuple[float, float]]] = {}
    for line, row in enumerate(_rows(path), start=2):
        try:
            runs.setdefault(row["run"], []).append((float(row["t_s"]), float(row["uplink_mbps"])))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}:{line}: not a sample ({error}); expected run,t_s,uplink_mbps") from None
    return {run: np.array(rows) for run, rows in runs.items()}


def _number(drive: str) -> int:
    digits = drive.removeprefix("drive")
    if not digits.isdigit():
        raise ConfigError(f"uplink_index.csv: got drive '{drive}', expected drive1, drive2, ...")
    return int(digits)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give the folder of measured drives") from error
    return csv.DictReader(text.splitlines())
