"""Trains the split policy by PPO (stable-baselines3) in the simulated environment, and writes it for devices."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from streamsplit.config import Settings, section, setting
from streamsplit.errors import ConfigError
from streamsplit.network.trace import BandwidthTrace
from streamsplit.simulation.device import SimulatedDevice
from streamsplit.simulation.environment import EnvironmentSettings, SplitEnv
from streamsplit.simulation.follow import FollowPolicy
from streamsplit.simulation.imitation import Lessons, gather_lessons, learn_lessons
from streamsplit.simulation.load import LoadTrace
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.device import device_profile
from streamsplit.splitting.features import COST_SCALE, SATURATION, STATE_FEATURES
from streamsplit.splitting.learned import LearnedPolicy
from streamsplit.splitting.policy_file import Layer, PolicyFile, architecture_of
from streamsplit.splitting.table import CutTable

MASKED_LOGIT = -1e8


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """PPO as in v2's settings where they hold here; what differs says why."""

    environment: EnvironmentSettings = section(EnvironmentSettings)
    steps: int = setting(1_000_000, low=1)
    environments: int = setting(16, low=1)
    rollout_steps: int = setting(1024, low=2)  # of each environment, between two updates
    hidden: int = setting(64, low=1, high=1024)  # v2: 128; half of it decides the same and fits into one frame
    learning_rate: float = setting(1e-4, low=1e-8)  # v2: 3e-4, from nothing
    gamma: float = setting(0.9, low=0.0, high=1.0)  # v2: 0.99; a queue forgets within some ten windows
    gae_lambda: float = setting(0.95, low=0.0, high=1.0)
    clip: float = setting(0.2, low=0.0)
    entropy: float = setting(0.002, low=0.0)  # v2: 0.01; the costs' own spread explores already
    value: float = setting(0.5, low=0.0)
    gradient_norm: float = setting(0.5, low=0.0)
    epochs: int = setting(5, low=1)  # v2: 10
    minibatch: int = setting(1024, low=2)  # v2: 64; rewards are mostly noise, and small batches follow it
    reward_scale: float = setting(0.2, low=1e-6)
    cost_weight: float = setting(2.0, low=0.0)  # expected cost to logit, before anything is learned
    lessons: int = setting(160_000, low=0)  # windows whose actions' regrets are learned from first; 0 = none
    lesson_epochs: int = setting(25, low=1)
    check_steps: int = setting(100_000, low=1)  # between two evaluations on the held-out runs
    seed: int = setting(0, low=0)


class Point(NamedTuple):
    """One point of the learning curve."""

    steps: int
    episode_reward: float  # mean per window of recent episodes, as trained on
    held_out_reward: float  # mean per window of the deterministic policy on the held-out runs
    entropy: float


class Trained(NamedTuple):
    """The best policy seen, its curve, and how long it took."""

    file: PolicyFile
    curve: list[Point]
    seconds: float


