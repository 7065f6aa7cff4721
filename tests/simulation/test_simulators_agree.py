"""The two simulators on the same table, link and cut: sizes and delays beside whole wire sessions."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplit.network.trace import constant_trace, generate_trace
from streamsplit.simulation.conditions import SimulationSettings
from streamsplit.simulation.device import SimulatedDevice
from streamsplit.simulation.fleet import FleetDevice, FleetSettings, FleetSimulation
from streamsplit.simulation.follow import FollowPolicy
from streamsplit.simulation.load import constant_load
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.device import device_profile
from streamsplit.splitting.policy import FixedPolicy
from streamsplit.splitting.table import packaged_table
from streamsplit.splitting.transmission import GateSettings

PI4 = device_profile("pi4")
TABLE = packaged_table("mobilenet", PI4)
SECONDS = 120.0


@pytest.mark.parametrize("cut", ["13:embedding-int8", "0:opus24", "0:tinystream", "5:int8", "13:none"])
@pytest.mark.parametrize("link", ["constant", "mobile"])
def test_latencies_and_bytes_are_those_of_the_fleet_simulation(cut, link):
    """Differences that remain: the fleet's connection has a handshake beside the windows, and its server gathers a
    batch for 3 ms and commits for 1 ms. Losses, which each simulator draws for itself, are left out."""
    mobile = generate_trace(SECONDS, 5, level=0.7)._replace(loss=None)
    trace = constant_trace(2e6, 60.0) if link == "constant" else mobile
    policy = FixedPolicy(Cut.parse(cut))
    device = SimulatedDevice(TABLE, PI4, trace, constant_load(0.0), SimulationSettings(probe_lead_ms=300.0), seed=1)
    steps = FollowPolicy(device).run(policy) if link == "mobile" else _run(policy, trace)
    settings = FleetSettings(gate=GateSettings(enabled=False), report_s=0.0, gmm_every_windows=0)
    fleet = FleetSimulation(settings, [FleetDevice("a", TABLE, policy, trace)], seed=1).run(SECONDS)["a"]
    simple = np.array([step.consequence.latency_ms for step in steps])
    assert np.nanmedian(fleet.latency_ms[5:]) == pytest.approx(np.median(simple), abs=8.0) or cut == "13:none"
    if cut == "13:none":
        assert np.isnan(fleet.latency_ms).all()  # nobody answers what was not sent
        assert np.median(fleet.edge_ms) == pytest.approx(np.median(simple), abs=0.5)
    per_window = sum(step.uplink_bytes for step in steps) / len(steps)
    if cut != "13:none":
        assert fleet.uplink_bytes / len(fleet.latency_ms) == pytest.approx(per_window, rel=0.05, abs=20)
    assert np.mean(fleet.energy_mj) == pytest.approx(np.mean([s.consequence.energy_mj for s in steps]), rel=0.03)


def _run(policy, trace):
    device = SimulatedDevice(
        TABLE, PI4, trace, constant_load(0.0), SimulationSettings(probe_lead_ms=300.0), seed=1, windows=240
    )
    return FollowPolicy(device).run(policy)
