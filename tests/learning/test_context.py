"""Uncertainty from context: known neighbours are foretold, windows that anything follows are uncertain."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamsplit.errors import CheckpointError, ConfigError
from streamsplit.learning.context import LEAST_WINDOWS, ContextUncertainty, _around, _spherical_k_means

DIM, SOURCES = 12, 5
QUIET = SOURCES  # direction of silence, which every source falls into now and then


def stream(windows: int, rng: np.random.Generator) -> np.ndarray:
    """Runs of 12 windows of one source, each its own direction; a third of all windows are silent."""
    kinds = np.repeat(rng.integers(SOURCES, size=windows // 12 + 1), 12)[:windows]
    kinds = np.where(rng.random(windows) < 1 / 3, QUIET, kinds)
    z = np.eye(DIM)[kinds] + 0.05 * rng.standard_normal((windows, DIM))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def taught(heard: int = 600, **settings: int) -> ContextUncertainty:
    measure = ContextUncertainty(DIM, centres=8, **settings)
    for index, z in enumerate(stream(heard, np.random.default_rng(1))):
        measure.observe(z, index)
    return measure


def test_silence_is_uncertain_though_nothing_is_heard_more_often() -> None:
    measure = taught()
    silence = measure.value(np.eye(DIM, dtype=np.float32)[QUIET])
    assert all(measure.value(np.eye(DIM, dtype=np.float32)[source]) < silence - 0.1 for source in range(SOURCES))


def test_neighbours_of_a_source_are_expected_where_they_were_heard() -> None:
    measure = taught()
    likely = [set(np.argsort(-measure.probabilities(row))[:2]) for row in np.eye(DIM, dtype=np.float32)[:SOURCES]]
    assert len({tuple(sorted(each)) for each in likely}) == SOURCES


def test_the_value_is_log_c_less_the_divergence_from_the_mean_prediction() -> None:
    stats = pytest.importorskip("scipy.stats")
    measure = taught(LEAST_WINDOWS)  # one fit, over exactly these windows
    rows = stream(LEAST_WINDOWS, np.random.default_rng(1)).astype(np.float16).astype(np.float32)
    mean = np.mean([measure.probabilities(row) for row in rows], axis=0)
    for row in rows[:10]:
        divergence = stats.entropy(measure.probabilities(row), mean)
        assert measure.value(row) == pytest.approx(max(math.log(8) - divergence, 0.0), abs=1e-4)


def test_before_the_first_fit_everything_is_equally_uncertain() -> None:
    measure = taught(LEAST_WINDOWS - 1)
    assert not measure.ready
    assert measure.value(np.ones(DIM, np.float32)) == pytest.approx(math.log(8))
    assert np.allclose(measure.probabilities(np.ones(DIM, np.float32)), 1 / 8)


def test_neighbourhoods_are_those_of_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    indices = np.sort(rng.choice(60, 25, replace=False))
    shares = rng.random((25, 3)).astype(np.float32)
    means, known = _around(shares, indices, 3)
    for row in range(25):
        near = [other for other in range(25) if other != row and abs(indices[other] - indices[row]) <= 3]
        assert known[row] == bool(near)
        assert np.allclose(means[row], shares[near].mean(0) if near else 0.0, atol=1e-6)


def test_a_centre_that_nobody_is_closest_to_moves_to_what_is_explained_worst() -> None:
    z = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 1, 2]]
    start = np.array([[1, 0, 0], [0.1, 1, 0], [-1, 0, 0]], np.float32)
    centres = _spherical_k_means(z, start / np.linalg.norm(start, axis=1, keepdims=True), 2)
    assert {tuple(row) for row in centres.round(6).tolist()} == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}


def test_memory_is_bounded_and_old_windows_leave() -> None:
    measure = taught(400, windows=128)
    before = measure.state_bytes()
    for index, z in enumerate(stream(300, np.random.default_rng(2))):
        measure.observe(z, 400 + index)
    assert measure.state_bytes() == before
    assert measure.state()["indices"].min() == 700 - 128


def test_results_may_arrive_in_any_order() -> None:
    rows = stream(LEAST_WINDOWS, np.random.default_rng(3))
    ordered, mixed = ContextUncertainty(DIM, centres=8), ContextUncertainty(DIM, centres=8)
    for index in range(LEAST_WINDOWS):
        ordered.observe(rows[index], index)
    for index in np.random.default_rng(4).permutation(LEAST_WINDOWS):
        mixed.observe(rows[index], int(index))
    assert mixed.value(rows[0]) == ordered.value(rows[0])


def test_embeddings_that_are_all_alike_stay_finite() -> None:
    measure = ContextUncertainty(DIM, centres=8)
    for index in range(3 * LEAST_WINDOWS):
        measure.observe(np.eye(DIM, dtype=np.float32)[0], index)
    assert measure.ready and math.isfinite(measure.value(np.eye(DIM, dtype=np.float32)[1]))


def test_a_saved_state_goes_on_exactly() -> None:
    first, other = taught(300), ContextUncertainty(DIM, centres=8)
    other.load_state(first.state())
    for index, z in enumerate(stream(200, np.random.default_rng(5))):
        first.observe(z, 300 + index)
        other.observe(z, 300 + index)
        assert first.value(z) == other.value(z)
    with pytest.raises(CheckpointError, match="'means'"):
        ContextUncertainty(DIM, centres=9).load_state(first.state())


def test_what_does_not_fit_is_refused() -> None:
    for settings in ({"centres": 1}, {"windows": 100}, {"reach": 0}, {"temperature": 0.0}):
        with pytest.raises(ConfigError, match="expected"):
            ContextUncertainty(DIM, **settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="finite"):
        ContextUncertainty(DIM).observe(np.full(DIM, np.nan, np.float32), 0)
