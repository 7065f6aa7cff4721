"""What a policy answers, and what makes an object a policy."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from streamsplit.splitting.cut import Cut
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.table import CutTable


class Decision(NamedTuple):
    """The chosen cut, how sure the policy is in [0, 1], and why, in words for a log line."""

    cut: Cut
    confidence: float
    reason: str


class Experience(NamedTuple):
    """How a decision turned out, for policies that learn while running."""

    observation: Observation  # what the policy saw
    cut: Cut  # what it chose
    latency_ms: float  # from the end of the window to its result, wherever that came from
    network_ms: float  # of that, from leaving the device's processor; nan where nothing crossed


@runtime_checkable
class Policy(Protocol):
    """Anything that picks a row of a cut table.

    `decide` holds no state: what a policy must remember (its last cut) comes in with the observation, so that the live
    runtime, a simulation and a test get the same decisions from the same inputs. Learned policies join by this method.
    """

    def decide(self, observation: Observation, table: CutTable) -> Decision:
        """The cut for the next window, always one of the table's; raises CutError when it has none that serves."""
        ...


@runtime_checkable
class LearningPolicy(Policy, Protocol):
    """A policy that is told how its decisions turned out, one by one, as results come in."""

    def learn(self, experience: Experience) -> None:
        """Takes one window's outcome into account."""
        ...
