"""The grid: every (data set, method, seed) is a cell with a file of its own, so a stopped run can go on."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from streamsplit.config import Settings, section, setting
from streamsplit.errors import ConfigError
from streamsplit.evaluation.baselines.base import Budget, Method, Outcome
from streamsplit.evaluation.baselines.catalogue import NAMES, START, methods
from streamsplit.evaluation.baselines.checkpoint import GivenEncoder
from streamsplit.evaluation.corpus import Corpus
from streamsplit.evaluation.hearing import HearingSettings
from streamsplit.evaluation.judge import Judgement, judge, plain_figures
from streamsplit.evaluation.provenance import machine, revision_of_code
from streamsplit.evaluation.uncertainty_study import study_uncertainty
from streamsplit.weights.pretrained import pretrained_file

Progress = Callable[[int, int, str], None]  # cells done, cells in all, what was last
FORMAT = 2
STUDIED = ("streamsplit",)  # whose uncertainty is held against error and benefit


@dataclass(frozen=True, kw_only=True)
class GridSettings(Settings):
    """What is compared; `methods` and `seeds` may grow over a results folder, budget and stream may not change."""

    methods: tuple[str, ...] = setting(NAMES)
    seeds: int = setting(5, low=1, high=1000)
    budget: Budget = section(Budget)
    stream: HearingSettings = section(HearingSettings)

    def check(self) -> None:
        """Method names must be known."""
        if not self.methods:
            raise ConfigError("got no methods, expected at least one of " + ", ".join(NAMES))
        methods(self.methods)

    @property
    def digest(self) -> str:
        """Names what every cell depends on."""
        held = {"format": FORMAT, "budget": self.budget.identity(), "stream": self.stream.as_dict()}
        return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()[:16]


class CellName(NamedTuple):
    """One cell."""

    data: str
    method: str
    seed: int

    @property
    def key(self) -> str:
        """Its file's name, without the ending."""
        return f"{self.data}-{self.method}-{self.seed}"


