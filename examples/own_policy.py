"""A splitting policy of one's own: anything with `decide(observation, table) -> Decision` works.

This one never sends audio or features (privacy), and takes the shallowest activation cut that crosses in time.
Run it against the packaged cost table: `python examples/own_policy.py`.
"""

from __future__ import annotations

import math

from streamsplit.splitting.decision import Decision
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.table import CutTable, packaged_table
from streamsplit.wire.media import Encoding


class ShallowestThatFits:
    """The fewest blocks on the device such that one window crosses within `budget_ms`."""

    def __init__(self, budget_ms: float = 250.0) -> None:
        self.budget_ms = budget_ms

    def decide(self, observation: Observation, table: CutTable) -> Decision:
        """Falls back to the smallest payload where nothing fits."""
        whole = [row for row in table.rows if row.cut.encoding is not Encoding.EXIT_FP16]  # no early exits
        rows = [row for row in whole if row.cut.block > 0 and row.cut.sends]
        for row in sorted(rows, key=lambda row: row.cut.block):
            send_ms = (observation.backlog_bytes + row.payload_bytes) * 8000 / observation.bandwidth_bps
            if row.edge_ms + send_ms + observation.rtt_ms <= self.budget_ms:
                return Decision(row.cut, 1.0, f"{row.cut} crosses in {send_ms:.0f} ms")
        smallest = min(rows, key=lambda row: row.payload_bytes)
        return Decision(smallest.cut, 0.5, f"nothing fits {self.budget_ms:.0f} ms: the smallest payload")


def main() -> None:
    """Prints the choice for links from good to poor."""
    table = packaged_table("mobilenet", "pi4")
    policy = ShallowestThatFits()
    for bandwidth_bps in (50e6, 5e6, 1e6, 200e3, 20e3):
        observation = Observation(
            uncertainty=math.nan, cpu=0.2, memory=0.4, battery=1.0, thermal=0.3, bandwidth_bps=bandwidth_bps,
            bandwidth_age_ms=0.0, rtt_ms=40.0, rtt_age_ms=0.0, backlog_bytes=0, last_cut=None,
        )  # fmt: skip
        print(f"{bandwidth_bps / 1e6:6.2f} Mbit/s  {policy.decide(observation, table).reason}")


if __name__ == "__main__":
    main()
