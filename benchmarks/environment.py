"""Steps a second of the training environment on one core, process time: `python -m benchmarks.environment`."""

from __future__ import annotations

import time

import numpy as np

from benchmarks.record import record
from streamsplit.network.trace import generate_trace
from streamsplit.simulation.environment import EnvironmentSettings, SplitEnv
from streamsplit.simulation.load import recorded_loads
from streamsplit.splitting.table import packaged_table

STEPS = 20_000
ROUNDS = 5


def steps_per_s(env: SplitEnv, seed: int) -> float:
    """Under random actions among those that are within 5 of the least expected cost, as a policy in training takes."""
    rng = np.random.default_rng(seed)
    states = env.observation_space.shape[0] - 2 * len(env.cuts)
    observation, _ = env.reset(seed=seed)
    draws = rng.random(STEPS).tolist()  # drawn before, as choosing is not what is timed
    started_s = time.process_time()
    for draw in draws:
        sensible = np.flatnonzero(observation[states : states + len(env.cuts)] < 5.0 / 4.0)
        observation, _, _, done, _ = env.step(sensible[int(draw * len(sensible))])
        if done:
            observation, _ = env.reset()
    return STEPS / (time.process_time() - started_s)


def main() -> None:
    """Plain, and with rewards relative to an idle device's."""
    table, traces = packaged_table("mobilenet"), [generate_trace(300, seed) for seed in range(8)]
    figures = {}
    for name, relative in (("plain", False), ("relative", True)):
        env = SplitEnv(table, traces, recorded_loads(), EnvironmentSettings(relative=relative))
        rates = [steps_per_s(env, seed) for seed in range(ROUNDS)]
        figures[f"{name}_steps_per_s"] = {"median": round(float(np.median(rates))), "max": round(max(rates))}
        print(name, figures[f"{name}_steps_per_s"])
    record("environment", figures, {"steps": STEPS, "rounds": ROUNDS, "actions": len(env.cuts)}, range(ROUNDS))


if __name__ == "__main__":
    main()
