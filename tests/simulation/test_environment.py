"""The gymnasium environment: what its checker asks, and what rewards, masks and cuts have to be."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
from device_cases import ACTION, COSTS, OBJECTIVE, QUIET, TABLE, bursty_load, mobile_link, simulated, small_table
from gymnasium.utils.env_checker import check_env

from streamsplit.errors import ConfigError, CutError
from streamsplit.network.trace import constant_trace, generate_trace
from streamsplit.simulation.environment import BOUND, EnvironmentSettings, SplitEnv
from streamsplit.simulation.follow import FollowPolicy
from streamsplit.splitting.constraints import ConstraintSettings
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.device import device_profile
from streamsplit.splitting.features import STATE_FEATURES
from streamsplit.splitting.greedy import GreedyPolicy
from streamsplit.splitting.policy import FixedPolicy
from streamsplit.splitting.useful import useful_cuts

TRACES = [generate_trace(60, seed) for seed in (1, 2)]
LOADS = [bursty_load(1)]
SHORT = EnvironmentSettings(simulation=QUIET.replace(server_wait_ms=1.5), episode_windows=40)


def environment(settings: EnvironmentSettings = SHORT, cuts: tuple[Cut, ...] | None = TABLE.cuts) -> SplitEnv:
    return SplitEnv(TABLE, TRACES, LOADS, settings, cuts)


def episode(env: SplitEnv, seed: int, actions: np.ndarray) -> tuple[list[np.ndarray], list[float]]:
    seen, _ = env.reset(seed=seed)
    observations, rewards = [seen], []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        rewards.append(reward)
        assert not terminated
    assert truncated
    return observations, rewards


def draws(env: SplitEnv, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, env.action_space.n, env.settings.episode_windows)


def test_it_passes_gymnasiums_checker():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*not within the observation space.*dtype.*")
        check_env(environment(), skip_render_check=True)


def test_the_same_seed_is_the_same_episode_and_another_one_is_not():
    env, actions = environment(), draws(environment(), 0)
    first, again, other = episode(env, 5, actions), episode(environment(), 5, actions), episode(env, 6, actions)
    np.testing.assert_array_equal(first[0], again[0])
    assert first[1] == again[1] != other[1]


def test_every_observation_is_in_its_space_to_the_very_last():
    env = environment(SHORT.replace(fetching_share=0.5, battery_share=0.5))
    for seed in range(4):
        for observation in episode(env, seed, draws(env, seed))[0]:
            assert env.observation_space.contains(observation) and np.abs(observation).max() < BOUND
            assert observation[len(STATE_FEATURES) :].any()  # a real one, whose value can be asked for at the cut-off


def test_the_reward_is_the_simulated_devices_own():
    env = environment()
    env.reset(seed=3)
    for action in draws(env, 3):
        _, reward, _, _, info = env.step(action)
        assert reward == info["step"].reward and str(info["step"].cut) == str(env.cuts[action])
        assert info["masked"] is False


def test_relative_rewards_differ_by_a_part_that_no_action_has_a_share_in():
    relative, absolute = environment(SHORT.replace(relative=True)), environment()
    parts = []
    for seed in (0, 1):
        actions = draws(absolute, seed)
        parts.append(np.subtract(episode(absolute, 9, actions)[1], episode(relative, 9, actions)[1]))
    np.testing.assert_allclose(parts[0], parts[1], atol=1e-9)
    assert np.std(parts[0]) > 0.01  # it does follow the link
    np.testing.assert_array_equal(
        episode(absolute, 9, actions)[0], episode(relative, 9, actions)[0]
    )  # and nothing else differs


def test_a_masked_action_is_replaced_by_the_cheapest_allowed_one_which_is_said():
    env = environment(SHORT.replace(constraints=ConstraintSettings(raw_audio=False)))
    seen, _ = env.reset(seed=0)
    audio = [ACTION["0:pcm16"], ACTION["0:opus24"]]
    n = len(env.cuts)
    mask, costs = seen[-n:] > 0.5, seen[-2 * n : -n]
    assert sorted(np.flatnonzero(~mask)) == sorted(audio)
    np.testing.assert_array_equal(env.action_masks(), mask)
    for action in audio:
        _, _, _, _, info = env.step(action)
        assert info["masked"] is True
        assert env.cuts.index(info["step"].cut) == np.where(mask, costs, np.inf).argmin()
        seen = env._look()
        mask, costs = seen[-n:] > 0.5, seen[-2 * n : -n]


def test_under_an_energy_budget_the_mean_power_stays_below_it():
    limits = ConstraintSettings(energy_budget_mw=30.0, energy_window_s=10.0)
    settings = EnvironmentSettings(
        simulation=QUIET.replace(energy_window_s=10.0), constraints=limits, devices=("pi4",), episode_windows=80,
        battery_share=0.0, fetching_share=0.0,
    )  # fmt: skip
    env = environment(settings)
    kept = 0
    for seed in range(3):
        env.reset(seed=seed)
        for action in draws(env, seed):
            kept += not env.action_masks().all()
            env.step(action)
            # Headers, and sound that crosses whole, come on top of what the table's energies say.
            assert env.device.observe().power_mw <= 30.0 + 1.0
    assert kept > 50


def test_an_energy_budget_that_is_counted_in_two_ways_is_refused():
    with pytest.raises(ConfigError, match="expected the simulation's 60 s and 500 ms"):
        EnvironmentSettings(constraints=ConstraintSettings(energy_budget_mw=30.0, energy_window_s=10.0))


def test_options_fix_device_and_trace_and_wrong_ones_are_named():
    env = environment()
    for seed in range(3):
        _, info = env.reset(seed=seed, options={"device": "m2", "trace": 1})
        assert info == {"device": "m2", "trace": TRACES[1].name}
        assert env.device.profile.name == "m2"
    with pytest.raises(ConfigError, match="got device 'pi5', expected one of pi4, pi-zero-2w"):
        env.reset(options={"device": "pi5"})
    with pytest.raises(ConfigError, match=r"got trace 2, expected 0\.\.1"):
        env.reset(options={"trace": 2})


def test_every_kind_of_episode_comes_up():
    env = environment(SHORT.replace(battery_share=0.5, fetching_share=0.5, unknown_share=0.5))
    seen, memory = set(), []
    for seed in range(40):
        _, info = env.reset(seed=seed)
        s = env.device.settings
        seen |= {info["device"], info["trace"], "known" if s.uncertainty_known else "unknown"}
        seen |= {"battery" if s.battery_wh else "mains", "part" if s.blocks >= 0 else "all"}
        memory.append(env.device.observe().memory)
        assert np.isnan(env.device.observe().uncertainty) == (not s.uncertainty_known)
        assert 1.0 <= s.server_load <= SHORT.most_server_load
    kinds = {"battery", "mains", "part", "all", "known", "unknown"}
    assert seen == {*SHORT.devices, *(trace.name for trace in TRACES), *kinds}
    assert min(memory) < 0.15 and max(memory) > 0.85


def test_episodes_begin_as_warm_and_as_hungry_as_an_hour_would_have_left_them():
    env = environment()
    begun = [env.reset(seed=seed)[0][: len(STATE_FEATURES)] for seed in range(60)]
    thermal = np.array([state[STATE_FEATURES.index("thermal")] for state in begun])
    power_w = np.array([state[STATE_FEATURES.index("recent power in W")] for state in begun])
    assert thermal.min() < 0.1 and thermal.max() > 0.6
    assert power_w.min() < 0.01 and power_w.max() > 0.05


def test_tables_are_scaled_to_each_device():
    env = environment()
    for name in SHORT.devices:
        env.reset(seed=0, options={"device": name})
        expected = TABLE.for_device(device_profile(name))
        assert env.device.table.rows == expected.rows


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: SplitEnv(TABLE, [], LOADS), "got 0 traces and 1 loads"),
        (lambda: SplitEnv(TABLE, TRACES, []), "got 2 traces and 0 loads"),
        (lambda: environment().step(0), "call reset"),
        (lambda: EnvironmentSettings(devices=()), "expected some of"),
        (lambda: EnvironmentSettings(devices=("pi5",)), "got device 'pi5'"),
        (lambda: EnvironmentSettings(least_load=0.9, most_load=0.1), "a range that is not empty"),
    ],
)
def test_what_cannot_be_is_one_clear_error(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


def test_useful_cuts_keep_what_none_beats_and_drop_what_one_does():
    kept = set(map(str, useful_cuts(TABLE)))
    assert {"4:none", "4:embedding-int8"} <= kept
    rows = {str(row.cut): row for row in TABLE.rows}
    worse = rows["3:int8"]._replace(cut=Cut.parse("3:fp16"), edge_ms=25.0, payload_bytes=2_400.0, agreement=0.96)
    better = worse._replace(agreement=0.99)  # more time and bytes, but more faithful, too
    for row, useful in ((worse, False), (better, True)):
        table = TABLE._replace(rows=tuple(sorted([*TABLE.rows, row], key=lambda row: row.cut)))
        assert (Cut.parse("3:fp16") in useful_cuts(table)) is useful
    with pytest.raises(CutError, match="without a cut that sends nothing"):
        useful_cuts(TABLE.only([cut for cut in TABLE.cuts if cut.sends]))


def test_what_useful_cuts_drop_is_never_worth_much_whatever_the_link():
    """On any constant link and load, the best of the kept ones is as good as the best of all, but for noise."""
    kept = useful_cuts(TABLE)
    for rate_bps in (3e4, 3e5, 3e6, 3e7):
        for load in (0.0, 0.6):
            best = {}
            for cut in TABLE.cuts:
                steps = FollowPolicy(simulated(rate_bps, load, windows=8)).run(FixedPolicy(cut))
                best[cut] = sum(step.reward for step in steps)
            assert max(best[cut] for cut in kept) >= max(best.values()) - 0.1 * 8


def test_a_policy_is_followed_until_the_trace_ends():
    device = simulated(mobile_link(1), windows=30)
    steps = FollowPolicy(device).run(GreedyPolicy())
    assert len(steps) == 30 and device.done
    assert isinstance(environment(), gymnasium.Env) and len(COSTS) == len(small_table().rows)
    assert constant_trace(1e6).duration_s == 1.0 and OBJECTIVE.version == "v2"