class PriorPolicy(ActorCriticPolicy):
    """Logits = network(state, costs) - cost weight x expected cost above the least, masked; the network starts at zero.

    So training starts from the greedy policy and learns what its expectation misses.
    """

    def __init__(self, *args: Any, hidden: int, cost_weight: float, actions: int, **kwargs: Any) -> None:
        self._hidden, self._cost_weight, self._actions = hidden, cost_weight, actions
        super().__init__(*args, **kwargs)

    def _build(self, lr_schedule: Callable[[float], float]) -> None:
        width = len(STATE_FEATURES) + self._actions
        self.actor = nn.Sequential(
            nn.Linear(width, self._hidden), nn.Tanh(), nn.Linear(self._hidden, self._hidden), nn.Tanh(),
            nn.Linear(self._hidden, self._actions),
        )  # fmt: skip
        self.critic = nn.Sequential(
            nn.Linear(width, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 1)
        )  # fmt: skip
        for network in (self.actor, self.critic):
            last = network[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.action_dist = CategoricalDistribution(self._actions)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr_schedule(1), eps=1e-5)

    def logits(self, observation: Tensor) -> Tensor:
        """Of every action [b, n]."""
        states = len(STATE_FEATURES)
        inputs = observation[:, : states + self._actions]
        costs = COST_SCALE * observation[:, states : states + self._actions]
        mask = observation[:, states + self._actions :]
        logits: Tensor = self.actor(inputs) - self._cost_weight * costs / (1.0 + costs / SATURATION)
        return logits.masked_fill(mask < 0.5, MASKED_LOGIT)

    def predict_values(self, obs: Tensor) -> Tensor:  # type: ignore[override]
        """Values [b, 1]."""
        values: Tensor = self.critic(obs[:, : len(STATE_FEATURES) + self._actions])
        return values

    def get_distribution(self, obs: Tensor) -> Distribution:  # type: ignore[override]
        """Over actions."""
        return self.action_dist.proba_distribution(self.logits(obs))

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """(actions, values, log probabilities)."""
        distribution = self.get_distribution(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self.predict_values(obs), distribution.log_prob(actions)

    def evaluate_actions(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:  # type: ignore[override]
        """(values, log probabilities, entropy)."""
        distribution = self.get_distribution(obs)
        return self.predict_values(obs), distribution.log_prob(actions), distribution.entropy()

    def _predict(self, observation: Tensor, deterministic: bool = False) -> Tensor:  # type: ignore[override]
        return self.get_distribution(observation).get_actions(deterministic=deterministic)


class _ScaledReward(gymnasium.RewardWrapper[np.ndarray, np.int64]):
    def __init__(self, env: SplitEnv, scale: float) -> None:
        super().__init__(env)
        self._scale = scale

    def reward(self, reward: Any) -> float:
        return float(reward) * self._scale


def train_policy(
    table: CutTable,
    traces: Sequence[BandwidthTrace],
    held_out: Sequence[BandwidthTrace],
    loads: Sequence[LoadTrace],
    settings: TrainingSettings | None = None,
    *,
    about: Mapping[str, Any] | None = None,
    progress: Callable[[Point], None] | None = None,
) -> Trained:
    """Trains on `traces`; the policy that does best on the `held_out` runs is the one that is given back.

    `held_out` must come from the training data too: what a report tests on plays no part here. `about` goes into the
    file's card. `progress(point)` is called after every check. Raises ConfigError without traces or loads.
    """
    s = settings or TrainingSettings()
    if not held_out:
        raise ConfigError("got no held-out traces, expected at least one to tell the best policy by")
    torch.manual_seed(s.seed)
    training = s.environment.replace(relative=True)
    started_s = time.process_time()
    env = SplitEnv(table, traces, loads, training)
    cuts = env.cuts
    vector = DummyVecEnv(
        [
            (lambda: _ScaledReward(SplitEnv(table, traces, loads, training, cuts), s.reward_scale))
            for _ in range(s.environments)
        ]
    )
    model = PPO(
        PriorPolicy, vector, learning_rate=s.learning_rate, n_steps=s.rollout_steps, batch_size=s.minibatch,
        n_epochs=s.epochs, gamma=s.gamma, gae_lambda=s.gae_lambda, clip_range=s.clip, ent_coef=s.entropy,
        vf_coef=s.value, max_grad_norm=s.gradient_norm, seed=s.seed, device="cpu",
        policy_kwargs={"hidden": s.hidden, "cost_weight": s.cost_weight, "actions": len(cuts)},
    )  # fmt: skip
    watch = _Watch(s, table, cuts, held_out, loads, dict(about or {}), progress)
    if s.lessons:
        _pretrain(model, SplitEnv(table, traces, loads, training, cuts), s, watch)
    model.learn(s.steps, callback=watch)
    watch.check(model.num_timesteps)
    vector.close()
    assert watch.best is not None  # check() has just been called
    low, high = watch.seen  # by the end of training, whenever the best was found
    return Trained(watch.best._replace(low=low, high=high), watch.curve, time.process_time() - started_s)


def _pretrain(model: PPO, env: SplitEnv, s: TrainingSettings, watch: _Watch) -> None:
    """Two rounds of lessons: on the states that the expected costs lead to, then on those that the policy leads to."""
    policy = model.policy
    assert isinstance(policy, PriorPolicy)

    def act(observation: np.ndarray) -> int:
        with torch.no_grad():
            return int(policy.logits(torch.from_numpy(observation)[None]).argmax())

    lessons: list[Lessons] = []
    for round_number in range(2):
        lessons.append(gather_lessons(env, s.lessons // 2, act, seed=1000 * s.seed + round_number))
        watch.widen(lessons[-1].observations[:, : len(STATE_FEATURES)])
        together = Lessons(*(np.concatenate(part) for part in zip(*lessons, strict=True)))
        learn_lessons(policy.actor, policy.logits, together, epochs=s.lesson_epochs, seed=s.seed)
    watch.model = model
    watch.check(0)


class _Watch(BaseCallback):
    """Remembers the range of what is seen, and tries the policy on the held-out runs now and then."""

    def __init__(
        self,
        settings: TrainingSettings,
        table: CutTable,
        cuts: tuple[Cut, ...],
        held_out: Sequence[BandwidthTrace],
        loads: Sequence[LoadTrace],
        about: dict[str, Any],
        progress: Callable[[Point], None] | None,
    ) -> None:
        super().__init__()
        self.curve: list[Point] = []
        self.best: PolicyFile | None = None
        self._settings, self._table, self._cuts, self._about = settings, table, cuts, about
        self._held_out, self._loads, self._progress = held_out, loads, progress
        self._low = np.full(len(STATE_FEATURES), np.inf, np.float32)
        self._high = -self._low
        self._best_reward = -np.inf
        self._next_check = 0
        self._recent: list[float] = []
        self._mean = 0.0

    def widen(self, states: np.ndarray) -> None:
        """Widens the range that the policy will trust by states [m, f]."""
        self._low = np.minimum(self._low, states.min(axis=0))
        self._high = np.maximum(self._high, states.max(axis=0))

    def _on_step(self) -> bool:
        self.widen(self.locals["new_obs"][:, : len(STATE_FEATURES)])
        self._recent.append(float(np.mean(self.locals["rewards"])) / self._settings.reward_scale)
        return True

    def _on_rollout_end(self) -> None:
        if self.num_timesteps >= self._next_check:
            self.check(self.num_timesteps)
            self._next_check = self.num_timesteps + self._settings.check_steps

    @property
    def seen(self) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest of every state feature so far."""
        return self._low.copy(), self._high.copy()

    def check(self, steps: int) -> None:
        """Evaluates the policy as it is now, deterministic, and keeps it if it is the best so far."""
        file = self._file(steps)
        reward = mean_reward(
            file, self._table, self._held_out, self._loads, self._settings.environment, seed=self._settings.seed
        )
        policy = self.model.policy
        assert isinstance(policy, PriorPolicy)
        spread = float("nan")
        if steps:  # before the first one nothing has been looked at
            with torch.no_grad():
                entropy = policy.get_distribution(torch.as_tensor(self.model._last_obs)).entropy()
            spread = float(entropy.mean()) if entropy is not None else spread
        point = Point(steps, float(np.mean(self._recent or [np.nan])), reward, spread)
        self._recent.clear()
        self.curve.append(point)
        if reward > self._best_reward:
            self._best_reward, self.best = reward, file
        if self._progress is not None:
            self._progress(point)

    def _file(self, steps: int) -> PolicyFile:
        policy = self.model.policy
        assert isinstance(policy, PriorPolicy)
        layers = tuple(
            Layer(part.weight.detach().numpy().T.copy(), part.bias.detach().numpy().copy())
            for part in policy.actor
            if isinstance(part, nn.Linear)
        )
        s, table = self._settings, self._table
        about = self._about | {"steps": steps, "training": s.as_dict(), "table": table.fingerprint}
        return PolicyFile(
            encoder=table.encoder, architecture=architecture_of(table), num_blocks=table.num_blocks, cuts=self._cuts,
            settings=s.environment.greedy, layers=layers, cost_weight=s.cost_weight, low=self._low.copy(),
            high=self._high.copy(), about=about,
        )  # fmt: skip


def mean_reward(
    file: PolicyFile,
    table: CutTable,
    traces: Sequence[BandwidthTrace],
    loads: Sequence[LoadTrace],
    settings: EnvironmentSettings,
    seed: int = 0,
) -> float:
    """Mean reward a window of the deterministic policy over all device classes and traces."""
    rewards: list[float] = []
    for name in settings.devices:
        profile = device_profile(name)
        scaled = table.for_device(profile)
        policy = LearnedPolicy(file)
        for index, trace in enumerate(traces):
            load = loads[index % len(loads)].scaled((0.4, 0.7, 1.0)[index % 3])
            device = SimulatedDevice(
                scaled, profile, trace, load, settings.simulation, seed=seed + index, load_start_s=37.0 * index
            )
            rewards += [step.reward for step in FollowPolicy(device).run(policy)]
    return float(np.mean(rewards))
