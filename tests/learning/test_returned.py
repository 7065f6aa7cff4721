"""Gradients from a server: their bytes, the windows that wait for them, and the same step as with an uncut network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from streamsplit.encoders.base import SplitEncoder  # noqa: E402
from streamsplit.encoders.crossing import Crossing, pack_crossing, unpack_crossing  # noqa: E402
from streamsplit.encoders.factory import EncoderSettings, make_encoder  # noqa: E402
from streamsplit.errors import CutError, EncoderError, ProtocolError  # noqa: E402
from streamsplit.learning.learner import EdgeLearner, LearnerSettings  # noqa: E402
from streamsplit.learning.returned import (  # noqa: E402
    AskedWindow,
    PendingWindows,
    ReturnedGradient,
    ReturnedGradients,
    pack_gradient,
    unpack_gradient,
)
from streamsplit.wire.media import Encoding  # noqa: E402

SMALL: dict[str, Any] = {
    "batch_windows": 4, "accumulate": 2, "buffer_windows": 40, "run_windows": 5, "warm_start_windows": 24,
    "components": 8, "cold_start": 10, "negatives": 8, "trained": "all",
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def windows(count: int, seed: int = 0, frames: int = 24) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((count, 128, frames)) * 2 - 7).astype(np.float32)


def small(seed: int = 0) -> SplitEncoder:
    return make_encoder(EncoderSettings(width=0.25, embedding_dim=32, seed=seed))


def learner(**changes: Any) -> EdgeLearner:
    made = EdgeLearner(small(), LearnerSettings(**{**SMALL, **changes}), 0)
    for index, window in enumerate(windows(24, seed=9)):
        made.remember(window, index=index)
    assert made.target.ready
    return made


def a_gradient(shape: tuple[int, ...], size: float = 1.0, seed: int = 0) -> Crossing:
    rng = np.random.default_rng(seed)
    h, partial = rng.standard_normal(shape), rng.standard_normal((shape[0], 32))
    return Crossing(
        torch.from_numpy((size * h).astype(np.float32)), torch.from_numpy((size * partial).astype(np.float32))
    )


def asked(block: int = 3, revision: int = 7) -> AskedWindow:
    return AskedWindow(np.zeros((128, 24), np.float16), block, revision, 0)


@pytest.mark.parametrize("size", [1e-9, 1e-3, 1.0, 1e9])
def test_small_and_large_gradients_survive_half_precision(size: float) -> None:
    gradient = a_gradient((1, 4, 8, 6), size)
    sent = ReturnedGradient(17, 0xDEADBEEF, 5, gradient)
    back = unpack_gradient(pack_gradient(sent))
    assert back[:3] == sent[:3]
    for got, expected in zip(back.gradient, gradient, strict=True):
        error = (got - expected).abs()
        assert bool((error <= expected.abs() * 2.0**-10 + size * 1e-7).all())
    exact = unpack_gradient(pack_gradient(sent, Encoding.FP32))
    assert all(torch.equal(got, expected) for got, expected in zip(exact.gradient, gradient, strict=True))


def test_a_gradient_of_nothing_but_zeros_crosses() -> None:
    zeros = Crossing(torch.zeros(1, 2, 3, 4), torch.zeros(1, 32))
    assert not unpack_gradient(pack_gradient(ReturnedGradient(0, 0, 1, zeros))).gradient.h.any()


def test_gradients_that_are_not_finite_are_not_sent_and_damaged_bytes_not_read() -> None:
    gradient = a_gradient((1, 2, 3, 4))
    gradient.h[0, 0, 0, 0] = float("nan")
    with pytest.raises(CutError, match="NaN"):
        pack_gradient(ReturnedGradient(0, 0, 1, gradient))
    payload = pack_gradient(ReturnedGradient(0, 0, 1, a_gradient((1, 2, 3, 4))))
    for length in range(len(payload)):
        with pytest.raises((ProtocolError, CutError)):
            unpack_gradient(payload[:length])


def test_waiting_windows_are_bounded_and_the_oldest_goes() -> None:
    pending = PendingWindows(3)
    gone = [pending.ask(window, asked()) for window in range(5)]
    assert gone == [0, 0, 0, 1, 1] and len(pending) == 3
    gradient = a_gradient((1, 2, 3, 4))
    assert [pending.take(ReturnedGradient(w, 7, 3, gradient)) is not None for w in range(5)] == [False] * 2 + [True] * 3
    assert len(pending) == 0


def test_a_gradient_belongs_to_one_window_at_one_cut_of_one_revision_once() -> None:
    pending = PendingWindows(3)
    pending.ask(1, asked())
    gradient = a_gradient((1, 2, 3, 4))
    for window, revision, block in ((2, 7, 3), (1, 8, 3), (1, 7, 4)):
        assert pending.take(ReturnedGradient(window, revision, block, gradient)) is None
    assert pending.take(ReturnedGradient(1, 7, 3, gradient)) is not None
    assert pending.take(ReturnedGradient(1, 7, 3, gradient)) is None


@pytest.mark.parametrize("block", [1, 5, 12])
def test_the_step_is_the_uncut_networks(block: int) -> None:
    """Oracle: autograd through the uncut encoder."""
    encoder, x = small(), torch.from_numpy(windows(3))
    wanted = torch.from_numpy(np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32))
    trained = list(encoder.parameters())
    uncut = torch.autograd.grad((encoder(x) * wanted).sum(), trained, allow_unused=True)

    with torch.no_grad():
        crossed = encoder.forward_to(x, block)
    received = [
        unpack_crossing(pack_crossing(Crossing(h[None], p[None]), Encoding.FP32)) for h, p in zip(*crossed, strict=True)
    ]
    leaf = Crossing(*(torch.cat(parts).requires_grad_() for parts in zip(*received, strict=True)))
    torch.autograd.backward((encoder.forward_from(leaf, block) * wanted).sum())
    upper = [parameter.grad for parameter in trained]
    for parameter in trained:
        parameter.grad = None
    device = ReturnedGradients()
    for row in range(3):
        back = Crossing(leaf.h.grad[row : row + 1], leaf.partial.grad[row : row + 1])
        payload = pack_gradient(ReturnedGradient(row, 0, block, back), Encoding.FP32)
        device.add(encoder, trained, x[row : row + 1].numpy(), block, unpack_gradient(payload).gradient, 1.0)
    device.move_into(trained)
    touched = 0
    for parameter, own, expected in zip(trained, upper, uncut, strict=True):
        if expected is None:
            assert own is None and parameter.grad is None
            continue
        split = sum(part for part in (own, parameter.grad) if part is not None)
        assert torch.allclose(split, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()) + 1e-9)
        touched += parameter.grad is not None
    assert touched > 0


@pytest.mark.parametrize("wrong", ["shape", "sum", "size"])
def test_a_gradient_that_does_not_fit_is_refused_and_leaves_no_trace(wrong: str) -> None:
    made = learner()
    x = windows(1)
    h, partial = made.encode_to(x[0], 5)
    gradient = Crossing(torch.zeros_like(h), torch.zeros_like(partial))
    if wrong == "shape":
        gradient = Crossing(torch.zeros(1, 2, 3, 4), gradient.partial)
    elif wrong == "sum":
        gradient = Crossing(gradient.h, torch.zeros(1, 5))
    else:
        gradient = Crossing(torch.full_like(h, 3e38), gradient.partial)
    with pytest.raises(EncoderError, match="expected"):
        made.take_gradient(x, 5, gradient, 32.0)
    assert len(made._updates.returned) == 0


def test_returned_gradients_share_the_clipping_and_leave_sigma2_alone() -> None:
    plain, helped = learner(), learner()
    x = windows(1)
    lengths = []
    step = helped._updates.optimiser.step

    def watched() -> None:
        grads = [p.grad for p in helped._updates.parameters if p.grad is not None]
        lengths.append(float(torch.stack([g.norm() for g in grads]).norm()))
        step()

    helped._updates.optimiser.step = watched
    h, _ = helped.encode_to(x[0], 5)
    helped.take_gradient(x, 5, a_gradient(tuple(h.shape), 1e4), 1.0)
    for _ in range(2):
        assert plain.learn() == helped.learn()
    assert plain.steps == helped.steps == 1 and len(helped._updates.returned) == 0
    assert plain.sigma2 == pytest.approx(helped.sigma2, rel=1e-6)
    assert lengths[0] == pytest.approx(helped.settings.gradient_clip, rel=1e-3)
    moved = [not torch.equal(a, b) for a, b in zip(plain.query.parameters(), helped.query.parameters(), strict=True)]
    assert any(moved)


def test_a_new_space_forgets_gradients_of_the_old_one() -> None:
    made = learner()
    x = windows(1)
    h, _ = made.encode_to(x[0], 5)
    made.take_gradient(x, 5, a_gradient(tuple(h.shape)), 1.0)
    made.adopt(made.base, breaks_space=True)
    assert len(made._updates.returned) == 0


def test_only_the_readouts_learn_from_it_where_only_they_are_trained() -> None:
    made = learner(trained="readouts")
    x = windows(1)
    h, _ = made.encode_to(x[0], 5)
    made.take_gradient(x, 5, a_gradient(tuple(h.shape)), 1.0)
    held = made._updates.returned._sums
    projections = {id(p.weight) for p in made.query.readout_projections()} | {
        id(p.bias) for p in made.query.readout_projections()
    }
    assert held and all(id(made._updates.parameters[at]) in projections for at in held)
