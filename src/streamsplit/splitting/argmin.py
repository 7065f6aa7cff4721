"""Neurosurgeon's rule: the cut with the least expected latency (or energy), from the table and the link's estimates."""

from __future__ import annotations

from streamsplit.errors import CutError
from streamsplit.splitting.decision import Decision
from streamsplit.splitting.greedy import GreedyPolicy
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.table import CutTable


class ArgminPolicy:
    """Kang et al., ASPLOS 2017: per-block times by table, transfer time by the current rate, take the smallest sum.

    Every window goes to the server, as in the paper, unless the link is down: cuts that send nothing are left out
    (`keeps` brings them in). It knows neither bytes, nor quality, nor what waits already.
    """

    def __init__(
        self, *, minimise: str = "latency", keeps: bool = False, estimator: GreedyPolicy | None = None
    ) -> None:
        if minimise not in ("latency", "energy"):
            raise CutError(f"got minimise '{minimise}', expected 'latency' or 'energy'")
        self.minimise, self.keeps = minimise, keeps
        self._estimator = estimator or GreedyPolicy()  # fills in what the observation does not know

    def decide(self, observation: Observation, table: CutTable) -> Decision:
        """The row with the least; ties go to the shallower cut."""
        given = self._estimator.conditions(observation)
        best, least = None, float("inf")
        for row in table.rows:
            if not (row.cut.sends or self.keeps or not observation.link_up):
                continue
            cost = row.edge_ms / given.free_cpu
            if row.cut.sends:
                cost += row.payload_bytes * 8000.0 / given.bps + given.rtt_ms + row.server_ms
            if self.minimise == "energy":
                cost = row.energy_mj
            if cost < least:
                best, least = row, cost
        if best is None:
            raise CutError(f"got a table for '{table.encoder}' without a cut that sends, expected at least one")
        unit = "ms" if self.minimise == "latency" else "mJ"
        return Decision(best.cut, 1.0, f"least {self.minimise}: {least:.1f} {unit} at {given.bps / 1e6:.2f} Mbit/s")
