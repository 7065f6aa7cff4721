"""Spoken digits with one speaker after another left out, and each method's mean over them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from streamsplit.config import nearest
from streamsplit.errors import ConfigError
from streamsplit.evaluation.corpus import Corpus, digits_corpus, prepared_corpus
from streamsplit.evaluation.data.manifest import load_prepared
from streamsplit.evaluation.statistics import mean_interval

ALL = "all"


def digits_by_speaker(root: Path, wanted: Sequence[str]) -> list[Corpus]:
    """A corpus `digits-<speaker>` a left-out speaker, for `digits_corpus`'s folder; `wanted` are names, or ('all',).

    Raises ConfigError for an unknown speaker, and what `digits_corpus` raises.
    """
    last = digits_corpus(root)
    names = _names(wanted, sorted({*last.train.sources, *last.test.sources}))
    held = {name: last if name in last.test.sources else digits_corpus(root, name) for name in names}
    return [replace(corpus, name=f"{corpus.name}-{name}") for name, corpus in held.items()]


def prepared_by_speaker(folder: Path, wanted: Sequence[str]) -> list[Corpus]:
    """The same for prepared data whose folds are speakers; raises what `prepared_corpus` raises, too."""
    folds = speaker_folds(folder)
    held = {name: prepared_corpus(folder, folds[name]) for name in _names(wanted, folds)}
    return [replace(corpus, name=f"{corpus.name}-{name}") for name, corpus in held.items()]


def speaker_folds(folder: Path) -> dict[str, int]:
    """The fold of each speaker of a prepared data set; empty where folds are not one recording session each."""
    clips = load_prepared(folder)
    folds = {clip.session: clip.fold for clip in clips if clip.session and clip.fold is not None}
    apart = len(set(folds.values())) == len(folds) > 1 and all(clip.session in folds for clip in clips)
    return {name: fold for name, fold in sorted(folds.items()) if fold is not None} if apart else {}


def speaker_groups(corpora: Sequence[Corpus]) -> dict[str, list[str]]:
    """Names of corpora that differ in the speaker left out, by the data set's name; only where there are several."""
    groups: dict[str, list[str]] = {}
    for corpus in corpora:
        speaker = f"-{corpus.test.sources[0]}"
        if len(set(corpus.test.sources)) == 1 and corpus.name.endswith(speaker):
            groups.setdefault(corpus.name.removesuffix(speaker), []).append(corpus.name)
    return {name: data for name, data in groups.items() if len(data) > 1}


def speaker_means(
    cells: Sequence[Mapping[str, Any]], data: Sequence[str], figures: Sequence[str]
) -> list[dict[str, Any]]:
    """One row a method: every figure's mean over the data sets of a seed, then mean and 95 % interval over seeds.

    Only seeds that a method has on all of `data` count; none, no row. The interval says nothing of other speakers:
    how far apart these are is `<figure>_by_data`, the mean over seeds on each.
    """
    rows = []
    for method in dict.fromkeys(cell["method"] for cell in cells if cell["data"] in data):
        mine = {(cell["data"], cell["seed"]): cell for cell in cells if cell["method"] == method}
        seeds = sorted({seed for _, seed in mine if all((name, seed) in mine for name in data)})
        if not seeds:
            continue
        row: dict[str, Any] = {"method": method, "data": list(data), "seeds": len(seeds)}
        for figure in figures:
            table = np.array([[mine[name, seed]["figures"][figure] for name in data] for seed in seeds], float)
            row[figure] = mean_interval(table.mean(1).tolist()).as_dict()
            row[f"{figure}_by_data"] = dict(zip(data, table.mean(0).tolist(), strict=True))
        rows.append(row)
    return rows


def _names(wanted: Sequence[str], speakers: Collection[str]) -> list[str]:
    if ALL in wanted:
        return list(speakers)
    for name in wanted:
        if name not in speakers:
            raise ConfigError(f"got speaker '{name}'; {nearest(name, (*speakers, ALL))}")
    return list(dict.fromkeys(wanted))
