"""A whole policy study from its settings: material, cells, adaptation, pictures' data, sensitivity, goals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamsplit.config import Settings, section, setting
from streamsplit.errors import ConfigError
from streamsplit.evaluation.adaptation import measure_adaptation
from streamsplit.evaluation.policy_study import (
    FIXED,
    RIVALS,
    SERVER_ONLY,
    SERVER_ONLY_OPUS,
    Cell,
    Material,
    StudySettings,
    make_contestant,
    of,
    plain,
    run_study,
    simulated_run,
    verdict,
)
from streamsplit.evaluation.provenance import machine, revision_of_code
from streamsplit.evaluation.statistics import mean_interval
from streamsplit.network.drives import read_drives
from streamsplit.network.trace import BandwidthTrace, generate_trace
from streamsplit.simulation.follow import FollowPolicy
from streamsplit.simulation.load import recorded_loads
from streamsplit.splitting.device import RADIO_SWEEP_JOULE_PER_MB, device_profile
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.policy_file import digest
from streamsplit.splitting.table import CutTable
from streamsplit.wire.media import Encoding

ONLINE = ("heuristic", "argmin", "bandit", "greedy", "ppo")
SWEEP_DEVICES = ("pi4", "pi4-paper")
MAP_CPU = tuple(np.round(np.linspace(0.0, 0.95, 20), 3).tolist())
MAP_MBPS = tuple(np.round(np.logspace(-2, 2, 25), 4).tolist())
GENERATED_S = 120.0


@dataclass(frozen=True, kw_only=True)
class PolicyRunSettings(Settings):
    """What `streamsplit evaluate-policy` runs."""

    study: StudySettings = section(StudySettings)
    data: str = setting("")  # folder with traces/, "" = generated links
    drives: tuple[int, ...] = setting((3,))
    runs: int = setting(0, low=0)  # of the drives, evenly spread; 0 = all
    generated: int = setting(40, low=1)  # links of two minutes, where there is no data
    seed: int = setting(1_000_000, low=0)  # of the first generated link: far from those that training uses
    adaptation: bool = setting(True)
    sensitivity: bool = setting(True)
    sensitivity_runs: int = setting(40, low=1)


def study_traces(settings: PolicyRunSettings) -> tuple[list[BandwidthTrace], str]:
    """(traces, where they come from) that the study runs on; raises ConfigError."""
    if not settings.data:
        links = [generate_trace(GENERATED_S, settings.seed + index) for index in range(settings.generated)]
        return links, "generated links"
    traces = read_drives(Path(settings.data), settings.drives)
    if settings.runs and settings.runs < len(traces):
        traces = [traces[i] for i in np.linspace(0, len(traces) - 1, settings.runs).astype(int)]
    return traces, f"measured drives {', '.join(map(str, settings.drives))}"


def run_policy_study(
    table: CutTable,
    policy: bytes,
    settings: PolicyRunSettings,
    *,
    progress: Callable[[int, int, str], None] | None = None,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that study.json holds; `policy` is a file's bytes, b"" for none. Raises ConfigError."""
    traces, material_name = study_traces(settings)
    study = settings.study
    if not policy:
        study = study.replace(policies=tuple(name for name in study.policies if not name.startswith("ppo")))
    material = Material(table, tuple(traces), tuple(recorded_loads()), policy)

    def cell_done(done: int, total: int, cell: Cell) -> None:
        if progress is not None:
            progress(done, total, f"{cell.policy} on {cell.device}, seed {cell.seed}: {cell.reward:.3f}")

    cells = run_study(material, study, cell_done)
    found: dict[str, Any] = {
        "settings": study.as_dict(),
        "run": settings.as_dict() | {"data": Path(settings.data).name},
        "num_blocks": table.num_blocks,
        "cells": plain(cells),
        "summary": summaries(cells, study),
        "verdicts": [verdict(cells, device) for device in study.devices if "ppo" in study.policies],
        "adaptation": _adaptations(material, study) if settings.adaptation else [],
        "timelines": _timelines(material, study),
        "maps": _maps(material, study),
        "sensitivity": _sensitivity(material, settings) if settings.sensitivity and policy else [],
        "meta": {
            "code": revision_of_code(), "machine": machine(), "material": material_name, "traces": len(traces),
            "hours": round(sum(trace.duration_s for trace in traces) / 3600.0, 2), "table": table.fingerprint,
            "policy_sha256": digest(policy) if policy else "", **(about or {}),
        },
    }  # fmt: skip
    found["goals"] = goals(found)
    return found