def run_grid(
    corpora: Sequence[Corpus],
    settings: GridSettings,
    output: Path,
    *,
    extra: Sequence[Method] = (),
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Runs the cells that are not there yet and gives all of them, by data set, method and seed.

    `extra` are methods that only this caller has, such as a given checkpoint; where the budget has a start, that is a
    row of its own too. An interrupted run leaves its finished cells. Raises, before anything runs, ConfigError where
    `output` holds cells of another budget, stream or data, CheckpointError where the start is no published encoder.
    """
    corpora = as_heard(corpora, settings)
    contestants = methods(settings.methods) + start_row(settings.budget) + list(extra)
    wanted = [
        (corpus, contestant, CellName(corpus.name, contestant.name, seed))
        for seed in range(settings.seeds)  # a stopped run has few seeds of everything, not all of a few methods
        for corpus in corpora
        for contestant in contestants
    ]
    folder = output / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    for corpus in corpora:
        check_folder(folder, corpus, settings)
    cells = {}
    for done, (corpus, contestant, name) in enumerate(wanted):
        path = folder / f"{name.key}.json"
        if path.exists():
            cells[name] = json.loads(path.read_text(encoding="utf-8"))
            continue
        tell = _teller(progress, done, len(wanted), name)
        tell(0.0, "starts")
        cells[name] = run_cell(corpus, contestant, name, settings, folder, tell)
        if progress is not None:
            progress(done + 1, len(wanted), f"{name.key}: probe {cells[name]['figures']['probe']:.3f}")
    order = {contestant.name: row for row, contestant in enumerate(contestants)}
    return [cells[name] for name in sorted(cells, key=lambda name: (name.data, order[name.method], name.seed))]


def start_row(budget: Budget) -> list[Method]:
    """The budget's published start as a method that learns nothing; none without a start. CheckpointError."""
    if not budget.start:
        return []
    return [GivenEncoder(pretrained_file(budget.start), START, f"{budget.start_about}, the common start as it is")]


def as_heard(corpora: Sequence[Corpus], settings: GridSettings) -> list[Corpus]:
    """The corpora with the streams, and the fleet behind a single device's, that the settings say."""
    return [replace(corpus, hearing=settings.stream, fleet=settings.budget.devices) for corpus in corpora]


def run_cell(
    corpus: Corpus,
    contestant: Method,
    name: CellName,
    settings: GridSettings,
    folder: Path,
    tell: Callable[[float, str], None],
) -> dict[str, Any]:
    """Learns, judges, and writes the cell's two files: vectors first, so that a JSON means a finished cell."""
    started = time.process_time()
    outcome = contestant.run(corpus, settings.budget, name.seed, tell)
    judged = judge(corpus, outcome.embed, name.seed)
    cell = _cell(corpus, contestant, name, settings, outcome, judged) | {"cpu_s": time.process_time() - started}
    encoder = outcome.encoder if contestant.name in STUDIED else None
    if encoder is not None:
        tell(1.0, "its uncertainty")
        cell["uncertainty"] = study_uncertainty(corpus, encoder, name.seed).as_dict()
    with write_beside(folder / f"{name.key}.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, vectors=judged.vectors.astype(np.float16))
    with write_beside(folder / f"{name.key}.json") as path:
        path.write_text(json.dumps(plain(cell), indent=1) + "\n", encoding="utf-8")
    return dict(plain(cell))


def check_folder(folder: Path, corpus: Corpus, settings: GridSettings) -> None:
    """Refuses a folder whose cells of this data set come from another budget, stream, or other data of that name."""
    for path in sorted(folder.glob(f"{corpus.name}-*.json")):
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            digest, fingerprint, data = held["digest"], held["fingerprint"], held["data"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: is no cell ({type(error).__name__}); delete it, it is measured anew") from None
        if data != corpus.name:
            continue
        if digest != settings.digest:
            raise ConfigError(
                f"{folder.parent}: got results of other settings ({path.name} has {_other(held, settings)}); use "
                "another --output-dir, or run with the settings in it"
            )
        if fingerprint != corpus.fingerprint:
            raise ConfigError(
                f"{folder.parent}: got results on other data named '{corpus.name}' ({path.name}), expected those of "
                "this data; use another --output-dir"
            )


def _other(held: Mapping[str, Any], settings: GridSettings) -> str:
    """The first setting in which a cell differs, in words."""
    before, now = held.get("budget") or {}, json.loads(json.dumps(settings.budget.as_dict()))
    for name, value in now.items():
        if before.get(name) != value:
            return f"budget.{name} {before.get(name)}, expected {value}"
    return f"another stream or format, {held.get('digest')}, expected {settings.digest}"


class write_beside:
    """`with write_beside(path) as temporary:` puts what was written there in place of `path` at once, or nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}")

    def __enter__(self) -> Path:
        return self._temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink(missing_ok=True)


def load_vectors(output: Path, cell: Mapping[str, Any]) -> np.ndarray:
    """The test pieces' vectors [m, d] of a finished cell."""
    name = CellName(cell["data"], cell["method"], cell["seed"])
    with np.load(output / "cells" / f"{name.key}.npz", allow_pickle=False) as held:
        vectors: np.ndarray = held["vectors"].astype(np.float32)
    return vectors


def plain(value: Any) -> Any:
    """The same for JSON: numbers that it does not have become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def _cell(
    corpus: Corpus, contestant: Method, name: CellName, settings: GridSettings, outcome: Outcome, judged: Judgement
) -> dict[str, Any]:
    return {
        **name._asdict(), "about": contestant.about, "digest": settings.digest, "fingerprint": corpus.fingerprint,
        "held_out": corpus.held_out, "test_labels": list(corpus.test.labels), **plain_figures(judged),
        "effort": outcome.effort.as_dict(), "peak_rank": outcome.peak_rank, "last_rank": outcome.last_rank,
        "notes": list(outcome.notes), "budget": settings.budget.as_dict(),
        "start": settings.budget.start_about, "code": revision_of_code(),
        "machine": machine(), "unix_s": round(time.time()),
    }  # fmt: skip


def _teller(progress: Progress | None, done: int, total: int, name: CellName) -> Callable[[float, str], None]:
    def tell(share: float, text: str) -> None:
        if progress is not None:
            progress(done, total, f"{name.key} {share:.0%}, {text}")

    return tell
