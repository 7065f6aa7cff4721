"""Where learning begins, and that it does not end below that: the start of StreamSplit and of Server-Only."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamsplit.evaluation.baselines import server_only, streamsplit
from streamsplit.evaluation.baselines.base import Budget, heard_by
from streamsplit.evaluation.baselines.catalogue import method
from streamsplit.evaluation.corpus import Corpus
from streamsplit.refinement.refiner import Refiner
from streamsplit.weights.revision import Weights, encoder_weights

BUDGET = Budget(heard=96, windows=64, updates=3, converge_updates=3, server_batch=16, devices=2)


def quiet(share: float, text: str) -> None:
    """Progress that nobody looks at."""


def kept_starts(monkeypatch: pytest.MonkeyPatch) -> list[Weights]:
    """Fills with the weights of every start that is fitted from now on."""
    starts: list[Weights] = []
    warm_start = Refiner.warm_start

    def watched(refiner: Refiner) -> bool:
        done = warm_start(refiner)
        if done:
            starts.append(encoder_weights(refiner.encoder))
        return done

    monkeypatch.setattr(Refiner, "warm_start", watched)
    return starts


def test_streamsplit_starts_from_pairs_of_neighbours_with_as_much_unheard_sound_between(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[str, int, bytes]] = []
    add = Refiner.add

    def watched(refiner: Refiner, device: str, window: int, *, features: np.ndarray, **named: object) -> bool:
        if not refiner.warm_started:
            taken.append((device, window, np.round(features, 1).tobytes()))
        return add(refiner, device, window, features=features, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Refiner, "add", watched)
    outcome = method("streamsplit").run(corpus, BUDGET, 0, quiet)
    allowed = math.floor(streamsplit.SHARE_SENT * BUDGET.heard)
    assert len(taken) == math.floor(streamsplit.START_SHARE * allowed) and outcome.effort.sent <= allowed
    heard = [number // 2 for number, _ in enumerate(heard_by(corpus, BUDGET, 0, 2))]
    assert [window for _, window, _ in taken] == [window for window in heard if window % 4 in (0, 1)][: len(taken)]


@pytest.mark.parametrize(("rate", "updates"), [(0.3, 3), (1e-4, 12)])
def test_server_only_ends_with_a_held_out_loss_no_higher_than_that_of_its_start(
    rate: float, updates: int, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    loss_of = server_only.HeldOut.loss

    def watched(held: server_only.HeldOut, refiner: Refiner) -> float:
        losses.append(loss_of(held, refiner))
        return losses[-1]

    monkeypatch.setattr(server_only.HeldOut, "loss", watched)
    monkeypatch.setattr(
        server_only, "TASK_ONLY", server_only.TASK_ONLY.replace(learning_rate=rate, warm_start_windows=32)
    )
    starts = kept_starts(monkeypatch)
    outcome = method("server_only").run(corpus, BUDGET.replace(converge_updates=updates), 0, quiet)
    assert len(losses) == 2 and outcome.effort.updates == updates
    assert outcome.encoder is not None
    final = encoder_weights(outcome.encoder)
    kept = all(np.array_equal(final[name], starts[0][name]) for name in final)
    assert (kept, losses[1] >= losses[0]) == (rate > 0.1, rate > 0.1), losses
