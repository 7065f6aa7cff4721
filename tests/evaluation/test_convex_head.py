import numpy as np
import pytest
from scipy.optimize import check_grad
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from streamsplit.errors import ConfigError, StreamSplitError
from streamsplit.evaluation.convex_head import ConvexHead, with_ones


def problem(n=90, d=5, c=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(c, size=n)
    return np.eye(c, d)[labels] + rng.normal(0, 0.6, (n, d)), labels


def test_the_loss_is_cross_entropy_and_penalty():
    x, y = problem()
    head = ConvexHead(x, y, 0.3)
    weights = np.random.default_rng(1).normal(size=(2, 6, 3))
    for got, own in zip(head.loss(weights), weights, strict=True):
        slow = np.mean([-log_softmax(row @ own)[label] for row, label in zip(with_ones(x), y, strict=True)])
        assert got == pytest.approx(slow + 0.15 * np.sum(own**2))


def test_the_gradient_is_that_of_finite_differences():
    head = ConvexHead(*problem(), 0.1)
    start = np.random.default_rng(2).normal(size=18)
    error = check_grad(
        lambda w: head.loss(w.reshape(1, 6, 3))[0], lambda w: head.gradient(w.reshape(1, 6, 3)).ravel(), start
    )
    assert error < 1e-6


def test_the_optimum_is_sklearns():
    x, y = problem()
    head = ConvexHead(x, y, 0.05)
    best = head.optimum()
    assert best.gradient_norm <= 1e-8
    model = LogisticRegression(C=1 / (90 * 0.05), fit_intercept=False, tol=1e-10, max_iter=10_000)
    model.fit(with_ones(x), y)
    assert best.weights == pytest.approx(model.coef_.T, abs=1e-5)
    around = best.weights + 0.01 * np.random.default_rng(3).normal(size=(50, 6, 3))
    assert (head.loss(around) > best.loss).all()


def test_every_hessian_lies_between_the_two_constants():
    x, y = problem(40, 3)
    head = ConvexHead(x, y, 0.02)
    rng = np.random.default_rng(4)
    for scale in (0.0, 1.0, 10.0):
        at = scale * rng.normal(size=(1, 4, 3))
        step = 1e-5
        columns = []
        for index in range(12):
            shift = np.zeros(12)
            shift[index] = step
            shift = shift.reshape(1, 4, 3)
            columns.append((head.gradient(at + shift) - head.gradient(at - shift)).ravel() / (2 * step))
        eigenvalues = np.linalg.eigvalsh(np.array(columns))
        assert head.strong_convexity - 1e-6 <= eigenvalues[0] and eigenvalues[-1] <= head.smoothness + 1e-6


def test_large_weights_do_not_overflow():
    head = ConvexHead(*problem(), 0.1)
    assert np.isfinite(head.loss(np.full((1, 6, 3), 1e4) * np.arange(3))).all()


def test_an_optimum_out_of_reach_is_said(monkeypatch):
    monkeypatch.setattr("streamsplit.evaluation.convex_head.MAX_ITERATIONS", 3)
    with pytest.raises(StreamSplitError, match="more regularisation"):
        ConvexHead(*problem(), 1e-4).optimum()


@pytest.mark.parametrize(
    ("x", "labels", "regularisation", "reason"),
    [
        (np.zeros((4, 2)), [0, 0, 0, 0], 0.1, "got 1 class"),
        (np.full((4, 2), np.nan), [0, 1, 0, 1], 0.1, "NaN"),
        (np.zeros((4, 2)), [0, 1], 0.1, "one label a row"),
        (np.zeros((4, 2)), [0, 1, 0, 1], 0.0, "positive"),
    ],
)
def test_bad_input_is_refused(x, labels, regularisation, reason):
    with pytest.raises(ConfigError, match=reason):
        ConvexHead(x, labels, regularisation)
