"""What it brings that a change of the cut has to earn its price: changes an hour and reward, with and without.

    OMP_NUM_THREADS=1 python -m benchmarks.steady_cut [--seconds 600] [--seeds 6]

Simulated devices on generated mobile links under recorded loads (scaled to half), the same for every policy. Means over
the seeds.
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise

import numpy as np

from benchmarks.record import record
from streamsplit.network.generator import generate_trace
from streamsplit.simulation.device import SimulatedDevice
from streamsplit.simulation.environment import EnvironmentSettings
from streamsplit.simulation.follow import FollowPolicy
from streamsplit.simulation.load import recorded_loads
from streamsplit.splitting.device import device_profile
from streamsplit.splitting.policy import PolicySettings, make_policy
from streamsplit.splitting.steady import SteadySettings
from streamsplit.splitting.table import packaged_table

DEVICES = ("pi4", "pi-zero-2w")
NAMES = ("greedy", "argmin", "bandit")
FIRST_SEED = 100
LOAD_SCALE = 0.5


def main() -> int:
    """Simulates, prints, writes benchmarks/results/steady_cut.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seeds", type=int, default=6)
    args = parser.parse_args()
    seeds = list(range(FIRST_SEED, FIRST_SEED + args.seeds))
    figures: dict[str, dict[str, float]] = {}
    for device in DEVICES:
        for name in NAMES:
            for enabled in (False, True):
                runs = [_run(device, name, enabled, args.seconds, seed) for seed in seeds]
                changes, reward = (float(np.mean(column)) for column in zip(*runs, strict=True))
                key = f"{device} {name} {'steady' if enabled else 'plain'}"
                figures[key] = {"changes_per_h": round(changes, 1), "reward": round(reward, 4)}
                print(f"{key:28s} {changes:8.1f} changes an hour, reward {reward:9.4f}")
    settings = {"seconds": args.seconds, "load_scale": LOAD_SCALE, "steady": SteadySettings().as_dict()}
    print(f"written to {record('steady_cut', figures, settings, seeds)}")
    return 0


def _run(device: str, name: str, enabled: bool, seconds: float, seed: int) -> tuple[float, float]:
    """(changes of the cut an hour, mean reward of a window)."""
    loads = recorded_loads()
    simulated = SimulatedDevice(
        packaged_table("mobilenet", device), device_profile(device), generate_trace(seconds, seed=seed),
        loads[seed % len(loads)].scaled(LOAD_SCALE), seed=seed,
    )  # fmt: skip
    settings = PolicySettings(name=name, greedy=EnvironmentSettings().greedy, steady=SteadySettings(enabled=enabled))
    steps = FollowPolicy(simulated).run(make_policy(settings))
    changes = sum(before.cut != after.cut for before, after in pairwise(steps))
    return changes * 3600.0 / seconds, float(np.mean([step.reward for step in steps]))


if __name__ == "__main__":
    sys.exit(main())
