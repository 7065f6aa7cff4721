"""Decisions on a device, without sockets: the recent power that a budget is held against, and outcomes in any order."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamsplit.audio.windows import Window, WindowStream
from streamsplit.edge.counters import Counters
from streamsplit.edge.decisions import MAX_AWAITED, Arrival, Decisions
from streamsplit.edge.emulation import Spent
from streamsplit.edge.model import make_model
from streamsplit.edge.payload import PieceChain
from streamsplit.edge.pipeline import Outcome, Surroundings, WindowPipeline
from streamsplit.edge.readings import Readings
from streamsplit.edge.settings import EdgeSettings
from streamsplit.splitting.constraints import ConstraintSettings
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.decision import Decision, Experience
from streamsplit.splitting.decision_log import DecisionLog
from streamsplit.splitting.device import device_profile
from streamsplit.splitting.link import LinkEstimate
from streamsplit.splitting.policy import PolicySettings, make_policy
from streamsplit.splitting.table import CutRow, CutTable, make_table
from streamsplit.splitting.transmission import GateSettings, UncertaintyGate
from streamsplit.wire.messages import Result

PI4 = device_profile("pi4")
PCM, FEATURES = Cut.parse("0:pcm16"), Cut.parse("0:logmel-int8")
LINK = LinkEstimate(4e6, 10.0, 40.0, 10.0, 0)
COST_MS = 8.0
TABLE = make_table(
    CutTable(
        "mobilenet", "pi4", 11.7, 13,
        (
            CutRow(PCM, COST_MS, 3.0, 16_020.0, PI4.energy_mj(COST_MS, 16_020), 1.0),
            CutRow(FEATURES, COST_MS, 3.0, 6_420.0, PI4.energy_mj(COST_MS, 6_420), 0.99),
        ),
        {},
    )
)  # fmt: skip


class Worker:
    """Every window costs the same."""

    device = PI4

    def run(self, work):
        return work(), Spent(COST_MS, 1.0)

    def drain(self, energy_mj: float) -> None:
        pass


class Learns:
    """Sends sound as it is, and writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[Experience] = []

    def decide(self, observation, table) -> Decision:
        return Decision(PCM, 1.0, "always")

    def learn(self, experience: Experience) -> None:
        self.told.append(experience)


@pytest.fixture(scope="module")
def windows() -> list[Window]:
    audio = np.random.default_rng(0).normal(0, 0.1, 16000 * 20).astype(np.float32)
    return WindowStream().push(audio)


def pipeline(policy, constraints: ConstraintSettings | None = None) -> WindowPipeline:
    model = make_model(EdgeSettings.from_mapping({"encoder": {"enabled": False}}))
    log = DecisionLog(PI4, constraints=constraints)
    return WindowPipeline(
        model, TABLE, policy, UncertaintyGate(GateSettings(enabled=False)), Worker(), PieceChain(100, 50), log=log,
        constraints=constraints,
    )  # fmt: skip


def processed(made: WindowPipeline, window: Window) -> Outcome:
    outcome = made.process(window, Surroundings(Readings(0.0, 0.4), LINK, True, 0))
    made.accepted(window, outcome)
    return outcome


def test_the_recent_power_is_the_running_mean_of_what_windows_cost(windows) -> None:
    constraints = ConstraintSettings(energy_budget_mw=1e6, energy_window_s=10.0)
    made = pipeline(Learns(), constraints)
    power = 0.0
    for window in windows:
        outcome = processed(made, window)
        assert outcome.observation.power_mw == pytest.approx(power)
        power += 0.5 / 10.0 * (outcome.energy_mj / 0.5 - power)
        assert made.power_mw == pytest.approx(power)
    assert power == pytest.approx(outcome.energy_mj / 0.5, rel=0.2)


def test_an_energy_budget_holds_over_the_windows_of_a_device(windows) -> None:
    cheap, dear = (PI4.energy_mj(COST_MS, size) / 0.5 for size in (6_420, 16_020))
    constraints = ConstraintSettings(energy_budget_mw=(cheap + dear) / 2, energy_window_s=5.0)
    free = pipeline(make_policy(PolicySettings(name="fixed", cut="0:pcm16")))
    held = pipeline(make_policy(PolicySettings(name="fixed", cut="0:pcm16", constraints=constraints)), constraints)
    assert {processed(free, window).cut for window in windows} == {PCM}
    cuts, powers = [], []
    for window in windows:
        cuts.append(processed(held, window).cut)
        powers.append(held.power_mw)
    # A table's row does not hold that sound after features goes up whole: by that much a window may cost more.
    whole_mw = PI4.radio.transmit_mj(16_020) / 0.5 * (0.5 / 5.0)
    assert max(powers) <= constraints.energy_budget_mw + whole_mw
    assert np.mean(powers[10:]) <= constraints.energy_budget_mw
    assert 0 < cuts.count(FEATURES) < len(windows) and cuts[0] == PCM


def follow(policy=None) -> tuple[Decisions, WindowPipeline, Learns, list[dict]]:
    learner = policy or Learns()
    made = pipeline(learner)
    notes: list[dict] = []
    assert made.log is not None
    decisions = Decisions(
        made.log, Counters(), policy=lambda: learner, link=lambda: LINK, note=lambda kind, **row: notes.append(row)
    )
    return decisions, made, learner, notes


def arrival(sequence: int, latency_ms: float = 90.0, at_s: float = 0.0) -> Arrival:
    result = Result(sequence=sequence, window=0, capture_ms=0, uncertainty=1.0, server_ms=2.0)
    return Arrival(result, latency_ms, at_s)


def test_outcomes_come_back_to_their_decisions_once_and_in_any_order(windows) -> None:
    decisions, made, learner, notes = follow()
    for sequence, window in enumerate(windows[:4], 1):
        decisions.made(processed(made, window), 7, sequence, 10.0)
    for sequence in (3, 1, 3, 99):
        decisions.answered(7, arrival(sequence, 100.0 + sequence))
    decisions.rejected(7, 2)
    decisions.answered(7, arrival(2))
    decisions.answered(8, arrival(4))  # another epoch: another window
    assert [told.latency_ms for told in learner.told] == [103.0, 101.0]
    assert [row["window"] for row in notes] == [2, 0] and all(row["regret"] >= 0 for row in notes)
    assert made.log is not None and made.log.judged == 2


def test_a_window_that_waited_for_a_dead_link_teaches_nothing_and_what_was_dropped_is_forgotten(windows) -> None:
    decisions, made, learner, _ = follow()
    outcome = made.process(windows[0], Surroundings(Readings(0.0, 0.4), LINK, False, 0))
    decisions.made(outcome, 7, 1, 10.0)
    decisions.made(processed(made, windows[1]), 7, None, 10.0)  # the queue was full
    decisions.answered(7, arrival(1, 60_000.0))
    assert learner.told == [] and made.log is not None and made.log.judged == 1


def test_what_is_awaited_is_bounded(windows) -> None:
    decisions, made, learner, _ = follow()
    outcome = processed(made, windows[0])
    for sequence in range(1, MAX_AWAITED + 11):
        decisions.made(outcome, 7, sequence, 0.0)
    assert len(decisions._awaited) == MAX_AWAITED
    decisions.answered(7, arrival(1))
    decisions.answered(7, arrival(MAX_AWAITED + 10))
    assert len(learner.told) == 1 and math.isfinite(learner.told[0].network_ms)
