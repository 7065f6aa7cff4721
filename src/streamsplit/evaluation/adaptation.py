"""How long a policy takes to settle after a step in the link's rate or in the processor's load."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from streamsplit.network.trace import make_trace
from streamsplit.simulation.conditions import SimulationSettings
from streamsplit.simulation.device import SimulatedDevice
from streamsplit.simulation.follow import FollowPolicy
from streamsplit.simulation.load import STEP_S, constant_load, make_load
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.device import DeviceProfile
from streamsplit.splitting.table import CutTable
from streamsplit.wire.media import MEDIA_HEADER_BYTES

PHASE_S = 20.0
PHASES = 12
FAST_BPS, SLOW_BPS = 20e6, 0.15e6
IDLE_SHARE, BUSY_SHARE = 0.05, 0.85
RTT_MS = 50.0


class Adaptation(NamedTuple):
    """Times from a step to the first window decided as the phase ends up deciding; only steps that change the cut."""

    kind: str  # 'bandwidth' or 'cpu'
    stride_ms: float
    changes: int  # of PHASES - 1 steps, those after which another cut is settled on
    median_ms: float  # nan without any
    p95_ms: float
    settled: tuple[str, str]  # the cut in the first and in the second kind of phase


def measure_adaptation(
    policy: Any, table: CutTable, profile: DeviceProfile, kind: str, simulation: SimulationSettings
) -> Adaptation:
    """Alternates good and bad phases of `PHASE_S` and looks when decisions settle; `table` is scaled to `profile`.

    The uncertainty is held constant. A stride other than the table's scales what crosses at block 0: there a window
    sends what the one before did not hold.
    """
    stride_ms = simulation.stride_ms
    scaled = table_at_stride(table, stride_ms)
    settings = simulation.replace(uncertainty_sd=0.0)
    times = np.arange(PHASES) * PHASE_S
    rates = np.where(np.arange(PHASES) % 2 == 0, FAST_BPS, SLOW_BPS if kind == "bandwidth" else FAST_BPS)
    trace = make_trace(times, rates, RTT_MS, duration_s=PHASES * PHASE_S)
    load = constant_load(IDLE_SHARE)
    if kind == "cpu":
        per_phase = round(PHASE_S / STEP_S)
        load = make_load(np.tile(np.repeat([IDLE_SHARE, BUSY_SHARE], per_phase), PHASES // 2))
    device = SimulatedDevice(scaled, profile, trace, load, settings, seed=0)
    steps = FollowPolicy(device).run(policy)
    phases: list[list[tuple[float, Cut]]] = [[] for _ in range(PHASES)]
    for index, step in enumerate(steps):
        at_s = max(index * stride_ms / 1000.0, step.decided_s)
        phases[min(int(index * stride_ms / 1000.0 / PHASE_S), PHASES - 1)].append((at_s, step.cut))
    ends = [Counter(cut for _, cut in phase[len(phase) // 2 :]).most_common(1)[0][0] for phase in phases]
    waited = []
    for number in range(1, PHASES):
        if ends[number] != ends[number - 1]:
            first = next(at_s for at_s, cut in phases[number] if cut == ends[number])
            waited.append(1000.0 * (first - number * PHASE_S))
    found = (float(np.median(waited)), float(np.percentile(waited, 95))) if waited else (float("nan"),) * 2
    return Adaptation(kind, stride_ms, len(waited), *found, (str(ends[-2]), str(ends[-1])))


def table_at_stride(table: CutTable, stride_ms: float) -> CutTable:
    """The table for another stride than it was profiled at: block 0 carries as much of a window as is new."""
    share = stride_ms / (10.0 * float(table.meta.get("stride_frames", 50)))
    if share == 1.0:
        return table
    rows = tuple(
        row._replace(payload_bytes=MEDIA_HEADER_BYTES + (row.payload_bytes - MEDIA_HEADER_BYTES) * share)
        if row.cut.block == 0
        else row
        for row in table.rows
    )
    return table._replace(rows=rows, meta={**table.meta, "stride_frames": stride_ms / 10.0})
