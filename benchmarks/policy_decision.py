"""How long a decision takes: every policy on the same observations, alone, with what it learns, and with its log.

    OMP_NUM_THREADS=1 python -m benchmarks.policy_decision [--policy FILE] [--rounds N]

Process time in microseconds, policies in turn within every round (so that a slow moment of the machine hits all of
them); medians over the rounds. The goals: 50 us for a learned decision, 1 ms for one with its log (alternatives,
hindsight, two lines of the journal). Without a trained policy an untrained one of the same size stands in: it takes
the same time.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.record import record
from streamsplit.edge.journal import Journal
from streamsplit.errors import CutError
from streamsplit.splitting.decision import Decision, Experience, Policy
from streamsplit.splitting.decision_log import DecisionLog
from streamsplit.splitting.device import device_profile
from streamsplit.splitting.features import STATE_FEATURES
from streamsplit.splitting.greedy import GreedySettings
from streamsplit.splitting.hindsight import Realised
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.policy import POLICIES, PolicySettings, fallbacks_of, learner_of, make_policy
from streamsplit.splitting.policy_file import Layer, PolicyFile, architecture_of, load_policy, packaged_policy
from streamsplit.splitting.table import CutTable, packaged_table
from streamsplit.splitting.useful import useful_cuts
from streamsplit.wire.frame import HEADER_BYTES

ENCODER, DEVICE = "mobilenet", "pi4"
HIDDEN = 64
SEED = 0
WINDOWS = 200  # a round
GOAL_LEARNED_US = 50.0
GOAL_LOGGED_US = 1000.0


def main() -> int:
    """Measures, prints, writes benchmarks/results/policy_decision.json; returns 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--policy", type=Path, help="a policy file; default the one that ships, else an untrained one")
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    table = packaged_table(ENCODER, DEVICE)
    file, origin = _policy_file(args.policy, table)
    policies = {name: _make(name, file) for name in POLICIES}
    alone: dict[str, list[float]] = {name: [] for name in POLICIES}
    learning: dict[str, list[float]] = {name: [] for name in POLICIES}
    logged: dict[str, list[float]] = {name: [] for name in POLICIES}
    rng = np.random.default_rng(SEED)
    log = DecisionLog(device_profile(DEVICE))
    sent: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal")
        for number in range(args.rounds + 1):
            observations = _observations(rng)
            for name, policy in policies.items():
                decisions, decide_us = _decide(policy, observations, table)
                sent.update({name: sent.get(name, 0) + sum(made.cut.sends for made in decisions)})
                learn_us = _learn(policy, observations, decisions, table)
                log_us = _log(log, journal, observations, decisions, table)
                if number:  # the first round prepares tables
                    alone[name].append(decide_us)
                    learning[name].append(learn_us)
                    logged[name].append(decide_us + learn_us + log_us)
        journal.close()
    figures = {
        "decide_us": {name: round(float(np.median(values)), 2) for name, values in alone.items()},
        "decide_p95_us": {name: round(float(np.percentile(values, 95)), 2) for name, values in alone.items()},
        "learn_us": {name: round(float(np.median(learning[name])), 2) for name in ("bandit", "ppo-corrected")},
        "with_log_us": {name: round(float(np.median(values)), 2) for name, values in logged.items()},
        "windows_sent": sent,
        "fallbacks": fallbacks_of(policies["ppo"]),
        "goals_us": {"learned": GOAL_LEARNED_US, "with_log": GOAL_LOGGED_US},
    }
    settings = {
        "encoder": ENCODER, "device": DEVICE, "rows": len(table.rows), "actions": len(file.cuts), "policy": origin,
        "rounds": args.rounds, "windows_a_round": WINDOWS,
    }  # fmt: skip
    path = record("policy_decision", figures, settings, [SEED])
    for name in POLICIES:
        learned = figures["learn_us"].get(name, 0.0)
        print(
            f"{name:14s} {figures['decide_us'][name]:7.1f} us a decision (p95 of rounds "
            f"{figures['decide_p95_us'][name]:.1f}), {learned:5.1f} us to learn, "
            f"{figures['with_log_us'][name]:7.1f} us with its log"
        )
    print(f"ppo: {origin}; written to {path}")
    met = figures["decide_us"]["ppo"] < GOAL_LEARNED_US and max(figures["with_log_us"].values()) < GOAL_LOGGED_US
    return 0 if met else 1


