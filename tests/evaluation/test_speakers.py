"""Means over left-out speakers: seed by seed first, and only of seeds that saw every speaker."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplit.evaluation.speakers import speaker_means
from streamsplit.evaluation.statistics import mean_interval


def cell(data: str, method: str, seed: int, probe: float) -> dict:
    return {"data": data, "method": method, "seed": seed, "figures": {"probe": probe}}


def test_the_interval_is_that_of_the_seeds_means_over_speakers() -> None:
    table = np.random.default_rng(0).uniform(size=(4, 3))  # seeds, speakers
    cells = [cell(f"d-{s}", "m", seed, table[seed, s]) for seed in range(4) for s in range(3)]
    (row,) = speaker_means(cells, ["d-0", "d-1", "d-2"], ["probe"])
    assert row["probe"] == mean_interval(table.mean(1).tolist()).as_dict() and row["seeds"] == 4
    assert list(row["probe_by_data"].values()) == pytest.approx(table.mean(0))


def test_a_seed_that_lacks_a_speaker_does_not_count_and_a_method_without_a_seed_has_no_row() -> None:
    cells = [cell("d-0", "m", 0, 0.2), cell("d-1", "m", 0, 0.4), cell("d-0", "m", 1, 0.9), cell("d-0", "n", 0, 0.5)]
    rows = speaker_means([*cells, cell("other", "m", 1, 0.0)], ["d-0", "d-1"], ["probe"])
    assert [(row["method"], row["seeds"]) for row in rows] == [("m", 1)]
    assert rows[0]["probe"]["mean"] == pytest.approx(0.3)
