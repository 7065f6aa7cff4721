"""HeuristicSplit: split training whose cut follows load and bandwidth by v1's formula (App. H)."""

from __future__ import annotations

from streamsplit.encoders.base import SplitEncoder
from streamsplit.evaluation.baselines.fsl import Chooser, SplitTraining
from streamsplit.network.generator import generate_trace
from streamsplit.simulation.load import recorded_loads
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.heuristic import HeuristicPolicy
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.table import packaged_table

TRACE_S = 600.0


def heuristic_split() -> SplitTraining:
    """Split training at k = clip(floor(L (0.6 (1 - cpu) + 0.4 bandwidth)), 1, L - 1), chosen anew each turn."""
    return SplitTraining("heuristic_split", "split by v1's formula from load and bandwidth", _chooser)


def _chooser(encoder: SplitEncoder, seed: int) -> Chooser:
    """The policy over a generated mobile link and a recorded load, both drawn by the seed."""
    policy, table = HeuristicPolicy(), packaged_table(encoder.name)
    link, loads = generate_trace(TRACE_S, seed), recorded_loads()
    load = loads[seed % len(loads)]

    def choose(seconds: float) -> Cut:
        return policy.decide(Observation(cpu=load.at(seconds), bandwidth_bps=link.at(seconds)[0]), table).cut

    return choose
