"""A simulated device driven through its run by a policy or an oracle."""

from __future__ import annotations

from typing import Any

from streamsplit.simulation.device import SimulatedDevice, Step
from streamsplit.splitting.decision import Decision


class FollowPolicy:
    """Drives a device through a run by a policy: what the evaluation and the tests do with any of them."""

    def __init__(self, device: SimulatedDevice) -> None:
        self.device = device
        self._rows = {row.cut: index for index, row in enumerate(device.table.rows)}

    def run(self, policy: Any) -> list[Step]:
        """Every window that is left. `policy` decides from observations, learns from what comes in where it can, or,
        as an oracle, chooses with the device before it."""
        steps = []
        device = self.device
        while not device.done:
            observation = device.observe()
            if hasattr(policy, "choose"):
                steps.append(device.step(policy.choose(device)))
                continue
            if hasattr(policy, "learn"):
                while device.experiences:
                    policy.learn(device.experiences.popleft())
            decision: Decision = policy.decide(observation, device.table)
            steps.append(device.step(self._rows[decision.cut]))
        return steps
