"""Where training starts: what every action would have cost in the end, learned from the look-ahead oracle's plan.

In simulation the regret of every action in every state that a device comes through is known (AggreVaTe, Ross and
Bagnell 2014): the oracle's value of the best action less its own. The policy learns to make the *expected* regret small
from what a device can see, which needs no exploring and has none of a sampled return's noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streamsplit.simulation.environment import SplitEnv
from streamsplit.simulation.foresight import LookAheadOracle

WORST_REGRET = 25.0  # one lost window outweighs no more than this
ENTROPY = 0.02  # weight, in units of regret
EXPLORE = 0.1  # share of windows decided at random, so that states off the beaten track are seen too


class Lessons(NamedTuple):
    """m states and what every one of the n actions would have cost in them."""

    observations: NDArray[np.float32]  # [m, f + 2 n], as the environment gives them
    regrets: NDArray[np.float32]  # [m, n], at least 0


def gather_lessons(env: SplitEnv, windows: int, act: Callable[[NDArray[np.float32]], int], seed: int = 0) -> Lessons:
    """Drives devices by `act(observation)`, mostly, and asks the oracle at every window what each action is worth."""
    rng = np.random.default_rng(seed)
    observations: list[NDArray[np.float32]] = []
    regrets: list[NDArray[np.float32]] = []
    observation, _ = env.reset(seed=seed)
    oracle = _oracle(env)
    while len(observations) < windows:
        device = env.device
        assert device is not None  # reset() has made one
        values = oracle.values(device)[env.rows]
        observations.append(observation)
        regrets.append(np.minimum(values.max() - values, WORST_REGRET).astype(np.float32))
        allowed = np.flatnonzero(env.action_masks())
        action = int(rng.choice(allowed)) if rng.random() < EXPLORE else act(observation)
        observation, _, _, done, _ = env.step(action)
        if done:
            observation, _ = env.reset()
            oracle = _oracle(env)
    return Lessons(np.stack(observations), np.stack(regrets))


def learn_lessons(
    network: nn.Module,
    logits: Callable[[Tensor], Tensor],
    lessons: Lessons,
    *,
    epochs: int = 20,
    batch: int = 512,
    rate: float = 1e-3,
    weight_decay: float = 1e-4,
    seed: int = 0,
) -> list[float]:
    """Adam on the expected regret of softmax(logits(observation)); the mean a window after every epoch."""
    observations, regrets = torch.from_numpy(lessons.observations), torch.from_numpy(lessons.regrets)
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    curve = []
    for _ in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(observations), generator=generator).split(batch):  # type: ignore[no-untyped-call]
            logarithms = torch.log_softmax(logits(observations[rows]), dim=1)
            shares = logarithms.exp()
            # The entropy keeps actions of nearly equal worth alive, for PPO to choose among.
            loss = (shares * (regrets[rows] + ENTROPY * logarithms)).sum(dim=1).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            total += float(loss.detach()) * len(rows)
        curve.append(total / len(observations))
    return curve


def _oracle(env: SplitEnv) -> LookAheadOracle:
    assert env.device is not None  # after reset()
    return LookAheadOracle(env.device)
