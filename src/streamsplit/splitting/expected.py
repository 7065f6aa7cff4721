"""What every cut of a table is expected to cost at one moment: numbers by row, from one set of weights."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamsplit.splitting.cut import AUDIO_ENCODINGS, overlap_rank
from streamsplit.splitting.objective import quality_losses, risk_of
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.table import CutTable

Floats = NDArray[np.float64]
LONGEST_RTT_MS = 1e9  # beyond it, or below 0, an estimate says nothing
LEAST_BPS = 1e-3  # a slower link carries nothing in a lifetime


class CutArrays(NamedTuple):
    """A table as columns [n], made once and looked at many times."""

    edge_ms: Floats
    server_ms: Floats
    payload_bytes: Floats
    energy_mj: Floats
    quality_loss: Floats  # in [0, 1]
    privacy_risk: Floats  # 0 where not measured
    sends: NDArray[np.bool_]
    block: NDArray[np.int64]
    fetch_bytes: Floats
    audio: NDArray[np.bool_]  # block 0, coded sound
    overlap: NDArray[np.int64]  # `overlap_rank`: what a window may leave out where the one before has sent it

    @classmethod
    def of(cls, table: CutTable) -> CutArrays:
        """The columns of a table's rows, in order."""
        rows = table.rows
        block = np.array([row.cut.block for row in rows])
        return cls(
            np.array([row.edge_ms for row in rows]), np.array([row.server_ms for row in rows]),
            np.array([row.payload_bytes for row in rows]), np.array([row.energy_mj for row in rows]),
            np.array(quality_losses(table)), np.array([risk_of(row) for row in rows]),
            np.array([row.cut.sends for row in rows]), block, np.array([row.fetch_bytes for row in rows]),
            np.array([row.cut.encoding in AUDIO_ENCODINGS for row in rows]),
            np.array([overlap_rank(row.cut) for row in rows]),
        )  # fmt: skip


class Conditions(NamedTuple):
    """What an observation comes to once its unknowns are filled in."""

    free_cpu: float
    bps: float
    rtt_ms: float
    backlog_ms: float  # what waits, over the rate
    doubt: float  # uncertainty as a share of its largest value


class Expectation(NamedTuple):
    """Of every row [n]."""

    latency_ms: Floats
    behind_ms: Floats  # how far device or link fall behind over the horizon
    total: Floats  # weighted sum


def share(value: float) -> float:
    """Clipped to [0, 1]; nan counts as 0."""
    return min(max(value, 0.0), 1.0) if value == value else 0.0


def trust(age_ms: float, fresh_ms: float, half_life_ms: float) -> float:
    """How much an estimate of this age still says, in [0, 1]: all while fresh, half of the rest in each
    `half_life_ms`, nothing where the age is not known."""
    if math.isnan(age_ms):
        return 0.0
    stale_ms = max(age_ms - fresh_ms, 0.0)
    return float(0.5 ** (stale_ms / half_life_ms))


def rate_bps(observation: Observation, assumed_bps: float, fresh_ms: float, half_life_ms: float) -> float:
    """The uplink rate to count with: the estimate while fresh, then (in log) on its way to `assumed_bps`."""
    if not (math.isfinite(observation.bandwidth_bps) and observation.bandwidth_bps > 0):
        return assumed_bps
    known = trust(observation.bandwidth_age_ms, fresh_ms, half_life_ms)
    if known == 0.0:
        return assumed_bps
    measured_bps = max(observation.bandwidth_bps, LEAST_BPS)
    if known == 1.0:
        return measured_bps
    return math.exp(known * math.log(measured_bps) + (1.0 - known) * math.log(assumed_bps))
