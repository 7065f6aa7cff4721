"""A common published start: everything that learns begins with its weights in its space, and nothing is fitted anew."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from streamsplit.encoders import projection
from streamsplit.encoders.base import SplitEncoder
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.encoders.fixed import fixed_vector
from streamsplit.errors import CheckpointError, ConfigError
from streamsplit.evaluation.baselines import base, streamsplit
from streamsplit.evaluation.baselines.base import Budget, Outcome, fitted_encoder
from streamsplit.evaluation.baselines.catalogue import REFERENCES, START, method
from streamsplit.evaluation.corpus import Corpus
from streamsplit.evaluation.grid import GridSettings, run_grid
from streamsplit.learning import learner
from streamsplit.refinement import refiner
from streamsplit.refinement.refiner import Refiner
from streamsplit.weights.pretrained import pack_pretrained
from streamsplit.weights.revision import encoder_weights

SETTINGS = EncoderSettings(seed=11)
CARD = {
    "name": "tiny", "licence": "CC BY 4.0", "data": "none", "hours": 0.0, "command": "none", "commit": "0" * 7,
    "metrics": {},
}  # fmt: skip
UNLEARNED = Budget(heard=72, windows=64, updates=1, converge_updates=1, server_batch=16, devices=3)


def publish(path: Path, corpus: Corpus, seed: int = 0) -> Path:
    """A fresh encoder with a projection fitted to the corpus, as a published file."""
    encoder = make_encoder(SETTINGS)
    projection.fit_projection(encoder, corpus.learn.batch(slice(0, 48)), seed)
    path.write_bytes(pack_pretrained(encoder_weights(encoder), SETTINGS, CARD)[0])
    return path


@pytest.fixture(scope="module")
def start(tmp_path_factory, corpus: Corpus) -> str:
    return str(publish(tmp_path_factory.mktemp("start") / "tiny.safetensors", corpus))


@pytest.fixture
def never_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any fit of a projection is an error."""

    def refuse(*_: object) -> None:
        raise AssertionError("a projection was fitted anew")

    for place in (base, learner, refiner):
        monkeypatch.setattr(place, "fit_projection", refuse)


def run(name: str, corpus: Corpus, budget: Budget, seed: int = 0) -> Outcome:
    return method(name).run(corpus, budget, seed, lambda share, text: None)


def assert_near(got: SplitEncoder | None, start: str, most: float) -> None:
    """Weights less than `most` of the start's norm away from it, which another seed's are not."""
    assert got is not None
    own, first = encoder_weights(got), base.published(start).weights
    apart = np.sqrt(sum(np.square(own[name] - first[name]).sum() for name in first))
    norm = np.sqrt(sum(np.square(array).sum() for array in first.values()))
    assert apart <= most * norm, apart / norm


LEARNERS = ("edge_only", "edge_only_same_memory", "fedcl", "fsl", "heuristic_split", "streamsplit_merge",
            "server_only", "ablation_none_sparse")  # fmt: skip


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.usefixtures("never_fitted")
def test_what_learns_begins_with_the_published_weights_and_fits_no_projection(
    name: str, corpus: Corpus, start: str
) -> None:
    outcome = run(name, corpus, UNLEARNED.replace(start=start), 5)
    assert_near(outcome.encoder, start, 0.1)
    vectors = outcome.embed(corpus.test.batch(slice(0, 4)))
    assert np.isfinite(vectors).all() and np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(4), abs=1e-4)
    assert not any("begins untrained" in note for note in outcome.notes)


@pytest.mark.parametrize("name", ["released", "leo"])
def test_what_has_an_encoder_of_its_own_says_that_it_begins_untrained(name: str, corpus: Corpus, start: str) -> None:
    outcome = run(name, corpus, UNLEARNED.replace(start=start, heard=64))
    assert any("begins untrained" in note for note in outcome.notes)


def test_devices_that_learn_from_a_start_fit_target_and_predictor(corpus: Corpus, start: str) -> None:
    outcome = run("edge_only_same_memory", corpus, UNLEARNED.replace(start=start, heard=200, updates=2))
    assert outcome.effort.updates == 2 and outcome.effort.windows == 64
    assert outcome.encoder is not None
    moved = encoder_weights(outcome.encoder)
    first = base.published(start).weights
    assert any(not np.array_equal(moved[name], first[name]) for name in first)
    assert_near(outcome.encoder, start, 0.3)


def test_no_window_goes_up_for_a_published_start(corpus: Corpus, start: str) -> None:
    budget = UNLEARNED.replace(windows=64, updates=2)
    with_start, without = run("fsl", corpus, budget.replace(start=start)), run("fsl", corpus, budget)
    assert with_start.effort.updates == without.effort.updates == 0  # the buffers are still filling
    assert with_start.effort.uplink_bytes == with_start.effort.sent == 0 < without.effort.uplink_bytes


