"""FedAvg here is FedAvg in Flower: one round over the same clients gives the same weights."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from streamsplit.errors import MissingExtraError
from streamsplit.evaluation.baselines.fedcl import Update, federated_average
from streamsplit.evaluation.baselines.fedcl_flower import flower_rounds
from streamsplit.weights.revision import Weights

HAS_FLOWER = importlib.util.find_spec("flwr") is not None and importlib.util.find_spec("ray") is not None
WINDOWS = (10, 30, 60)


def train(weights: Weights, client: int, turn: int) -> Update:
    rng = np.random.default_rng(100 * turn + client)
    moved = {name: (array + rng.normal(size=array.shape)).astype(np.float32) for name, array in weights.items()}
    return Update(moved, WINDOWS[client])


@pytest.mark.skipif(not HAS_FLOWER, reason="Flower's simulation is not installed (extra 'flower')")
def test_one_round_gives_the_average_of_flowers_simulation() -> None:
    base = {"a": np.zeros((4, 3), np.float32), "b": np.ones(5, np.float32)}
    expected = federated_average(base, [train(base, client, 1) for client in range(3)])
    got = flower_rounds(base, train, 3)
    assert set(got) == {"a", "b"}
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, atol=1e-5)


@pytest.mark.skipif(HAS_FLOWER, reason="Flower is installed")
def test_without_flower_the_extra_is_named() -> None:
    with pytest.raises(MissingExtraError, match=r"'\.\[flower\]'"):
        flower_rounds({"a": np.zeros(2, np.float32)}, train, 2)