def _policy_file(path: Path | None, table: CutTable) -> tuple[PolicyFile, str]:
    if path is not None:
        return load_policy(path), str(path)
    try:
        return packaged_policy(ENCODER), "packaged"
    except (CutError, OSError):
        rng = np.random.default_rng(SEED)
        cuts = useful_cuts(table)
        widths = (len(STATE_FEATURES) + len(cuts), HIDDEN, HIDDEN, len(cuts))
        layers = tuple(
            Layer(rng.standard_normal((n, m)).astype(np.float32) / math.sqrt(n), np.zeros(m, np.float32))
            for n, m in pairwise(widths)
        )
        bound = np.full(len(STATE_FEATURES), 1e3, np.float32)
        return (
            PolicyFile(
                ENCODER, architecture_of(table), table.num_blocks, cuts, GreedySettings(deadline_ms=1000.0), layers,
                2.0, -bound, bound, {},
            ),
            "untrained",
        )  # fmt: skip


def _make(name: str, file: PolicyFile) -> Policy:
    return make_policy(PolicySettings(name=name, cut="6:int8" if name == "fixed" else ""), file)


def _observations(rng: np.random.Generator) -> list[Observation]:
    """A device whose load and link wander."""
    load = np.clip(np.cumsum(rng.normal(0, 0.03, WINDOWS)) + 0.3, 0.0, 0.95).tolist()
    mbps = np.exp(np.cumsum(rng.normal(0, 0.1, WINDOWS)) + 1.0).tolist()
    return [
        Observation(
            uncertainty=2.0, cpu=cpu, memory=0.4, battery=0.8, thermal=0.1, bandwidth_bps=1e6 * rate,
            bandwidth_age_ms=200.0, rtt_ms=50.0, rtt_age_ms=200.0, backlog_bytes=2_000, power_mw=50.0,
        )
        for cpu, rate in zip(load, mbps, strict=True)
    ]  # fmt: skip


def _decide(policy: Policy, observations: Sequence[Observation], table: CutTable) -> tuple[list[Decision], float]:
    decisions: list[Decision] = []
    last = None
    started = time.process_time_ns()
    for observation in observations:
        decisions.append(policy.decide(observation._replace(last_cut=last), table))
        last = decisions[-1].cut
    return decisions, (time.process_time_ns() - started) / 1000.0 / len(observations)


def _learn(
    policy: Policy, observations: Sequence[Observation], decisions: Sequence[Decision], table: CutTable
) -> float:
    learner = learner_of(policy)
    if learner is None:
        return 0.0
    experiences = [
        Experience(seen, made.cut, 90.0, 60.0 if made.cut.sends else math.nan)
        for seen, made in zip(observations, decisions, strict=True)
    ]
    started = time.process_time_ns()
    for experience in experiences:
        learner.learn(experience)
    return (time.process_time_ns() - started) / 1000.0 / len(observations)


def _log(
    log: DecisionLog, journal: Journal, observations: Sequence[Observation], decisions: Sequence[Decision],
    table: CutTable,
) -> float:  # fmt: skip
    started = time.process_time_ns()
    for seen, decision in zip(observations, decisions, strict=True):
        made = log.decided(seen, decision, table)
        journal.write("window", 0.0, cut=str(made.cut), expected_cost=made.expected, alternatives=made.plain())
        row = table.row(made.cut)
        size = row.payload_bytes + HEADER_BYTES if made.cut.sends else 0.0
        network_ms = 60.0 if made.cut.sends else math.nan
        what = Realised(made.cut, 90.0, network_ms, row.edge_ms, size, seen.bandwidth_bps, 50.0, row.server_ms)
        judged = log.judge(made, what)
        if judged is not None:
            journal.write("hindsight", 0.0, cost=judged.cost, regret=judged.regret, best=str(judged.best))
    return (time.process_time_ns() - started) / 1000.0 / len(observations)


if __name__ == "__main__":
    sys.exit(main())
