"""One self-contained HTML page that shows what a run learned, what it saved and how it was measured."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from streamsplit.evaluation import plots
from streamsplit.evaluation.page import heading, picture, section, table, write_page

_BYTES = (
    "Uplink of the live phase, counted on the socket: windows, reports, acknowledgements, confirmed weights, all "
    "headers; against sending everything as PCM16 (115.2 MB/h) or as Opus at 24 kbit/s (10.8 MB/h). Logarithmic axis."
)
_LATENCY = "On each device's own clock: from the end of a window to its result, through the shaped link."


def write_report(run: Mapping[str, Any], path: str | Path) -> Path:
    """Writes the page for a run (the dict that the demo saves as run.json) and returns its path."""
    parts = [
        _headline(run),
        section("What was learned", _probe_table(run), picture(plots.probe_bars(run["probe"]), _probe_caption(run))),
        _maps(run),
        section("What was sent", picture(plots.bytes_per_hour(run["devices"]), _BYTES), _device_table(run)),
        section("How long an answer took", picture(plots.latency_distribution(_latencies(run)), _LATENCY)),
        *[_timeline(device, run) for device in run["devices"]],
        _refiner(run),
        section("How it was measured", _method(run)),
    ]
    return write_page(path, f"StreamSplit run {run['meta']['started']}", parts)


def _headline(run: Mapping[str, Any]) -> str:
    devices = run["devices"]
    seconds = sum(device["live_s"] for device in devices)
    sent = sum(device["uplink_bytes"] for device in devices)
    received = sum(device["downlink_bytes"] for device in devices)
    latencies = np.concatenate([np.zeros(0), *_latencies(run).values()])
    before = next(row for row in run["probe"] if row["kind"] == "before")
    after = next(row for row in run["probe"] if row["kind"] == "after")
    integrity = run["integrity"]
    tiles = [
        (
            f"{before['accuracy']:.2f} → {after['accuracy']:.2f}",
            f"probe on held-out sound, {before['name'].removeprefix('encoder, ')} → learned",
        ),
        (f"{_saved(sent, seconds, plots.PCM_BYTES_PER_S)}", f"of PCM16's bytes sent ({_rate(sent, seconds)} a device)"),
        (f"{_saved(sent, seconds, plots.OPUS_BYTES_PER_S)}", "of Opus 24 kbit/s's bytes"),
        (f"{_rate(received, seconds)}", "down a device: results, statistics, weights"),
        (
            f"{np.percentile(latencies, 50):.0f} / {np.percentile(latencies, 95):.0f} ms" if len(latencies) else "none",
            "p50 / p95 from a window's end to its result",
        ),
        (
            f"{integrity['missing']} lost, {integrity['duplicated']} doubled",
            f"of {integrity['accepted']} windows accepted for sending",
        ),
    ]
    meta = run["meta"]
    sub = f"{meta['data']}, {len(devices)} devices, {meta['duration_s']:.0f} s on {meta['machine']['processor']}"
    return heading("StreamSplit run", sub, tiles)


def _probe_table(run: Mapping[str, Any]) -> str:
    header = ("vector", "dim", "probe, windows", "probe, clips", "P@10", "silhouette", "effective rank")
    rows = [
        (
            row["name"],
            str(row["dim"]),
            f"{row['accuracy']:.3f}",
            f"{row['clip_accuracy']:.3f} ± {row['clip_standard_error']:.3f}",
            f"{row['precision_at_10']:.3f}",
            f"{row['silhouette']:+.3f}",
            f"{row['effective_rank']:.1f}",
        )
        for row in run["probe"]
    ]
    return table(header, rows, [row["kind"] for row in run["probe"]])


def _device_table(run: Mapping[str, Any]) -> str:
    header = (
        "device",
        "class",
        "link",
        "windows",
        "sent",
        "share",
        "kB of windows",
        "kB up in all",
        "kB down",
        "J / window",
        "cuts used most",
    )
    rows = []
    for device in run["devices"]:
        cuts = sorted(device["cuts"].items(), key=lambda item: -item[1])[:3]
        share = device["windows_sent"] / max(device["windows_seen"], 1)
        rows.append(
            (
                device["id"],
                device["device_class"],
                device["network"],
                str(device["windows_seen"]),
                str(device["windows_sent"]),
                f"{share:.0%}",
                f"{device['window_bytes'] / 1e3:.0f}",
                f"{device['uplink_bytes'] / 1e3:.0f}",
                f"{device['downlink_bytes'] / 1e3:.0f}",
                f"{device['energy_mj'] / 1e3 / max(device['windows_seen'], 1):.2f}",
                ", ".join(f"{cut} ({count})" for cut, count in cuts),
            )
        )
    return table(header, rows)


def _timeline(device: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    figure = plots.cut_timeline(device["journal"], device["trace"], run["meta"]["num_blocks"])
    caption = (
        f"{device['device_class']} on {device['network']}: the block after which each window crossed to the server, "
        "above the rate that the link offered, the rate that the device estimated, and its CPU load."
    )
    return section(f"Cuts of {device['id']} over time", picture(figure, caption))


def _maps(run: Mapping[str, Any]) -> str:
    data = run["map"]
    maps = [(title, np.asarray(points)) for title, points in data["maps"]]
    caption = f"Held-out windows, {data['method']}, coloured by their true label; labels were never used for learning."
    return section("The embedding, before and after", picture(plots.embedding_maps(maps, data["labels"]), caption))


def _refiner(run: Mapping[str, Any]) -> str:
    steps = run["refiner"]["steps"]
    if not steps:
        return ""
    caption = f"The server's refiner: {steps[-1]['step']} steps, {run['refiner']['revisions']} revisions published."
    return section("The server's learning", picture(plots.learning_curve(steps), caption))


def _method(run: Mapping[str, Any]) -> str:
    return f"<pre>{html.escape(json.dumps(run['meta'], indent=1))}</pre>"


def _probe_caption(run: Mapping[str, Any]) -> str:
    return (
        "Accuracy of a linear probe (cross-validated regularisation) on single windows, trained on labels of the "
        f"training part and tested on sound that no device ever heard ({run['meta']['held_out']})."
    )


def _latencies(run: Mapping[str, Any]) -> dict[str, list[float]]:
    return {
        device["id"]: [row["latency_ms"] for row in device["journal"] if row["kind"] == "result" and row["latency_ms"]]
        for device in run["devices"]
    }


def _saved(sent_bytes: float, seconds: float, bytes_per_s: float) -> str:
    return f"{sent_bytes / max(seconds * bytes_per_s, 1e-9):.1%}"


def _rate(sent_bytes: float, seconds: float) -> str:
    return f"{sent_bytes / max(seconds, 1e-9) * 3600 / 1e6:.2f} MB/h"
