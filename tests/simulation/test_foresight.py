"""Policies that know the future: their model beside the device itself, their plans beside every plan there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from device_cases import ACTION, OBJECTIVE, QUIET, TABLE, bursty_load, mobile_link, simulated, small_table

from streamsplit.network.trace import make_trace
from streamsplit.simulation.device import SimulatedDevice, Step
from streamsplit.simulation.follow import FollowPolicy
from streamsplit.simulation.foresight import GreedyOracle, LookAheadOracle, PerfectModel
from streamsplit.splitting.argmin import ArgminPolicy
from streamsplit.splitting.bandit import BanditPolicy
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.greedy import GreedyPolicy, GreedySettings
from streamsplit.splitting.policy import FixedPolicy

V1 = OBJECTIVE.replace(version="v1", resources=5.0)


def total(steps: list[Step]) -> float:
    return sum(step.reward for step in steps)


@pytest.mark.parametrize(
    ("seed", "slower", "objective", "level"),
    [(0, 1.0, OBJECTIVE, 0.2), (1, 4.0, V1, 0.05), (2, 10.0, OBJECTIVE, 0.05), (3, 25.0, OBJECTIVE, None)],
)
def test_the_perfect_model_foresees_what_the_device_peeks_and_what_waits_after_it(seed, slower, objective, level):
    """On the states of a random run; at 25 times the work it falls behind and loses windows."""
    rng = np.random.default_rng(seed)
    device = simulated(
        mobile_link(seed, level=level), bursty_load(seed), QUIET.replace(server_wait_ms=5.0, objective=objective),
        table=small_table(slower), windows=80, link_start_s=13.3 * seed, load_start_s=3.21 * seed, seed=seed,
    )  # fmt: skip
    model, waited = PerfectModel(device), 0
    while not device.done:
        device.observe()
        lags = [np.array([max(at_s - device.index * 0.5, 0.0)]) for at_s in (device.free_s, device.uplink.free_at_s)]
        waited += lags[0][0] > 0 or lags[1][0] > 0
        outcome = model.outcomes(np.array([device.index]), *lags, np.array([device.chain]))
        peeks = [device.peek(action) for action in range(len(TABLE.rows))]
        np.testing.assert_allclose(outcome.reward[0], peeks, atol=1e-6)
        action = int(rng.integers(len(TABLE.rows)))
        device.step(action)
        end_s = device.index * 0.5
        assert outcome.compute_lag_s[0, action] == pytest.approx(max(device.free_s - end_s, 0.0), abs=1e-6)
        assert outcome.link_lag_s[0, action] == pytest.approx(max(device.uplink.free_at_s - end_s, 0.0), abs=1e-6)
        assert model.left_behind()[action] == device.chain or device.chain == 0
    assert not device.throttled and (waited > 10 or slower == 1.0)


def test_the_best_of_an_idle_device_is_that_of_one_which_starts_at_that_window():
    link, load = mobile_link(3, level=0.1), bursty_load(3)
    device = simulated(link, load, windows=40)
    best = PerfectModel(device).idle_best()
    assert best.shape == (40,)
    for window in (0, 7, 39):
        fresh = simulated(link, load, windows=40, link_start_s=window * 0.5, load_start_s=window * 0.5)
        fresh.doubts[1] = device.doubts[window + 1]
        fresh.observe()
        assert best[window] == pytest.approx(max(fresh.peek(action) for action in range(len(TABLE.rows))), abs=1e-6)


@pytest.mark.parametrize(("seed", "slower", "below"), [(5, 10.0, 1.9), (0, 14.0, 5.0)])
def test_the_look_ahead_plan_is_the_best_of_all_plans_on_a_small_problem(seed, slower, below):
    """Three cuts, six windows, 729 plans, on a link and a processor that fall behind; a grid stands in for the lags."""
    rates = 10 ** np.random.default_rng(seed).uniform(4.3, 5.5, 8)
    link, load = make_trace(np.arange(8) * 0.5, rates, 60.0), bursty_load(seed, most=0.6)
    part = small_table(slower).only([Cut.parse(text) for text in ("2:int8", "4:embedding-int8", "4:none")])
    settings = QUIET.replace(objective=OBJECTIVE.replace(unseen=6.0, traffic=0.2))

    def fresh() -> SimulatedDevice:
        return simulated(link, load, settings, table=part, windows=6)

    best = -np.inf
    for plan in itertools.product(range(3), repeat=6):
        device = fresh()
        best = max(best, sum(device.step(action).reward for action in plan))
    oracle = LookAheadOracle(fresh())
    assert total(FollowPolicy(fresh()).run(oracle)) >= best - 0.05
    assert oracle.bound == pytest.approx(best, abs=2.0)
    assert best - total(FollowPolicy(fresh()).run(GreedyOracle())) > below  # looking ahead does matter here


@pytest.mark.parametrize(("seed", "level", "slower"), [(0, None, 1.0), (1, 0.1, 1.0), (2, 0.05, 4.0), (4, 0.02, 1.0)])
def test_knowing_more_never_brings_less(seed, level, slower):
    """Look-ahead >= greedy oracle >= the best fixed cut, and look-ahead >= every policy that learns as it goes; in mean
    reward a window, but for 0.01 that the grid may cost."""
    link, load, table = mobile_link(seed, level=level), bursty_load(seed), small_table(slower)

    def mean(policy: object) -> float:
        return total(FollowPolicy(simulated(link, load, table=table, windows=100)).run(policy)) / 100

    weights = GreedySettings.from_objective(OBJECTIVE, 500.0)
    look_ahead = mean(LookAheadOracle(simulated(link, load, table=table, windows=100)))
    oracle = mean(GreedyOracle())
    fixed = [mean(FixedPolicy(cut)) for cut in table.cuts]
    online = [mean(policy) for policy in (GreedyPolicy(weights), ArgminPolicy(), BanditPolicy(objective=weights))]
    assert look_ahead >= oracle - 0.01
    assert oracle >= max(fixed) - 0.01
    assert look_ahead >= max(online) - 0.01
    assert look_ahead > max(fixed) + 0.02  # there is something to gain


def test_the_oracle_takes_over_a_device_in_any_state():
    """Behind by more than the buffer, on a dead link: still an action."""
    device = simulated(0.0, table=small_table(40.0), windows=60)
    oracle = LookAheadOracle(device)
    for _ in range(30):
        device.observe()
        device.step(ACTION["4:embedding-int8"])
    assert device.free_s - device.now_s <= 0 < device.free_s - device.index * 0.5
    assert 0 <= oracle.choose(device) < len(TABLE.rows)
    assert 0 <= GreedyOracle().choose(device) < len(TABLE.rows)
