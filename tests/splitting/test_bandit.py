"""The bandit: its formula once by hand, then what it learns from links whose law is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from policy_cases import COSTS, small_table

from streamsplit.splitting.bandit import BanditPolicy, BanditSettings
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.decision import Experience
from streamsplit.splitting.greedy import GreedySettings
from streamsplit.splitting.observation import Observation

TABLE = small_table()
OBJECTIVE = GreedySettings(
    quality=10.0, latency=5.0, energy=3.0, traffic=4.0, local=3.0, local_certain=0.2, traffic_bytes=1_500.0,
    deadline_ms=1000.0,
)  # fmt: skip


def costs(network_ms: dict[str, float], doubt: float = 0.5) -> dict[str, float]:
    """What each cut really costs over a link that takes these times."""
    return {
        text: 10 * (1 - agreement) + 3 * energy / 100 + 4 * size / 1500
        + 5 * min(edge + (0.0 if text == "4:none" else network_ms[text]), 1000.0) / 200
        + (3 * (0.2 + 0.8 * doubt) if text == "4:none" else 0.0)
        for text, (edge, _, size, energy, agreement) in COSTS.items()
    }  # fmt: skip


def over(bps: float, rtt_ms: float, server: float = 1.0) -> dict[str, float]:
    """A link that is exactly what the bandit's model can say."""
    return {text: rtt_ms + size * 8000 / bps + server * work for text, (_, work, size, _, _) in COSTS.items()}


def run(
    policy: BanditPolicy, link: dict[str, float], windows: int, rng: np.random.Generator, doubt: float = 0.5
) -> tuple[list[str], float]:
    """(cuts taken, regret of them all) over `link`, with 2 ms of noise."""
    taken, true = [], costs(link, doubt)
    for _ in range(windows):
        seen = Observation(uncertainty=doubt * OBJECTIVE.full_uncertainty)
        cut = policy.decide(seen, TABLE).cut
        network = math.nan if not cut.sends else link[str(cut)] + 2.0 * rng.standard_normal()
        policy.learn(Experience(seen, cut, network, network))
        taken.append(str(cut))
    return taken, sum(true[text] - min(true.values()) for text in taken)


@pytest.mark.parametrize(("bps", "rtt_ms"), [(2e6, 40.0), (5e4, 30.0), (2e7, 5.0)])
def test_on_a_constant_link_it_ends_at_the_best_cut_with_regret_that_flattens(bps, rtt_ms):
    link, rng = over(bps, rtt_ms), np.random.default_rng(1)
    best = min(costs(link).items(), key=lambda item: item[1])[0]
    policy = BanditPolicy(BanditSettings(discount=1.0), OBJECTIVE)
    _, early = run(policy, link, 100, rng)
    run(policy, link, 700, rng)
    taken, late = run(policy, link, 100, rng)
    assert late <= 0.3 * early + 1.0
    assert taken.count(best) >= 80


def test_it_finds_back_to_sending_after_a_link_was_dead_for_long():
    """Keeping everything teaches nothing: only the forced samples can tell that the link is good again."""
    rng, doubt = np.random.default_rng(2), 0.9
    good, dead = over(2e6, 40.0), over(1e3, 3000.0)
    best = min(costs(good, doubt).items(), key=lambda item: item[1])[0]
    assert best != "4:none" and min(costs(dead, doubt).items(), key=lambda item: item[1])[0] == "4:none"
    policy = BanditPolicy(objective=OBJECTIVE)
    run(policy, good, 200, rng, doubt)
    taken, _ = run(policy, dead, 300, rng, doubt)
    sent = sum(text != "4:none" for text in taken[100:])
    assert taken[100:].count("4:none") >= 120 and sent >= 10
    taken, _ = run(policy, good, 250, rng, doubt)
    assert taken[150:].count(best) >= 90


def test_the_choice_is_mulinucbs_formula():
    """Two samples, then theta, width and the optimistic cost of every cut worked out from the paper's equations."""
    settings = BanditSettings(exploration=0.3, discount=1.0, regularisation=0.1)
    policy = BanditPolicy(settings, OBJECTIVE)
    policy.decide(Observation(), TABLE)
    told = {"2:int8": 150.0, "4:embedding-int8": 45.0}
    for text, ms in told.items():
        policy.learn(Experience(Observation(), Cut.parse(text), ms + 10, ms))
    x = {text: np.array([1.0, size / 10_000, work / 10]) for text, (_, work, size, _, _) in COSTS.items()}
    a = 0.1 * np.eye(3) + sum(np.outer(x[text], x[text]) for text in told)
    theta = np.linalg.solve(a, sum(ms / 100 * x[text] for text, ms in told.items()))
    for uncertainty, cpu in ((0.0, 0.0), (0.5, 0.5), (0.99, 0.9)):  # shares
        optimistic, latencies = {}, {}
        for text, (edge, _, size, energy, agreement) in COSTS.items():
            delay = max(theta @ x[text], 0.0) - 0.3 * math.sqrt(1 - uncertainty) * math.sqrt(
                x[text] @ np.linalg.solve(a, x[text])
            )
            latency = edge / (1 - cpu) + (0.0 if text == "4:none" else 100 * delay)
            latencies[text] = latency
            optimistic[text] = 10 * (1 - agreement) + 3 * energy / 100 + 4 * size / 1500 + 5 * min(latency, 1000) / 200
            optimistic[text] += 3 * (0.2 + 0.8 * uncertainty) if text == "4:none" else 0.0
        seen = Observation(uncertainty=uncertainty * OBJECTIVE.full_uncertainty, cpu=cpu)
        best = min(optimistic.items(), key=lambda item: item[1])[0]
        decision = policy.decide(seen, TABLE)
        assert str(decision.cut) == best and f": {latencies[best]:.0f} ms expected" in decision.reason


def test_it_sends_now_and_then_whatever_it_believes():
    policy, kept = BanditPolicy(BanditSettings(forced_share=0.25), OBJECTIVE), []
    for _ in range(400):
        cut = policy.decide(Observation(uncertainty=0.0), TABLE).cut
        kept.append(not cut.sends)
        policy.learn(Experience(Observation(), cut, 1e6, 1e6 if cut.sends else math.nan))
    gaps = np.diff(np.flatnonzero(~np.array(kept))[5:])
    assert gaps.min() >= 3 and gaps.max() <= math.ceil(401**0.25) + 1  # about n ** 0.25 are kept in between
    assert gaps[-1] > gaps[0]


def test_windows_that_never_came_back_and_cuts_of_another_table_teach_nothing():
    policy = BanditPolicy(objective=OBJECTIVE)
    policy.learn(Experience(Observation(), Cut.parse("2:int8"), 50.0, 40.0))  # before it has seen any table
    policy.decide(Observation(), TABLE)
    for cut, network_ms in (("2:int8", math.inf), ("2:int8", math.nan), ("4:none", 30.0), ("7:int8", 30.0)):
        policy.learn(Experience(Observation(), Cut.parse(cut), 50.0, network_ms))
    assert "after 0 samples" in policy.decide(Observation(), TABLE).reason


def test_what_it_learned_survives_a_change_of_the_rows_it_may_take():
    policy, rng = BanditPolicy(objective=OBJECTIVE), np.random.default_rng(0)
    run(policy, over(2e6, 40.0), 60, rng)
    part = TABLE.only([Cut.parse(text) for text in ("0:opus24", "3:int8", "4:none")])
    samples = int(policy.decide(Observation(), part).reason.split()[2])
    assert samples >= 30
