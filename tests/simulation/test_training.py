"""PPO on a tiny table: what comes out loads, is no worse than what it started from, and comes out again."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
import torch
from device_cases import OBJECTIVE, QUIET, TABLE, bursty_load, mobile_link

from streamsplit.errors import ConfigError
from streamsplit.simulation.device import SimulatedDevice
from streamsplit.simulation.environment import EnvironmentSettings, SplitEnv
from streamsplit.simulation.follow import FollowPolicy
from streamsplit.simulation.training import Point, PriorPolicy, Trained, TrainingSettings, mean_reward, train_policy
from streamsplit.splitting.constraints import ConstraintSettings
from streamsplit.splitting.device import device_profile
from streamsplit.splitting.features import STATE_FEATURES
from streamsplit.splitting.greedy import GreedyPolicy
from streamsplit.splitting.learned import LearnedPolicy
from streamsplit.splitting.policy_file import load_policy
from streamsplit.splitting.useful import useful_cuts

TRACES = [mobile_link(seed, level=level) for seed, level in ((1, None), (2, 0.1), (3, 0.02))]
HELD_OUT = [mobile_link(seed, level=level) for seed, level in ((11, 0.05), (12, None))]
LOADS = [bursty_load(1), bursty_load(2)]
WORLD = EnvironmentSettings(simulation=QUIET.replace(server_wait_ms=1.5), devices=("pi4", "m2"), episode_windows=64)
SETTINGS = TrainingSettings(
    environment=WORLD,
    steps=4096,
    environments=8,
    rollout_steps=128,
    hidden=32,
    epochs=4,
    check_steps=2048,
    seed=3,
    lessons=1024,
    lesson_epochs=10,
)


@pytest.fixture(scope="module")
def trained() -> Trained:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    points: list[Point] = []
    done = train_policy(TABLE, TRACES, HELD_OUT, LOADS, SETTINGS, about={"command": "a test"}, progress=points.append)
    assert points == done.curve
    torch.set_num_threads(threads)
    return done


def test_what_comes_out_is_as_good_as_the_greedy_policy_it_started_from(trained):
    """On links it was not trained on: the same expectation with nothing learned, and the live greedy policy."""
    got = mean_reward(trained.file, TABLE, HELD_OUT, LOADS, WORLD, seed=3)
    assert got == pytest.approx(max(point.held_out_reward for point in trained.curve), abs=0.01)
    zeros = tuple(layer._replace(weight=0 * layer.weight, bias=0 * layer.bias) for layer in trained.file.layers)
    assert got >= mean_reward(trained.file._replace(layers=zeros), TABLE, HELD_OUT, LOADS, WORLD, seed=3) - 0.01
    greedy = []
    for name in WORLD.devices:
        table = TABLE.for_device(device_profile(name))
        for index, trace in enumerate(HELD_OUT):
            load = LOADS[index].scaled((0.4, 0.7)[index])
            device = SimulatedDevice(
                table, device_profile(name), trace, load, WORLD.simulation, seed=3 + index, load_start_s=37.0 * index
            )
            greedy += [step.reward for step in FollowPolicy(device).run(GreedyPolicy(WORLD.greedy))]
    assert got >= np.mean(greedy) - 0.01


def test_the_file_reads_back_and_decides_as_it_did(trained, tmp_path):
    trained.file.save(tmp_path / "policy.npz")
    back = load_policy(tmp_path / "policy.npz")
    assert back.cuts == useful_cuts(TABLE) and back.encoder == "tiny" and len(back.layers) == 3
    assert back.about["command"] == "a test" and back.about["training"]["seed"] == 3
    assert 0 <= back.about["steps"] <= SETTINGS.steps and back.about["table"] == TABLE.fingerprint
    ours, theirs = (mean_reward(file, TABLE, HELD_OUT, LOADS, WORLD, seed=3) for file in (back, trained.file))
    assert ours == pytest.approx(theirs, abs=0.02)  # fp16 weights


def test_the_curve_says_how_it_went(trained):
    steps = [point.steps for point in trained.curve]
    assert steps == sorted(steps) and steps[:2] == [0, 1024] and steps[-1] == SETTINGS.steps
    for point in trained.curve:
        assert np.isfinite(point.held_out_reward) and point.held_out_reward < OBJECTIVE.quality
        assert np.isnan(point.entropy) if not point.steps else 0.0 <= point.entropy <= np.log(len(trained.file.cuts))
    # Rewards as trained on are those less what an idle device would get, so mostly below 0, and never far above.
    assert all(point.episode_reward < 0.5 for point in trained.curve[1:-1])
    assert trained.seconds > 0


def test_the_range_of_training_is_remembered_and_states_of_its_kind_are_inside(trained):
    file = trained.file
    at = STATE_FEATURES.index
    assert (file.low <= file.high).all() and np.isfinite(file.low).all()
    assert file.low[at("cpu")] < 0.2 and file.high[at("cpu")] > 0.5
    assert file.high[at("doubt")] - file.low[at("doubt")] > 0.5
    policy = LearnedPolicy(file)
    device = SimulatedDevice(
        TABLE.for_device(device_profile("pi4")), device_profile("pi4"), TRACES[0], LOADS[0], WORLD.simulation
    )
    FollowPolicy(device).run(policy)
    assert policy.fallbacks <= 2  # of 120, in twice an episode's time: heat and mean power have settled by then


def test_the_same_seed_gives_the_same_file_and_another_one_does_not():
    torch.set_num_threads(1)
    short = SETTINGS.replace(
        steps=256, rollout_steps=64, check_steps=10_000, environments=4, lessons=256, lesson_epochs=3
    )
    first, again, other = (
        train_policy(TABLE, TRACES, HELD_OUT[:1], LOADS, short.replace(seed=seed)).file for seed in (7, 7, 8)
    )
    assert first.to_bytes() == again.to_bytes()
    assert first.to_bytes() != other.to_bytes()


@pytest.mark.parametrize(
    ("traces", "held_out", "loads", "text"),
    [([], HELD_OUT, LOADS, "0 traces"), (TRACES, [], LOADS, "no held-out traces"), (TRACES, HELD_OUT, [], "0 loads")],
)
def test_training_on_nothing_is_one_clear_error(traces, held_out, loads, text):
    with pytest.raises(ConfigError, match=text):
        train_policy(TABLE, traces, held_out, loads, SETTINGS)


def test_training_starts_from_the_least_expected_cost_and_never_takes_what_is_masked():
    settings = WORLD.replace(constraints=ConstraintSettings(raw_audio=False))
    env = SplitEnv(TABLE, TRACES, LOADS, settings, TABLE.cuts)
    n = len(TABLE.cuts)
    policy = PriorPolicy(
        env.observation_space, env.action_space, lambda _: 1e-3, hidden=8, cost_weight=2.0, actions=n
    )  # fmt: skip
    observation, _ = env.reset(seed=0)
    torch.manual_seed(0)
    for _ in range(30):
        costs, mask = observation[-2 * n : -n], observation[-n:] > 0.5
        batch = torch.from_numpy(observation)[None]
        best, values, log_probability = policy(batch, deterministic=True)
        assert int(best) == np.where(mask, costs, np.inf).argmin()
        assert values.shape == (1, 1) and float(values.detach()) == 0.0
        above = 4.0 * costs.astype(np.float64)
        weights = np.where(mask, np.exp(-2.0 * above / (1.0 + above / 4.0)), 0.0)
        assert float(log_probability.detach()) == pytest.approx(np.log(weights[int(best)] / weights.sum()), abs=1e-4)
        drawn = {int(policy(batch)[0]) for _ in range(20)}
        assert mask[sorted(drawn)].all()
        _, again, entropy = policy.evaluate_actions(batch, best)
        assert float(again.detach()) == pytest.approx(float(log_probability.detach())) and float(entropy.detach()) >= 0
        observation, _, _, truncated, info = env.step(int(best))
        assert not info["masked"] and not truncated
