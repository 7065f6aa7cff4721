"""The rows of the loss ablation: one class with other settings, and sparse windows that really arrive out of order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from streamsplit.errors import ConfigError
from streamsplit.evaluation.baselines.ablation import ABLATION, ARRIVALS, TERMS, ablated
from streamsplit.evaluation.baselines.arrivals import Arrivals, Sent
from streamsplit.evaluation.baselines.base import Budget, Outcome
from streamsplit.evaluation.baselines.catalogue import NAMES, method, methods
from streamsplit.evaluation.baselines.streamsplit import REFINER, SHARE_SENT
from streamsplit.evaluation.corpus import Corpus
from streamsplit.evaluation.grid import GridSettings
from streamsplit.refinement.refiner import Refiner

BUDGET = Budget(heard=96, windows=64, updates=3, server_batch=16, devices=2)
PIXEL = np.zeros((1, 1), np.float32)


def sent(window: int, device: str = "a") -> Sent:
    return Sent(device, window, PIXEL, PIXEL[0], "", False)


def arrivals_of(link: Arrivals, count: int) -> list[tuple[int, int]]:
    """(when, window) of everything that arrives when one window a step is sent."""
    seen = []
    for now in range(count + link.late_windows + 1):
        if now < count:
            link.send(now, sent(now))
        seen += [(now, item.window) for item in link.due(now)]
    return seen


Run = tuple[Outcome, list[tuple[str, int]]]
HELD: dict[str, Run] = {}
STARTED_AT: dict[str, int] = {}  # windows that the server had when it fitted the start


def run(name: str, corpus: Corpus) -> Run:
    """The method's outcome, and the (device, window) that its refiner took in their order; once for all tests."""
    if name not in HELD:
        added: list[tuple[str, int]] = []
        add, warm_start = Refiner.add, Refiner.warm_start

        def started(refiner: Refiner) -> bool:
            done = warm_start(refiner)
            if done:
                STARTED_AT[name] = len(added)
            return done

        def watched(refiner: Refiner, device: str, window: int, *args: object, **named: object) -> bool:
            added.append((device, window))
            return add(refiner, device, window, *args, **named)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Refiner, "add", watched)
            patch.setattr(Refiner, "warm_start", started)
            HELD[name] = method(name).run(corpus, BUDGET, 0, lambda share, text: None), added
    return HELD[name]


def test_without_delay_or_loss_every_window_arrives_when_it_is_sent() -> None:
    assert arrivals_of(Arrivals(), 20) == [(now, now) for now in range(20)]


def test_late_windows_keep_the_bound_are_reordered_and_some_are_lost_alike_for_a_seed() -> None:
    link = Arrivals(10, 0.2, seed=4)
    seen = arrivals_of(link, 1000)
    windows = [window for _, window in seen]
    delays = np.array([when - window for when, window in seen])
    assert delays.min() == 0 and delays.max() == 10 and delays.mean() == pytest.approx(5.0, abs=0.5)
    assert len(set(windows)) == len(windows) == 1000 - link.lost and link.lost == pytest.approx(200, abs=40)
    newest = np.maximum.accumulate(windows)
    assert link.overtaken == (newest > windows).sum() > 300
    assert seen == arrivals_of(Arrivals(10, 0.2, seed=4), 1000) != arrivals_of(Arrivals(10, 0.2, seed=5), 1000)


def test_what_is_sent_at_once_is_neither_late_nor_lost() -> None:
    link = Arrivals(50, 1.0)
    link.send(3, sent(0), at_once=True)
    link.send(3, sent(1))
    assert [item.window for item in link.due(3)] == [0] and link.due(1000) == [] and link.lost == 1


def test_the_rows_are_every_term_with_dense_and_sparse_arrivals() -> None:
    assert [row.name for row in ABLATION] == [f"ablation_{term}_{arrival}" for term in TERMS for arrival in ARRIVALS]
    used = {}
    for row in ABLATION:
        loss = row.refiner.loss
        used[row.name] = (loss.distribution, *loss.weights)
        assert row.refiner.replace(loss=REFINER.loss) == REFINER
    assert used["ablation_sw_lap_dense"] == ("sw", 0.1, 0.01) and used["ablation_sw_sparse"] == ("sw", 0.1, 0.0)
    assert used["ablation_lap_dense"] == ("none", 0.1, 0.01) and used["ablation_none_sparse"] == ("none", 0.1, 0.0)
    assert used["ablation_mmd_dense"] == ("mmd", 0.1, 0.0) and used["ablation_kl_dense"] == ("kl", 0.1, 0.0)


def test_the_rows_are_known_by_name_and_as_a_group_but_do_not_run_unasked() -> None:
    assert not {row.name for row in ABLATION} & set(NAMES)
    assert method("ablation_mse_sparse") is ABLATION[3]
    asked = methods(["streamsplit", "ablation_sw_dense", "ablation"])
    assert [row.name for row in asked[:2]] == ["streamsplit", "ablation_sw_dense"] and len(asked) == 1 + len(ABLATION)
    assert GridSettings(methods=("ablation",)).digest == GridSettings().digest
    with pytest.raises(ConfigError, match="did you mean 'ablation_mmd_dense'"):
        methods(["ablation_mmd_dens"])


def test_dense_sends_every_window_in_order_after_a_start_of_every_second_pair(corpus: Corpus) -> None:
    outcome, added = run("ablation_none_dense", corpus)
    heard = [(f"device{number % 2}", number // 2) for number in range(BUDGET.heard)]
    start = [(device, window) for device, window in heard if window % 4 < 2][: STARTED_AT["ablation_none_dense"]]
    assert len(start) == 17 and added == start + heard[heard.index(start[-1]) + 1 :]
    assert outcome.effort.sent == len(added) and outcome.effort.server_updates == BUDGET.updates


def test_sparse_sends_under_a_quarter_late_reordered_and_with_losses(corpus: Corpus) -> None:
    outcome, added = run("ablation_sw_lap_sparse", corpus)
    assert len(added) < outcome.effort.sent <= SHARE_SENT * BUDGET.heard and outcome.effort.server_updates > 0
    first = [window for device, window in added if device == "device0"]
    assert first != sorted(first) and any("lost" in note for note in outcome.notes)


def test_dense_and_sparse_start_from_the_same_windows(corpus: Corpus) -> None:
    (_, dense), (_, sparse) = (run(name, corpus) for name in ("ablation_none_dense", "ablation_sw_lap_sparse"))
    count = STARTED_AT["ablation_none_dense"]
    assert count == STARTED_AT["ablation_sw_lap_sparse"] > 0 and dense[:count] == sparse[:count]


def test_a_term_changes_what_is_learned(corpus: Corpus) -> None:
    windows = corpus.test.batch(slice(0, 4))
    mse, both = (run(name, corpus)[0].embed(windows) for name in ("ablation_mse_sparse", "ablation_sw_lap_sparse"))
    assert np.isfinite(mse).all() and not np.array_equal(mse, both)


def test_ablated_with_the_default_arrivals_is_streamsplit_itself(corpus: Corpus) -> None:
    windows = corpus.test.batch(slice(0, 4))
    same = ablated("sw_lap", "sparse")
    same.late_windows, same.lost_share = 0, 0.0
    budget = BUDGET.replace(heard=64, updates=2)
    ours = method("streamsplit").run(corpus, budget, 1, lambda share, text: None)
    other = same.run(corpus, budget, 1, lambda share, text: None)
    assert np.array_equal(ours.embed(windows), other.embed(windows))
    assert replace(ours.effort, cpu_s=0.0) == replace(other.effort, cpu_s=0.0)
