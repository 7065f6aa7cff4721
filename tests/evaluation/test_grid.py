"""The grid: cells are kept and not run again, other settings are refused, figures are what the oracles say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from streamsplit.errors import ConfigError, EncoderError
from streamsplit.evaluation.baselines.base import Budget, Effort, Outcome
from streamsplit.evaluation.corpus import Corpus, piece_vectors, synthetic_corpus
from streamsplit.evaluation.grid import GridSettings, load_vectors, run_grid
from streamsplit.evaluation.judge import judge, precision_against
from streamsplit.evaluation.learning_report import paired_rows, summarise

SETTINGS = GridSettings(methods=("mean_std", "five_statistics"), seeds=2)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return synthetic_corpus(20, 30.0)


def band_means(windows: np.ndarray) -> np.ndarray:
    return windows.mean(-1)


class Counting:
    """A method that counts its runs and, if told to, is interrupted in one of them."""

    name, about = "counting", "band means"

    def __init__(self, interrupted_at: int = -1) -> None:
        self.runs, self.interrupted_at = 0, interrupted_at

    def run(self, corpus, budget, seed, progress) -> Outcome:
        if self.runs == self.interrupted_at:
            raise KeyboardInterrupt
        self.runs += 1
        return Outcome(band_means, Effort(cpu_s=0.1), float("nan"), float("nan"))


def test_a_second_run_takes_every_cell_from_the_folder(corpus: Corpus, tmp_path: Path) -> None:
    counting = Counting()
    first = run_grid([corpus], SETTINGS, tmp_path, extra=[counting])
    again = run_grid([corpus], SETTINGS, tmp_path, extra=[counting])
    assert counting.runs == 2 and first == again
    order = [(cell["method"], cell["seed"]) for cell in first[:3]]
    assert order == [("mean_std", 0), ("mean_std", 1), ("five_statistics", 0)]
    assert load_vectors(tmp_path, first[0]).shape == (20, 256)
    assert {"code", "machine", "digest", "fingerprint"} <= set(first[0]) and first[0]["peak_rank"] is None
    more = run_grid([corpus], SETTINGS.replace(seeds=3), tmp_path, extra=[counting])
    assert counting.runs == 3 and len(more) == 9


def test_an_interrupted_run_keeps_what_is_done_and_leaves_no_half_cell(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_grid([corpus], SETTINGS, tmp_path, extra=[Counting(interrupted_at=1)])
    kept = {path.stem for path in (tmp_path / "cells").glob("*.json")}
    assert kept == {"synthetic-mean_std-0", "synthetic-five_statistics-0", "synthetic-counting-0",
                    "synthetic-mean_std-1", "synthetic-five_statistics-1"}  # fmt: skip
    assert not [path for path in (tmp_path / "cells").iterdir() if path.name.startswith(".")]
    counting = Counting()
    assert len(run_grid([corpus], SETTINGS, tmp_path, extra=[counting])) == 6 and counting.runs == 1


def test_results_of_another_budget_other_data_or_no_results_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    run_grid([corpus], SETTINGS.replace(methods=("mean_std",), seeds=1), tmp_path)
    with pytest.raises(ConfigError, match=r"results of other settings \(.* has budget\.\w+ .*, expected"):
        run_grid([corpus], SETTINGS.replace(budget=Budget(updates=7)), tmp_path)
    other = Corpus(corpus.name, corpus.learn, corpus.test, corpus.train, "")
    with pytest.raises(ConfigError, match="results on other data"):
        run_grid([other], SETTINGS, tmp_path)
    (tmp_path / "cells" / "synthetic-mean_std-0.json").write_text("{}")
    with pytest.raises(ConfigError, match="is no cell"):
        run_grid([corpus], SETTINGS, tmp_path)


def test_the_probe_and_the_neighbours_are_what_oracles_say(corpus: Corpus) -> None:
    judged = judge(corpus, band_means)
    train = piece_vectors(band_means(corpus.train.batch(slice(None))), corpus.train)
    test = piece_vectors(band_means(corpus.test.batch(slice(None))), corpus.test)
    scaler = StandardScaler().fit(train)
    best = max(
        LogisticRegression(C=c, max_iter=2000, tol=1e-3).fit(scaler.transform(train), corpus.train.labels)
        .score(scaler.transform(test), corpus.test.labels) for c in (1e-3, 1e-2, 1e-1, 1.0, 10.0)
    )  # fmt: skip
    assert judged.figures["probe"] <= best + 1e-9 and np.sum(judged.confusion) == 20
    vectors, labels = np.concatenate([test, train]), [*corpus.test.labels, *corpus.train.labels]
    shares = []
    for row in range(len(test)):
        cosine = [float(v @ vectors[row] / np.linalg.norm(v) / np.linalg.norm(vectors[row])) for v in vectors]
        order = [i for i in np.argsort(-np.array(cosine)) if i != row][:10]  # every scene is a recording of its own
        shares.append(np.mean([labels[i] == labels[row] for i in order]))
    got = precision_against(test, corpus.test.labels, corpus.test.sources, train, corpus, 10)
    assert got == pytest.approx(np.mean(shares)) == judged.figures["precision_at_10_all"]


def test_vectors_that_are_not_finite_are_refused(corpus: Corpus) -> None:
    with pytest.raises(EncoderError, match="NaN or infinity in"):
        judge(corpus, lambda windows: np.full((len(windows), 4), np.nan))


def cell(method: str, seed: int, probe: float) -> dict:
    figures = dict.fromkeys(
        ("precision_at_10", "precision_at_10_all", "silhouette", "effective_rank", "uniformity"), 0.5
    )
    effort = Effort(heard=10, heard_s=3600.0, uplink_bytes=2_000_000, sent=2).as_dict()
    return {"data": "d", "method": method, "seed": seed, "about": "", "notes": [], "effort": effort,
            "figures": {"probe": probe, "probe_standard_error": 0.1, **figures}}  # fmt: skip


def test_the_summary_has_students_intervals_and_pairs_seeds() -> None:
    ours, theirs = (0.8, 0.9, 0.85), (0.7, 0.82, 0.76)
    cells = [cell("streamsplit", seed, value) for seed, value in enumerate(ours)]
    cells += [cell("edge_only", seed, value) for seed, value in enumerate(theirs)]
    rows = {row["method"]: row for row in summarise(cells)}
    half = 4.302652729911275 * np.std(ours, ddof=1) / np.sqrt(3)  # t quantile of two degrees of freedom
    assert rows["streamsplit"]["probe"]["high"] == pytest.approx(0.85 + half)
    assert rows["edge_only"]["uplink_mb_per_h"] == pytest.approx(2.0)
    assert rows["edge_only"]["share_sent"] == pytest.approx(0.2)
    (pair,) = paired_rows(cells)
    from scipy.stats import ttest_rel

    assert pair["difference"]["mean"] == pytest.approx(0.09) and pair["t_p"] == pytest.approx(
        ttest_rel(ours, theirs).pvalue
    )


def test_settings_know_their_methods_and_change_their_digest_with_the_budget_only() -> None:
    with pytest.raises(ConfigError, match="did you mean 'fedcl'"):
        GridSettings(methods=("fedcll",))
    assert SETTINGS.digest == SETTINGS.replace(seeds=9).digest != GridSettings(budget=Budget(updates=2)).digest
    streams = GridSettings.from_mapping({"stream": {"run_clips": 8.0}})
    assert streams.digest != SETTINGS.digest and streams.stream.shift == "abrupt"
    assert json.dumps(SETTINGS.as_dict())
