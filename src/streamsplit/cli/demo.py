"""`streamsplit demo`: the whole system on this machine, with a live table, a summary and a report."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from streamsplit.cli.console import console, is_terminal, print_json, set_up_logging


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--data", default="", help="folder of <label>/<audio file> (default: synthetic soundscapes)")
    parser.add_argument("--output-dir", default="runs", help="where the run's folder is made (default: runs)")
    parser.add_argument("--live-seconds", type=float, help="length of the live phase (default: 60)")
    parser.add_argument("--learn-seconds", type=float, help="synthetic sound per device in fast forward (default: 300)")
    parser.add_argument("--trace", help="CSV of measured links for the live phase (default: generated links)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--encoder", choices=("mobilenet", "resnet18"), help="(default: mobilenet)")
    start.add_argument(
        "--pretrained", nargs="?", const="default", metavar="NAME",
        help="start from a published encoder: the packaged one, another's name, or a .safetensors file",
    )  # fmt: skip
    parser.add_argument("--port", type=int, help="of the live page (default: any free port)")
    parser.add_argument("--seed", type=int, help="(default: 0)")
    parser.add_argument("--quick", action="store_true", help="a short run to see that everything works")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Runs the demo; returns the exit code."""
    from streamsplit.evaluation.demo import DemoSettings, run_demo
    from streamsplit.evaluation.report import write_report

    set_up_logging("WARNING")
    values: dict[str, Any] = {"output_dir": arguments.output_dir, "data": arguments.data}
    if arguments.quick:
        values |= {"learn_s": 150.0, "live_s": 15.0, "probe_scenes": 180}
    given = {
        "live_s": arguments.live_seconds,
        "trace": arguments.trace,
        "learn_s": arguments.learn_seconds,
        "encoder": arguments.encoder,
        "pretrained": arguments.pretrained,
        "port": arguments.port,
        "seed": arguments.seed,
    }
    settings = DemoSettings.from_mapping(values | {name: value for name, value in given.items() if value is not None})
    view = _LiveView() if is_terminal() else _PlainView()
    with view:
        result = run_demo(settings, view.show)
    report = write_report(result, Path(result["folder"]) / "report.html")
    if arguments.json:
        print_json(summary(result) | {"report": str(report)})
    else:
        _print_summary(summary(result))
        print(f"\nreport: {report}")
    return 0


def summary(run: dict[str, Any]) -> dict[str, Any]:
    """The run's main figures."""
    import numpy as np

    live_s = sum(device["live_s"] for device in run["devices"])
    sent, windows, received = (
        sum(device[name] for device in run["devices"]) for name in ("uplink_bytes", "window_bytes", "downlink_bytes")
    )
    latencies = [
        row["latency_ms"]
        for device in run["devices"]
        for row in device["journal"]
        if row["kind"] == "result" and row["latency_ms"] is not None
    ]
    percentile = {f"p{p}": round(float(np.percentile(latencies, p)), 1) for p in (50, 95, 99)} if latencies else {}
    return {
        "seconds": round(run["meta"]["duration_s"], 1),
        "probe": {row["name"]: round(row["accuracy"], 4) for row in run["probe"]},
        "probe_held_out": run["meta"]["held_out"],
        "clip_probe": {row["name"]: round(row["clip_accuracy"], 4) for row in run["probe"]},
        "uplink_mb_per_h": round(sent / max(live_s, 1e-9) * 3600 / 1e6, 3),
        "windows_mb_per_h": round(windows / max(live_s, 1e-9) * 3600 / 1e6, 3),
        "downlink_mb_per_h": round(received / max(live_s, 1e-9) * 3600 / 1e6, 3),
        "share_of_pcm16": round(sent / (live_s * 32_000), 4),
        "share_of_opus24": round(sent / (live_s * 3_000), 4),
        "latency_ms": percentile,
        "devices": {
            device["id"]: {
                "windows": device["windows_seen"],
                "sent": device["windows_sent"],
                "uplink_bytes": device["uplink_bytes"],
                "cuts": device["cuts"],
            }
            for device in run["devices"]
        },
        "integrity": run["integrity"],
    }


