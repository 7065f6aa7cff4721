"""A small cut table, links and devices that the simulated device's tests build with."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamsplit.network.trace import BandwidthTrace, constant_trace, generate_trace, make_trace
from streamsplit.simulation.conditions import SimulationSettings
from streamsplit.simulation.device import SimulatedDevice
from streamsplit.simulation.load import LoadTrace, constant_load, make_load
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.device import DeviceProfile, device_profile
from streamsplit.splitting.objective import ObjectiveSettings
from streamsplit.splitting.table import CutRow, CutTable, make_table

BLOCKS = 4
# edge_ms, server_ms, payload_bytes, agreement, fetch_bytes
COSTS = {
    "0:pcm16": (0.5, 12.0, 16_020.0, 1.0, 0.0),
    "0:opus24": (6.0, 14.0, 1_520.0, 0.95, 0.0),
    "0:logmel-int8": (1.0, 11.0, 6_420.0, 0.999, 0.0),
    "2:fp16": (12.0, 6.0, 8_000.0, 1.0, 40_000.0),
    "2:int8": (13.0, 6.5, 4_000.0, 0.98, 40_000.0),
    "3:int8": (20.0, 3.0, 1_200.0, 0.97, 100_000.0),
    "4:embedding-fp16": (28.0, 0.1, 276.0, 1.0, 160_000.0),
    "4:embedding-int8": (28.5, 0.1, 152.0, 0.999, 160_000.0),
    "4:none": (27.5, 0.0, 0.0, 1.0, 160_000.0),
}
PI4 = device_profile("pi4")
OBJECTIVE = ObjectiveSettings(
    quality=10.0, latency=5.0, energy=3.0, traffic=4.0, privacy=0.0, unseen=3.0, unseen_certain=0.2, latency_ms=200.0,
    energy_mj=100.0, traffic_bytes=1_500.0, deadline_ms=1000.0,
)  # fmt: skip
QUIET = SimulationSettings(
    server_wait_ms=0.0, objective=OBJECTIVE, ping_interval_ms=1e9, probe_lead_ms=0.0, result_ack_ms=0.0
)


def small_table(slower: float = 1.0, device: DeviceProfile = PI4) -> CutTable:
    """Nine cuts of an encoder of four blocks as they are on a Pi 4, or on one `slower` times slower."""
    rows = [
        CutRow(Cut.parse(text), slower * edge, server, size, device.energy_mj(slower * edge, size), agreement,
               fetch_bytes=fetch)
        for text, (edge, server, size, agreement, fetch) in COSTS.items()
    ]  # fmt: skip
    meta = {"encoder": {"name": "tiny", "width": 0.5, "embedding_dim": 16}}
    return make_table(CutTable("tiny", device.name, device.factor, BLOCKS, tuple(rows), meta))


TABLE = small_table()
ACTION = {str(cut): index for index, cut in enumerate(TABLE.cuts)}


def simulated(
    trace: BandwidthTrace | float = 1e6,
    load: LoadTrace | float = 0.0,
    settings: SimulationSettings = QUIET,
    *,
    table: CutTable = TABLE,
    windows: int = 100,
    **changes: Any,
) -> SimulatedDevice:
    """A Pi 4 behind a constant link of 60 ms round trip, or a trace, under a constant load, or a recorded one."""
    uplink = trace if isinstance(trace, BandwidthTrace) else constant_trace(trace, 60.0)
    busy = load if isinstance(load, LoadTrace) else constant_load(load)
    return SimulatedDevice(table, PI4, uplink, busy, settings, windows=windows, **changes)


def mobile_link(seed: int, seconds: float = 60.0, level: float | None = None) -> BandwidthTrace:
    """A generated link without lost segments, which no oracle foresees."""
    return generate_trace(seconds, seed, level=level)._replace(loss=None)


def bursty_load(seed: int, seconds: float = 60.0, most: float = 0.8) -> LoadTrace:
    """Other work in bursts of some seconds."""
    rng = np.random.default_rng(seed)
    levels = np.repeat(rng.uniform(0.0, most, int(seconds / 2) + 1), 20)[: int(seconds * 10)]
    return make_load(np.clip(levels + 0.05 * rng.standard_normal(len(levels)), 0.0, 1.0))


def step_trace(before_bps: float, after_bps: float, at_s: float, duration_s: float = 600.0) -> BandwidthTrace:
    """A link whose rate changes once."""
    return make_trace([0.0, at_s], [before_bps, after_bps], 60.0, duration_s=duration_s)