@pytest.mark.usefixtures("never_fitted")
def test_streamsplit_gates_from_its_first_window_and_spreads_pairs_while_its_memory_is_cold(
    corpus: Corpus, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    add = Refiner.add

    def watched(self: Refiner, device: str, window: int, **named: object) -> bool:
        taken.append(window)
        return add(self, device, window, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Refiner, "add", watched)
    budget = UNLEARNED.replace(heard=120, devices=1, updates=2, start=start)
    effort = run("streamsplit", corpus, budget).effort
    allowed = int(streamsplit.SHARE_SENT * 120)
    assert 0.5 * allowed < effort.sent == len(taken) <= allowed
    cold = [window for window in taken if window < 50]  # a mixture's cold start
    runs = [window // 2 for window in cold]
    assert runs == sorted(2 * sorted(set(runs)))  # whole pairs
    assert len(cold) == pytest.approx(50 * allowed / 120, abs=2) and np.ptp(np.diff(sorted(set(runs)))) <= 1
    assert effort.server_updates == 2 and effort.uplink_bytes > 0


def test_seeds_share_a_published_start_and_nothing_else_does(corpus: Corpus, start: str) -> None:
    first, second = (encoder_weights(fitted_encoder(corpus, Budget(start=start), seed)) for seed in (0, 1))
    held = base.published(start).weights
    assert all(np.array_equal(first[name], held[name]) and np.array_equal(second[name], held[name]) for name in held)
    untrained = [encoder_weights(fitted_encoder(corpus, Budget(), seed)) for seed in (0, 1)]
    assert any(not np.array_equal(untrained[0][name], untrained[1][name]) for name in held)


def test_the_start_is_part_of_the_settings_by_its_weights_not_its_name(
    tmp_path: Path, corpus: Corpus, start: str
) -> None:
    copy, other = tmp_path / "copy.safetensors", publish(tmp_path / "other.safetensors", corpus, seed=1)
    copy.write_bytes(Path(start).read_bytes())
    plain, given, copied, another = (
        GridSettings(budget=Budget(start=name)).digest for name in ("", start, str(copy), str(other))
    )
    assert given == copied and len({plain, given, another}) == 3


def test_cells_without_a_start_are_those_of_settings_that_knew_of_none() -> None:
    assert "start" not in Budget().identity() and {*Budget().identity(), "start"} == set(Budget().as_dict())


def test_the_start_itself_is_a_row_and_another_start_needs_another_folder(
    tmp_path: Path, corpus: Corpus, start: str
) -> None:
    settings = GridSettings(methods=("mean_std",), seeds=1, budget=UNLEARNED.replace(start=start))
    rows = run_grid([corpus], settings, tmp_path / "out")
    assert [row["method"] for row in rows] == ["mean_std", START] and START in REFERENCES
    assert "tiny (mobilenet, " in rows[1]["about"] and rows[1]["effort"]["updates"] == 0
    encoder = fitted_encoder(corpus, settings.budget, 3)
    windows = torch.from_numpy(corpus.test.batch(slice(0, 3)))
    assert encoder(windows).shape == (3, 128)
    with pytest.raises(ConfigError, match="other settings"):
        run_grid([corpus], settings.replace(budget=UNLEARNED), tmp_path / "out")
    held = json.loads((tmp_path / "out" / "cells" / f"synthetic-{START}-0.json").read_text())
    assert held["start"] == settings.budget.start_about


def test_an_unknown_start_fails_before_anything_runs(tmp_path: Path, corpus: Corpus) -> None:
    settings = GridSettings(methods=("mean_std",), seeds=1, budget=Budget(start="nobody"))
    with pytest.raises(CheckpointError, match="got 'nobody', expected a packaged encoder"):
        run_grid([corpus], settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_fixed_row_with_the_course_in_time_is_its_half_whitened_principal_directions(corpus: Corpus) -> None:
    outcome = run("fixed_course_pca", corpus, UNLEARNED)
    got = outcome.embed(corpus.test.batch(slice(0, 12)))
    assert got.shape == (12, 128) and outcome.effort.updates == 0 and "fixed_course_pca" in REFERENCES
    oracle = PCA(svd_solver="full").fit(fixed_vector(corpus.learn.batch(slice(None))).astype(np.float64))
    kept = oracle.transform(fixed_vector(corpus.test.batch(slice(0, 12))))
    rank = int((oracle.singular_values_ > 1e-3 * oracle.singular_values_[0]).sum())
    half = kept[:, :rank] / np.sqrt(oracle.singular_values_[:rank])

    def gram(x: np.ndarray) -> np.ndarray:
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        return unit @ unit.T

    assert np.allclose(gram(got), gram(half), atol=0.05)  # the rotation does not matter