def _print_summary(values: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    out = Console(highlight=False)
    probe = Table(title=f"Linear probe, accuracy on held-out sound ({values['probe_held_out']})", title_justify="left")
    probe.add_column("vector")
    probe.add_column("windows", justify="right")
    probe.add_column("clips", justify="right")
    for name, accuracy in values["probe"].items():
        probe.add_row(name, f"{accuracy:.3f}", f"{values['clip_probe'][name]:.3f}")
    out.print(probe)
    devices = Table(title="Live phase", title_justify="left")
    for column in ("device", "windows", "sent", "kB up", "cuts used most"):
        devices.add_column(column, justify="left" if column in ("device", "cuts used most") else "right")
    for name, row in values["devices"].items():
        cuts = sorted(row["cuts"].items(), key=lambda item: -item[1])[:4]
        shown = ", ".join(f"{cut} ({count})" for cut, count in cuts)
        devices.add_row(name, str(row["windows"]), str(row["sent"]), f"{row['uplink_bytes'] / 1e3:.0f}", shown)
    out.print(devices)
    latency = values["latency_ms"]
    out.print(
        f"uplink {values['uplink_mb_per_h']:.2f} MB/h a device: {values['share_of_pcm16']:.1%} of PCM16, "
        f"{values['share_of_opus24']:.1%} of Opus 24 kbit/s (windows alone {values['windows_mb_per_h']:.2f} MB/h); "
        f"downlink {values['downlink_mb_per_h']:.1f} MB/h"
    )
    if latency:
        out.print(f"window's end to result: p50 {latency['p50']:.0f} ms, p95 {latency['p95']:.0f} ms")
    integrity = values["integrity"]
    out.print(
        f"{integrity['accepted']} windows accepted for sending, {integrity['stored']} stored by the server: "
        f"{integrity['missing']} lost, {integrity['duplicated']} doubled ({values['seconds']:.0f} s in all)"
    )


class _LiveView:
    """A table that updates in place."""

    def __init__(self) -> None:
        from rich.live import Live

        self._live = Live(console=console(), refresh_per_second=4, transient=True)

    def __enter__(self) -> _LiveView:
        self._live.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        self._live.__exit__(*details)

    def show(self, phase: str, status: dict[str, Any] | None, done: float) -> None:
        """Draws the newest state."""
        self._live.update(_status_table(phase, status, done))


class _PlainView(nullcontext[None]):
    """One line whenever a phase begins."""

    def __init__(self) -> None:
        super().__init__()
        self._phase = ""

    def show(self, phase: str, status: dict[str, Any] | None, done: float) -> None:
        """Says which phase has begun."""
        if phase != self._phase:
            self._phase = phase
            console().print(phase)


def _status_table(phase: str, status: dict[str, Any] | None, done: float) -> Any:
    from rich.table import Table

    table = Table(title=f"{phase}  {done:.0%}" if status else phase, title_justify="left", expand=False)
    for column in ("device", "cut", "link", "cpu", "windows", "kB up", "latency p50", "uncertainty", "loss"):
        table.add_column(column, justify="left" if column in ("device", "cut") else "right")
    if not status:
        return table
    for device in status["devices"]:
        stats = device.get("stats") or {}
        latency = (device.get("latency_ms") or {}).get("p50")
        table.add_row(
            device["device"],
            stats.get("cut") or device["cut"],
            _number(stats.get("bandwidth_bps"), 1e-6, " Mbit/s", 2),
            _number(stats.get("cpu"), 100, " %"),
            str(device["windows"]),
            _number(device["uplink_bytes"], 1e-3),
            _number(stats.get("latency_ms") or latency, 1, " ms"),
            _number(device["uncertainty"], 1, "", 2),
            _number(stats.get("loss"), 1, "", 3),
        )
    refiner = status["refiner"]
    table.caption = (
        f"server: revision {status['revision'][:8]}, refiner step {refiner['steps']}, "
        f"loss {_number(refiner['loss'], 1, '', 3)}, effective rank {_number(refiner['effective_rank'], 1, '', 1)}"
    )
    return table


def _number(value: float | None, factor: float = 1.0, unit: str = "", digits: int = 0) -> str:
    return "" if value is None else f"{value * factor:.{digits}f}{unit}"