def summaries(cells: Sequence[Cell], study: StudySettings) -> list[dict[str, Any]]:
    """One row a policy and device: means over seeds, the reward with its interval."""
    rows = []
    for device in study.devices:
        for policy in study.policies:
            mine = of(cells, policy, device)
            names = sorted({name for cell in mine for name in cell.cuts})
            cuts = {name: float(np.mean([cell.cuts.get(name, 0.0) for cell in mine])) for name in names}
            rows.append(
                {
                    "policy": policy, "device": device, "cut": mine[0].cut,
                    "reward": mean_interval([cell.reward for cell in mine])._asdict(),
                    "latency_ms": {
                        name: _finite(float(np.mean([cell.latency_ms[name] for cell in mine])))
                        for name in ("p50", "p95", "p99")
                    },
                    **{
                        name: float(np.mean([getattr(cell, name) for cell in mine]))
                        for name in (
                            "uplink_mb_per_h", "downlink_mb_per_h", "marginal_j_per_h", "quality_loss_points",
                            "deadline_misses", "seen", "changes_per_h", "fallbacks",
                        )
                    },
                    "cuts": dict(sorted(cuts.items(), key=lambda item: -item[1])[:5]),
                }
            )  # fmt: skip
    return rows


def goals(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures that the learned policy is held against, a row a device class; only what the study holds."""
    rows = []
    by_name = {(row["policy"], row["device"]): row for row in found["summary"]}
    for held in found["verdicts"]:
        device = held["device"]
        ppo, pcm = by_name[("ppo", device)], by_name.get((SERVER_ONLY, device))
        fixed, opus = by_name.get((FIXED, device)), by_name.get((SERVER_ONLY_OPUS, device))
        row: dict[str, Any] = {"device": device, "gap_closed": held.get("gap_closed")}
        row["beats"] = [n for n in RIVALS if held.get(f"over_{n}", {}).get("intervals_apart")]
        for name, other in (("p95_below_pcm", pcm), ("p95_below_best_fixed", fixed)):
            theirs, mine = other and other["latency_ms"]["p95"], ppo["latency_ms"]["p95"]
            row[name] = round(theirs / mine, 2) if theirs and mine else None
        for name, other in (("uplink_of_pcm", pcm), ("uplink_of_opus", opus)):
            row[name] = round(ppo["uplink_mb_per_h"] / other["uplink_mb_per_h"], 4) if other else None
        row["quality_loss_points"] = round(ppo["quality_loss_points"], 3)
        rows.append(row)
    return rows


def _adaptations(material: Material, study: StudySettings) -> list[dict[str, Any]]:
    rows = []
    for device in study.devices:
        profile = device_profile(device)
        table = material.table.for_device(profile)
        for policy in [name for name in ONLINE if name in study.policies]:
            for kind in ("bandwidth", "cpu"):
                for stride_ms in (100.0, 500.0):
                    strided = study.replace(simulation=study.simulation.replace(stride_ms=stride_ms))
                    contestant = make_contestant(policy, "", material, strided)
                    made = measure_adaptation(contestant, table, profile, kind, strided.simulation)
                    rows.append({"policy": policy, "device": device, **made._asdict()})
    return [{name: _finite(v) if isinstance(v, float) else v for name, v in row.items()} for row in rows]


def _timelines(material: Material, study: StudySettings) -> list[dict[str, Any]]:
    """The learned policy (else the greedy one) on the trace whose rate varies most, on every device class."""
    spreads = [float(np.std(np.log10(np.maximum(trace.rate_bps, 1e4)))) for trace in material.traces]
    index = int(np.argmax(spreads))
    trace = material.traces[index]
    name = "ppo" if "ppo" in study.policies else "greedy"
    found = []
    for device in study.devices:
        profile = device_profile(device)
        table = material.table.for_device(profile)
        simulated = simulated_run(table, profile, trace, material.loads, study.simulation, 0, index)
        steps = FollowPolicy(simulated).run(make_contestant(name, "", material, study))
        rows = []
        for number, step in enumerate(steps):
            t_s = number * simulated.stride_s
            rows.append(
                {
                    "t_s": t_s, "block": step.cut.block, "kept": int(not step.cut.sends),
                    "cpu": round(simulated.load.at(t_s + simulated.load_start_s), 3),
                    "mbps": round(simulated.uplink.rate_bps(t_s) / 1e6, 4),
                }
            )  # fmt: skip
        found.append({"policy": name, "device": device, "trace": trace.name, "rows": rows})
    return found


def _maps(material: Material, study: StudySettings) -> list[dict[str, Any]]:
    found = []
    for policy in [name for name in ("ppo", "greedy") if name in study.policies]:
        device = study.devices[0]
        table = material.table.for_device(device_profile(device))
        contestant = make_contestant(policy, "", material, study)
        typical = Observation(
            uncertainty=0.5 * study.simulation.objective.full_uncertainty, memory=study.simulation.memory,
            bandwidth_age_ms=300.0, rtt_ms=55.0, rtt_age_ms=300.0, thermal=0.3, power_mw=50.0,
            last_cut=next(row.cut for row in table.rows if row.cut.encoding is Encoding.EMBEDDING_FP16),
        )  # fmt: skip
        blocks = [
            [_block(contestant, typical._replace(cpu=cpu, bandwidth_bps=1e6 * mbps), table) for mbps in MAP_MBPS]
            for cpu in MAP_CPU
        ]
        found.append({"policy": policy, "device": device, "blocks": blocks, "cpu": MAP_CPU, "mbps": MAP_MBPS})
    return found


def _block(policy: Any, seen: Observation, table: CutTable) -> int:
    cut = policy.decide(seen, table).cut
    return cut.block if cut.sends else -1


def _sensitivity(material: Material, settings: PolicyRunSettings) -> list[dict[str, Any]]:
    """Reward of the learned policy less that of others under other energy constants; tables and rewards follow them."""
    traces = material.traces
    chosen = [
        traces[i] for i in np.linspace(0, len(traces) - 1, min(settings.sensitivity_runs, len(traces))).astype(int)
    ]
    study = settings.study
    rivals = [name for name in (*RIVALS, "greedy") if name in study.policies]
    rows = []
    for device in SWEEP_DEVICES:
        for joule_per_mb in RADIO_SWEEP_JOULE_PER_MB:
            profile = device_profile(device)
            profile = profile.replace(radio=profile.radio.replace(joule_per_mb=joule_per_mb))
            table = material.table.for_device(profile)
            means = {}
            for policy in ("ppo", *rivals):
                contestant = make_contestant(policy, "", material, study)
                rewards = [
                    step.reward
                    for index, trace in enumerate(chosen)
                    for step in FollowPolicy(
                        simulated_run(table, profile, trace, material.loads, study.simulation, 0, index)
                    ).run(contestant)
                ]
                means[policy] = float(np.mean(rewards))
            over = {name: round(means["ppo"] - means[name], 4) for name in rivals}
            rows.append({"device": device, "joule_per_mb": joule_per_mb, "over": over})
    return rows


def read_policy_bytes(path: str) -> bytes:
    """A policy file's bytes; raises ConfigError."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: policy cannot be read ({error.strerror or error})") from error


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
