"""Both uncertainty measures, with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamsplit.errors import ConfigError
from streamsplit.learning.mixture import GaussianMixture
from streamsplit.learning.uncertainty import Components, PrototypeUncertainty


def test_v2_is_the_entropy_of_the_mixture() -> None:
    assert GaussianMixture(64, 8).entropy(np.ones(8, np.float32)) == pytest.approx(math.log(64))


def test_v1_parts_have_their_known_values() -> None:
    measure = PrototypeUncertainty(2, temperature=0.5)
    z = np.array([1.0, 0.0], np.float32)
    assert measure.components(z) == (0.0, 0.0, 0.0)
    measure.set_prototypes(np.array([[1.0, 0.0], [0.0, 2.0]], np.float32))
    parts = measure.components(np.array([0.6, 0.8], np.float32), np.array([0.6, 0.3], np.float32))
    p = np.exp(np.array([0.6, 0.8]) / 0.5)
    p /= p.sum()
    assert parts.perturbation == pytest.approx(0.5)
    assert parts.ambiguity == pytest.approx(-(p * np.log(p)).sum())
    assert parts.distance == pytest.approx(math.hypot(0.4, 0.8))
    assert measure.value(Components(0.3, 0.6, 0.9)) == pytest.approx(0.6)  # equal weights at first


def test_v1_weights_shift_toward_the_part_that_predicts_the_loss() -> None:
    rng = np.random.default_rng(0)
    measure = PrototypeUncertainty(2)
    for _ in range(400):
        parts = Components(*rng.random(3))
        measure.learn(parts, 2.0 * parts.ambiguity + 0.05 * rng.random())
    assert measure.weights.sum() == pytest.approx(1)
    assert measure.weights.argmax() == 1 and measure.weights[1] > 0.55
    copy = PrototypeUncertainty(2)
    copy.load_state(measure.state())
    assert np.array_equal(copy.weights, measure.weights)


def test_v1_weights_stay_equal_when_nothing_predicts_the_loss() -> None:
    measure = PrototypeUncertainty(2)
    for _ in range(50):
        measure.learn(Components(1.0, 1.0, 1.0), 3.0)
    assert np.allclose(measure.weights, 1 / 3)


def test_others_stand_in_until_prototypes_come_and_again_when_they_are_forgotten() -> None:
    measure, z = PrototypeUncertainty(2), np.array([1.0, 0.0], np.float32)
    far = np.array([[0.0, 1.0]], np.float32)
    assert measure.components(z, stand_in=far).distance == pytest.approx(math.sqrt(2))
    measure.set_prototypes(z[None])
    assert measure.components(z, stand_in=far).distance == 0.0
    measure.forget_prototypes()
    assert measure.components(z, stand_in=far).distance == pytest.approx(math.sqrt(2))
    assert measure.components(z, stand_in=far[:0]) == (0.0, 0.0, 0.0)


def test_bad_prototypes_are_refused() -> None:
    with pytest.raises(ConfigError, match="prototypes"):
        PrototypeUncertainty(4).set_prototypes(np.full((3, 4), np.nan))
