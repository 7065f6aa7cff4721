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


@runtime_checkable
class Policy(Protocol):
    """Anything that picks a row of a cut table.

    `decide` holds no state: what a policy must remember (its last cut) comes in with the observation, so that the live
    runtime, a simulation and a test get the same decisions from the same inputs. Learned policies join by this method.
    """

    def decide(self, observation: Observation, table: CutTable) -> Decision:
        """The cut for the next window, always one of the table's; raises CutError when it has none that serves."""
        ...
