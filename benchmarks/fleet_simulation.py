"""How fast the fleet simulation runs: one device against real time, and a fleet for an hour of virtual time.

python -m benchmarks.fleet_simulation [--devices 1000] [--fleet-seconds 3600] [--processes 2] [--seconds 1800]

One device: fixed cut with every window sent, the same with the transmission gate, and the gate with the heuristic and
the greedy policy, whose decisions cost what they cost live. The fleet: devices with the gate on generated mobile links,
every process simulating as many devices with a server (one compute thread) of its own, so that contention is real
within each group. Process time; the machine is shared, so the time of a bare loop is given beside it, and a run shorter
than an hour is scaled to one by its process time (the gate's warm-up, when all windows are sent, counts in full).
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.record import record
from streamsplit.network.trace import generate_trace
from streamsplit.simulation.fleet import FleetDevice, FleetResult, FleetSettings, FleetSimulation
from streamsplit.splitting.policy import PolicySettings, make_policy
from streamsplit.splitting.table import packaged_table
from streamsplit.splitting.transmission import GateSettings

SEED = 0
CUT = "5:int8"
ENCODER, DEVICE = "mobilenet", "pi4"
LINK_S = 600.0  # a trace repeats after this
WANTED_SPEED, WANTED_FLEET_S = 2_000.0, 600.0
LOOPS = 2_000_000
CASES = {
    "fixed cut, all windows sent": ("fixed", False),
    "fixed cut, gate": ("fixed", True),
    "heuristic, gate": ("heuristic", True),
    "greedy, gate": ("greedy", True),
}


def devices(count: int, policy: str, gated: bool, first: int = 0) -> list[FleetDevice]:
    """Devices on mobile links, started over half a second; every one at another place of one of 32 traces."""
    chosen = make_policy(PolicySettings(name=policy, cut=CUT))
    table = packaged_table(ENCODER, DEVICE)
    traces = [generate_trace(LINK_S, number) for number in range(min(count, 32))]
    gate = GateSettings(enabled=gated)
    return [
        FleetDevice(
            f"d{number}", table, chosen, traces[number % len(traces)], gate=gate, jitter_ms=5.0,
            start_s=0.5 * (number - first) / count, trace_start_s=7.0 * number % LINK_S,
        )
        for number in range(first, first + count)
    ]  # fmt: skip


def measure(made: list[FleetDevice], seconds: float) -> tuple[FleetResult, float]:
    """The result and the process time it took, building included."""
    started = time.process_time()
    result = FleetSimulation(FleetSettings(), made, SEED).run(seconds)
    return result, time.process_time() - started


def loop_s() -> float:
    """Process time of a bare loop: how fast this machine is for Python just now."""
    started = time.process_time()
    for _ in range(LOOPS):
        pass
    return time.process_time() - started


def one_device(seconds: float, rounds: int) -> dict[str, Any]:
    """Median over rounds for each case."""
    figures = {}
    for name, (policy, gated) in CASES.items():
        times, windows, events = [], 0, 0
        for _ in range(rounds):
            result, took_s = measure(devices(1, policy, gated), seconds)
            windows, events = result["d0"].counts["seen"], result.events
            times.append(took_s)
        took_s = float(np.median(times))
        figures[name] = {
            "times_real_time": seconds / took_s,
            "us_per_window": 1e6 * took_s / windows,
            "windows": windows,
            "sent": result["d0"].counts["sent"],
            "events": events,
            "slowest_and_fastest_round": [seconds / max(times), seconds / min(times)],
        }
        print(f"{name:30} {seconds / took_s:8.0f} x real time {1e6 * took_s / windows:7.0f} us a window")
    return figures


def group(arguments: tuple[int, int, float]) -> dict[str, Any]:
    """One process's devices with their server."""
    count, first, seconds = arguments
    result, took_s = measure(devices(count, "fixed", True, first), seconds)
    counts = [device.counts for device in result.devices.values()]
    latency_ms = np.concatenate([device.latency_ms for device in result.devices.values()])
    return {
        "process_s": took_s,
        "windows": sum(c["seen"] for c in counts),
        "sent": sum(c["sent"] for c in counts),
        "lost_or_dropped": sum(c["lost"] + c["dropped"] for c in counts),
        "events": result.events,
        "uplink_mb": sum(device.uplink_bytes for device in result.devices.values()) / 1e6,
        "latency_p50_ms": float(np.nanpercentile(latency_ms, 50)),
        "latency_p95_ms": float(np.nanpercentile(latency_ms, 95)),
        "server_busy_share": result.server_busy_share,
        "windows_per_batch": result.server_windows / max(result.server_batches, 1),
    }


def a_fleet(count: int, seconds: float, processes: int) -> dict[str, Any]:
    """A fleet in groups, each in a process."""
    each = count // processes
    started_s = time.monotonic()
    work = [(each, number * each, seconds) for number in range(processes)]
    if processes == 1:
        groups = [group(work[0])]
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            groups = pool.map(group, work)
    wall_s = time.monotonic() - started_s
    windows = sum(one["windows"] for one in groups)
    process_s = sum(one["process_s"] for one in groups)
    print(f"{each * processes} devices, {seconds:.0f} s: {wall_s:.0f} s wall, {process_s:.0f} s of processor time")
    return {
        "devices": each * processes,
        "virtual_s": seconds,
        "wall_s": wall_s,
        "process_s": process_s,
        "slowest_process_s": max(one["process_s"] for one in groups),
        "us_per_window": 1e6 * process_s / windows,
        "process_s_for_an_hour_of_the_slowest": max(one["process_s"] for one in groups) * 3600.0 / seconds,
        "groups": groups,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--fleet-seconds", type=float, default=3600.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1800.0, help="of one device, per round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    before_s = loop_s()
    single = one_device(options.seconds, options.rounds)
    fleet = a_fleet(options.devices, options.fleet_seconds, options.processes)
    figures = {
        "one_device": single,
        "fleet": fleet,
        "wanted_times_real_time": WANTED_SPEED,
        "wanted_fleet_s": WANTED_FLEET_S,
        "bare_loop_ns_before_and_after": [1e9 * before_s / LOOPS, 1e9 * loop_s() / LOOPS],
        "note": "process time on a shared machine; a bare loop takes about 20 ns on it when it is idle",
    }
    print(record("fleet_simulation", figures, {**vars(options), "cut": CUT, "table": f"{ENCODER}/{DEVICE}"}, [SEED]))


if __name__ == "__main__":
    main()
