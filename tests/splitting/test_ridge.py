"""The online ridge regression against its closed form."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from streamsplit.errors import ConfigError
from streamsplit.splitting.ridge import DiscountedRidge


def samples(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 3))
    return x, x @ np.array([2.0, -1.0, 0.5]) + 0.1 * rng.standard_normal(count)


def fitted(x: np.ndarray, y: np.ndarray, **settings: float) -> DiscountedRidge:
    model = DiscountedRidge(x.shape[1], **settings)
    for features, target in zip(x, y, strict=True):
        model.update(features, float(target))
    return model


@pytest.mark.parametrize("regularisation", [0.01, 1.0, 30.0])
def test_without_forgetting_it_equals_scikit_learns_ridge(regularisation):
    x, y = samples(50)
    expected = Ridge(alpha=regularisation, fit_intercept=False).fit(x, y)
    model = fitted(x, y, regularisation=regularisation)
    assert model.samples == 50
    np.testing.assert_allclose(model.theta, expected.coef_, rtol=1e-9)
    np.testing.assert_allclose(model.predict(x), expected.predict(x), rtol=1e-9)


def test_with_forgetting_it_equals_weighted_least_squares():
    x, y = samples(40)
    discount, regularisation = 0.9, 0.5
    weights = np.sqrt(discount ** np.arange(39, -1, -1))
    rows = np.concatenate([x * weights[:, None], np.sqrt(regularisation) * np.eye(3)])
    expected = np.linalg.lstsq(rows, np.concatenate([y * weights, np.zeros(3)]), rcond=None)[0]
    np.testing.assert_allclose(
        fitted(x, y, regularisation=regularisation, discount=discount).theta, expected, rtol=1e-9
    )


def test_the_width_is_the_standard_error_of_a_prediction():
    x, y = samples(30)
    model = fitted(x, y, regularisation=2.0)
    covariance = np.linalg.inv(x.T @ x + 2.0 * np.eye(3))
    np.testing.assert_allclose(model.width(x), [np.sqrt(row @ covariance @ row) for row in x], rtol=1e-9)
    assert DiscountedRidge(3, regularisation=4.0).width(np.eye(3)) == pytest.approx([0.5] * 3)  # before any sample


def test_forgetting_follows_a_change_that_remembering_does_not():
    x, y = samples(400)
    y[200:] = x[200:] @ np.array([-2.0, 1.0, 3.0])
    remembering, forgetting = fitted(x, y), fitted(x, y, discount=0.95)
    new = np.array([-2.0, 1.0, 3.0])
    assert np.abs(forgetting.theta - new).max() < 0.2
    assert np.abs(remembering.theta - new).max() > 1.0


def test_a_direction_never_seen_stays_at_its_prior_however_much_is_forgotten():
    model = DiscountedRidge(2, discount=0.5)
    for _ in range(300):
        model.update(np.array([1.0, 0.0]), 1.0)
    assert model.theta[1] == 0.0
    assert model.width(np.array([[0.0, 1.0]])) == pytest.approx([1.0])


def test_a_round_that_taught_nothing_only_fades_what_was_known():
    x, y = samples(20)
    model = fitted(x, y, discount=0.9)
    model.forget()
    a, b = np.eye(3), np.zeros(3)
    for age, (features, target) in enumerate(zip(x[::-1], y[::-1], strict=True), start=1):
        a, b = a + 0.9**age * np.outer(features, features), b + 0.9**age * target * features
    np.testing.assert_allclose(model.theta, np.linalg.solve(a, b), rtol=1e-9)
    assert model.samples == 20


@pytest.mark.parametrize("bad", [{"dim": 0}, {"dim": 2, "regularisation": 0.0}, {"dim": 2, "discount": 1.5}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ConfigError, match="expected at least 1"):
        DiscountedRidge(**bad)
