"""The HTML report of a policy study: the tables, the papers' pictures, and what is and is not claimed."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from streamsplit.evaluation import policy_plots
from streamsplit.evaluation.page import heading, paragraph, picture, section, table, write_page

_COLUMNS = (
    "policy", "reward", "p50 ms", "p95 ms", "p99 ms", "MB/h up", "J/h", "quality loss, points", "late or lost",
    "server saw", "changes/h", "cuts used most",
)  # fmt: skip


def write_policy_report(study: Mapping[str, Any], path: str | Path) -> Path:
    """Writes the page for a study (what `streamsplit evaluate-policy` saves as study.json); returns its path."""
    devices = study["settings"]["devices"]
    parts = [
        _top(study),
        section("Reward", picture(policy_plots.reward_bars(study["summary"], devices), _BARS)),
        *[section(f"On {device}", _policy_table(study, device), _verdict(study, device)) for device in devices],
        section("After a step", _adaptation(study)),
        section("Where windows are cut", *_pictures(study)),
        section("Energy constants", _sensitivity(study)),
        section("How it was measured", f"<pre>{html.escape(json.dumps(study['meta'], indent=1))}</pre>"),
    ]
    return write_page(path, "StreamSplit policies", parts)


_BARS = (
    "Mean reward a window over all traces, with 95 % intervals over seeds. The oracles know the future; the best fixed "
    "cut was chosen with hindsight on these very traces."
)


def _top(study: Mapping[str, Any]) -> str:
    tiles = []
    for row in study["verdicts"]:
        if "gap_closed" in row:
            text = f"of the gap between {row['best_fixed']} and the look-ahead oracle closed on {row['device']}"
            tiles.append((f"{row['gap_closed']:.0%}", text))
    meta = study["meta"]
    sub = f"{meta['traces']} traces ({meta['material']}), {study['settings']['seeds']} seeds, objective "
    return heading("Policies compared", sub + study["settings"]["simulation"]["objective"]["version"], tiles)


def _policy_table(study: Mapping[str, Any], device: str) -> str:
    rows, kinds = [], []
    for row in study["summary"]:
        if row["device"] != device:
            continue
        latency = row["latency_ms"]
        cuts = ", ".join(f"{cut} {share:.0%}" for cut, share in list(row["cuts"].items())[:3])
        rows.append(
            (
                row["policy"] + (f" ({row['cut']})" if row["cut"] else ""),
                f"{row['reward']['mean']:.3f} [{_number(row['reward']['low'])}, {_number(row['reward']['high'])}]",
                *(_number(latency[name], 0) for name in ("p50", "p95", "p99")), f"{row['uplink_mb_per_h']:.2f}",
                f"{row['marginal_j_per_h']:.0f}", f"{row['quality_loss_points']:.2f}", f"{row['deadline_misses']:.2%}",
                f"{row['seen']:.0%}", f"{row['changes_per_h']:.0f}", cuts,
            )
        )  # fmt: skip
        kinds.append("after" if row["policy"] == "ppo" else "")
    return table(_COLUMNS, rows, kinds)


def _verdict(study: Mapping[str, Any], device: str) -> str:
    found = next((row for row in study["verdicts"] if row["device"] == device), None)
    if found is None:
        return paragraph("No learned policy was compared.")
    lines = []
    for rival in ("heuristic", "argmin", "bandit", "greedy"):
        held = found.get(f"over_{rival}")
        if held is None:
            continue
        paired = held["over_runs"]
        apart = "intervals apart" if held["intervals_apart"] else "intervals overlap"
        lines.append(
            f"ppo against {rival}: {held['difference']:+.3f} ({apart}); over traces, paired: {paired['mean']:+.3f} "
            f"[{_number(paired['low'])}, {_number(paired['high'])}]."
        )
    return paragraph(" ".join(lines))


def _adaptation(study: Mapping[str, Any]) -> str:
    header = ("policy", "device", "step in", "stride ms", "median ms", "p95 ms", "changes", "settles on")
    rows = [
        (
            row["policy"], row["device"], row["kind"], f"{row['stride_ms']:.0f}", _number(row["median_ms"], 0),
            _number(row["p95_ms"], 0), str(row["changes"]), " / ".join(row["settled"]),
        )
        for row in study["adaptation"]
    ]  # fmt: skip
    return paragraph(
        "Time from a step to the first window that is decided as the phase ends up deciding; a dash where the step "
        "changes nothing. A window is decided once a stride."
    ) + table(header, rows)


def _pictures(study: Mapping[str, Any]) -> list[str]:
    blocks = study["num_blocks"]
    made = [
        picture(
            policy_plots.edge_share_over_time(run["rows"], blocks, f"{run['policy']} on {run['device']}"),
            f"Share of the encoder that the device computes, over time, on {run['trace']}: {run['policy']}.",
        )
        for run in study["timelines"]
    ]
    for held in study["maps"]:
        figure = policy_plots.choice_map(
            np.array(held["blocks"]), held["cpu"], held["mbps"], blocks, f"{held['policy']} on {held['device']}"
        )
        made.append(picture(figure, f"Block chosen by {held['policy']} over load and link rate, all else typical."))
    return made


def _sensitivity(study: Mapping[str, Any]) -> str:
    rows = study["sensitivity"]
    if not rows:
        return paragraph("Not swept in this run.")
    header = ("power row", "radio J/MB", *(f"ppo over {name}" for name in rows[0]["over"]))
    cells = [
        (row["device"], f"{row['joule_per_mb']:g}", *(f"{value:+.3f}" for value in row["over"].values()))
        for row in rows
    ]
    flips = [name for name in rows[0]["over"] if len({row["over"][name] > 0 for row in rows}) > 1]
    said = f"Flips within the sweep, so not claimed: ppo over {', '.join(flips)}." if flips else "No sign flips."
    return table(header, cells) + paragraph(said)


def _number(value: float | None, digits: int = 3) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}"
