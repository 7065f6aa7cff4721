"""Streaming InfoNCE against a slow loop, positives, masks, learning rate under load, momentum, gradient variance."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from streamsplit.errors import EncoderError  # noqa: E402
from streamsplit.learning.contrastive import (  # noqa: E402
    consistency,
    load_adaptive_rate,
    positive_law,
    prediction_loss,
    streaming_info_nce,
)
from streamsplit.learning.momentum import follow, make_key  # noqa: E402
from streamsplit.learning.theorem import GradientVariance  # noqa: E402


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return z / z.norm(dim=-1, keepdim=True)


def slow_info_nce(query, positive, temperature, negatives, weights, in_batch, excluded) -> float:
    """The formula of section 4, term by term."""
    total = 0.0
    for i in range(len(query)):
        up = math.exp(float(query[i] @ positive[i]) / temperature)
        down = up
        if in_batch:
            for j in range(len(query)):
                if j != i and not (excluded is not None and excluded[i][j]):
                    down += math.exp(float(query[i] @ positive[j]) / temperature)
        if negatives is not None:
            own = negatives[i] if negatives.ndim == 3 else negatives
            share = None if weights is None else (weights[i] if weights.ndim == 2 else weights)
            for j in range(len(own)):
                w = 1.0 if share is None else float(share[j])
                down += w * math.exp(float(query[i] @ own[j]) / temperature)
        total += -math.log(up / down)
    return total / len(query)


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("negatives", ["none", "shared", "per anchor"])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_loss_is_the_formula(in_batch: bool, masked: bool, negatives: str, weighted: bool) -> None:
    query, positive = unit(5, 16), unit(5, 16, seed=1)
    bank = {"none": None, "shared": unit(7, 16, seed=2), "per anchor": unit(5, 7, 16, seed=3)}[negatives]
    weights = None
    if weighted and bank is not None:
        weights = torch.linspace(0, 1, bank.shape[:-1].numel(), dtype=torch.float64).reshape(bank.shape[:-1])
    times = torch.tensor([0, 3, 9, 10, 30])
    excluded = (times[:, None] - times).abs() < 4 if masked else None
    ours = streaming_info_nce(
        query, positive, temperature=0.2, negatives=bank, weights=weights, in_batch=in_batch, excluded=excluded
    )
    slow = slow_info_nce(query, positive, 0.2, bank, weights, in_batch, excluded)
    assert float(ours) == pytest.approx(slow, abs=1e-9)


def test_the_gradient_stays_finite_when_everything_is_masked_or_weightless() -> None:
    query = unit(3, 8).requires_grad_()
    everything = torch.ones(3, 3, dtype=torch.bool)
    loss = streaming_info_nce(
        query, unit(3, 8, seed=1), excluded=everything, negatives=unit(4, 8), weights=torch.zeros(4)
    )
    loss.backward()
    assert loss.item() == pytest.approx(0) and torch.isfinite(query.grad).all()


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(EncoderError, match="equal"):
        streaming_info_nce(unit(3, 8), unit(4, 8))


def test_consistency_is_the_squared_distance_and_the_prediction_loss_one_minus_cosine() -> None:
    a, b = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert float(consistency(a, b)) == pytest.approx((0 + 2) / 2)
    assert float(prediction_loss(3 * a, b)) == pytest.approx((0 + 1) / 2)


def test_positives_fall_off_exponentially_with_time() -> None:
    law = positive_law(np.array([1, 2, -2, 4]), 0.5)
    expected = np.exp(-0.5 * np.array([1, 2, 2, 4]))
    assert np.allclose(law, expected / expected.sum())


@pytest.mark.parametrize(
    ("load", "share"), [(0.0, 1), (0.8, 1), (0.85, 0.5), (0.9, 0.25), (0.95, 0.125), (1.0, 0.0625), (7.0, 0.0625)]
)
def test_the_learning_rate_halves_for_every_five_percent_above_eighty(load: float, share: float) -> None:
    assert load_adaptive_rate(0.001, load) == pytest.approx(0.001 * share)


def test_the_key_follows_the_query_as_a_moving_average() -> None:
    query = torch.nn.Linear(3, 2)
    key = make_key(query)
    before = key.weight.clone()
    with torch.no_grad():
        query.weight += 1.0
    for _ in range(3):
        follow(key, query, 0.9)
    assert torch.allclose(key.weight, before + 1 - 0.9**3, atol=1e-6)
    assert not key.weight.requires_grad


def test_sigma_squared_is_the_variance_of_mini_batch_gradients() -> None:
    layer = torch.nn.Linear(4, 1, bias=False)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    meter = GradientVariance()
    meter.watch(layer.parameters())
    for row in x:
        with meter.mini_batch(1 / 6):
            (layer(row[None]).sum() / 6).backward()  # the gradient is the row itself
    assert layer.weight.grad is not None
    meter.after_step(float(layer.weight.grad.norm()), 1 / 6)
    assert meter.sigma2 == pytest.approx(float(x.var(0, unbiased=True).sum()), rel=1e-4)
    assert meter.mean_norm2 == pytest.approx(float(x.mean(0).square().sum()), rel=1e-4)
