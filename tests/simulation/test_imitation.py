"""Lessons from the oracle: regrets beside a look at every action, and learning on a case with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from device_cases import QUIET, TABLE, bursty_load
from torch import nn

from streamsplit.network.trace import generate_trace
from streamsplit.simulation.environment import EnvironmentSettings, SplitEnv
from streamsplit.simulation.foresight import LookAheadOracle
from streamsplit.simulation.imitation import Lessons, gather_lessons, learn_lessons

WORLD = EnvironmentSettings(simulation=QUIET, devices=("pi4",), episode_windows=24, fetching_share=0.0)


def environment() -> SplitEnv:
    return SplitEnv(TABLE, [generate_trace(60, 1)], [bursty_load(1)], WORLD, TABLE.cuts)


def test_the_oracles_own_action_has_no_regret_and_no_action_has_less():
    env = environment()
    lessons = gather_lessons(env, 60, lambda _: 0, seed=3)
    assert lessons.observations.shape == (60, *env.observation_space.shape) and lessons.regrets.shape[1] == len(
        env.cuts
    )
    assert (lessons.regrets >= 0).all() and (lessons.regrets.min(axis=1) == 0).all()
    assert lessons.regrets.max() > 1.0  # some choices matter
    env.reset(seed=3)
    device = env.device
    values = LookAheadOracle(device).values(device)[env.rows]
    np.testing.assert_allclose(lessons.regrets[0], np.minimum(values.max() - values, 25.0), rtol=1e-5, atol=1e-5)
    assert values.argmax() == lessons.regrets[0].argmin()


def test_the_same_seed_gathers_the_same():
    first, again = (gather_lessons(environment(), 40, lambda _: 1, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.observations, again.observations)
    np.testing.assert_array_equal(first.regrets, again.regrets)


def test_learning_finds_the_action_of_least_regret_where_a_feature_tells_it():
    """Two actions; the first costs 3 when the feature is positive, the second when it is negative."""
    rng = np.random.default_rng(0)
    feature = rng.normal(size=(2000, 1)).astype(np.float32)
    regrets = np.where(np.concatenate([feature > 0, feature <= 0], axis=1), 3.0, 0.0).astype(np.float32)
    torch.manual_seed(0)
    network = nn.Linear(1, 2)
    curve = learn_lessons(network, network, Lessons(feature, regrets), epochs=40, rate=0.05)
    assert curve[-1] < 0.3 < curve[0]
    with torch.no_grad():
        chosen = network(torch.tensor([[1.0], [-1.0]])).argmax(dim=1).tolist()
    assert chosen == [1, 0]


def test_noise_in_the_regrets_averages_out():
    """The better action on average is learned, though the other one wins in four of ten windows."""
    rng = np.random.default_rng(1)
    worse = rng.random(4000) < 0.4
    regrets = np.stack([np.where(worse, 2.0, 0.0), np.where(worse, 0.0, 2.0)], axis=1).astype(np.float32)
    torch.manual_seed(0)
    network = nn.Linear(1, 2)
    learn_lessons(network, network, Lessons(np.ones((4000, 1), np.float32), regrets), epochs=20, rate=0.05)
    with torch.no_grad():
        shares = torch.softmax(network(torch.ones(1, 1)), dim=1)[0].tolist()
    assert shares[0] > 0.9
    assert sum(shares) == pytest.approx(1.0)
