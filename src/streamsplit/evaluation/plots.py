"""The pictures of a run's report: each function takes plain data and gives a matplotlib figure."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsplit.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1c2530", "#667381", "#e3e7ec"
PALETTE = ("#2563a8", "#d9822b", "#3a8f5c", "#a23b5a", "#6b57b5", "#1b9aaa", "#8a6d3b", "#c14f3f", "#5b6b7a", "#9bb33c")
PCM_BYTES_PER_S = 32000.0
OPUS_BYTES_PER_S = 3000.0


def bytes_per_hour(devices: Sequence[Mapping[str, Any]]) -> Figure:
    """Bars of MB/h per device, StreamSplit (uplink on the socket) beside PCM16 and Opus 24 kbit/s; log axis.

    Each device needs `id`, `uplink_bytes` and `live_s`.
    """
    figure, axes = axes_of(7.2, 2.9)
    names = [str(device["id"]) for device in devices]
    position = np.arange(len(names))
    ours = [device["uplink_bytes"] / max(device["live_s"], 1e-9) * 3600 / 1e6 for device in devices]
    rows = (
        ("PCM 16 bit", [PCM_BYTES_PER_S * 3600 / 1e6] * len(names), "#c3ccd6"),
        ("Opus 24 kbit/s", [OPUS_BYTES_PER_S * 3600 / 1e6] * len(names), "#8fa3b8"),
        ("StreamSplit", ours, PALETTE[0]),
    )
    for offset, (label, values, color) in enumerate(rows):
        bars = axes.bar(position + (offset - 1) * 0.27, values, 0.25, label=label, color=color)
        axes.bar_label(bars, [f"{value:.3g}" for value in values], fontsize=8, color=INK, padding=2)
    axes.set_yscale("log")
    axes.set_ylim(min(0.1, min(ours, default=1.0) / 2), 600)
    axes.set_xticks(position, names)
    axes.set_ylabel("uplink MB/h")
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.16))
    return figure


def latency_distribution(latencies_ms: Mapping[str, Sequence[float]]) -> Figure:
    """Cumulative share of windows answered within x ms of their capture, one line per device; log axis."""
    figure, axes = axes_of(7.2, 2.9)
    for (name, values), color in zip(latencies_ms.items(), PALETTE, strict=False):
        ordered = np.sort(np.asarray(values, dtype=float))
        if not len(ordered):
            continue
        share = np.arange(1, len(ordered) + 1) / len(ordered)
        label = f"{name}  p50 {np.percentile(ordered, 50):.0f} ms, p95 {np.percentile(ordered, 95):.0f} ms"
        axes.plot(np.maximum(ordered, 1.0), share, color=color, lw=1.8, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("window's end to result on the device, ms")
    axes.set_ylabel("share of windows")
    axes.set_ylim(0, 1.02)
    if any(len(values) for values in latencies_ms.values()):
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def cut_timeline(journal: Sequence[Mapping[str, Any]], trace: Sequence[Sequence[float]], num_blocks: int) -> Figure:
    """Three stacked panels against time for one device: cut chosen, link (offered and estimated), CPU load.

    `journal` holds the device's window rows (t_ms, cut, bandwidth_bps, cpu); `trace` rows of (t_s, offered bit/s).
    """
    figure, panels = axes_of(7.2, 4.4, rows=3, heights=(2.2, 1.1, 0.9))
    rows = [row for row in journal if row.get("kind") == "window"]
    seconds = np.array([row["t_ms"] / 1000 for row in rows], dtype=float)
    encodings = [str(row["cut"]).partition(":")[2] for row in rows]
    blocks = np.array([int(str(row["cut"]).partition(":")[0]) for row in rows], dtype=float)
    for encoding, color in zip(sorted(set(encodings)), PALETTE, strict=False):
        chosen = np.array([name == encoding for name in encodings])
        panels[0].scatter(seconds[chosen], blocks[chosen], s=14, color=color, label=encoding, zorder=3)
    panels[0].step(seconds, blocks, where="post", color=GRID, lw=1.0, zorder=1)
    panels[0].set_ylim(-0.8, num_blocks + 0.8)
    panels[0].set_ylabel("block k")
    if encodings:
        panels[0].legend(frameon=False, fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.2))
    if len(trace):
        offered = np.asarray(trace, dtype=float)
        panels[1].plot(offered[:, 0], offered[:, 1] / 1e6, color="#8fa3b8", lw=1.2, label="offered")
    estimated = np.array([row.get("bandwidth_bps") or np.nan for row in rows], dtype=float)
    panels[1].plot(seconds, estimated / 1e6, color=PALETTE[1], lw=1.2, label="estimated")
    panels[1].set_yscale("log")
    panels[1].set_ylabel("Mbit/s")
    panels[1].legend(frameon=False, fontsize=8, ncols=2, loc="lower right")
    panels[2].fill_between(seconds, [row.get("cpu") or 0.0 for row in rows], color=PALETTE[2], alpha=0.35, lw=0)
    panels[2].set_ylim(0, 1.05)
    panels[2].set_ylabel("CPU")
    panels[2].set_xlabel("seconds of the live phase")
    return figure


def embedding_maps(maps: Sequence[tuple[str, np.ndarray]], labels: Sequence[str]) -> Figure:
    """Two-dimensional maps side by side, points coloured by label; `maps` holds (title, [n, 2])."""
    figure, panels = axes_of(3.6 * len(maps), 3.7, columns=len(maps))
    names = sorted(set(labels))
    tags = np.array(labels)
    for axes, (title, points) in zip(panels, maps, strict=True):
        for index, name in enumerate(names):
            chosen = tags == name
            axes.scatter(
                points[chosen, 0],
                points[chosen, 1],
                s=7,
                alpha=0.75,
                lw=0,
                color=PALETTE[index % len(PALETTE)],
                label=name,
            )
        axes.set_title(title, fontsize=10, color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, fontsize=8, ncols=5, loc="outside lower center")
    return figure


def probe_bars(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Bars of held-out probe accuracy; each row has `name`, `accuracy`, `kind` (baseline, before or after)."""
    figure, axes = axes_of(7.2, 0.45 * len(rows) + 0.9)
    colors = {"baseline": "#8fa3b8", "before": "#c3ccd6", "after": PALETTE[0]}
    position = np.arange(len(rows))[::-1]
    bars = axes.barh(position, [row["accuracy"] for row in rows], 0.62, color=[colors[row["kind"]] for row in rows])
    axes.bar_label(bars, [f"{row['accuracy']:.3f}" for row in rows], fontsize=8, color=INK, padding=3)
    axes.set_yticks(position, [row["name"] for row in rows])
    axes.set_xlim(0, 1.05)
    axes.set_xlabel("linear probe on the held-out fold")
    return figure


def learning_curve(steps: Sequence[Mapping[str, float]]) -> Figure:
    """Refiner loss (left axis) and effective rank of its embeddings (right axis) against its step."""
    figure, axes = axes_of(7.2, 2.5)
    count = [row["step"] for row in steps]
    axes.plot(count, [row["loss"] for row in steps], color=PALETTE[0], lw=1.4)
    axes.set_xlabel("refiner step")
    axes.set_ylabel("loss", color=PALETTE[0])
    rank = axes.twinx()
    rank.plot(count, [row["effective_rank"] for row in steps], color=PALETTE[1], lw=1.4)
    rank.set_ylabel("effective rank", color=PALETTE[1])
    rank.set_ylim(bottom=0)
    rank.spines[["top"]].set_visible(False)
    return figure


def as_data_uri(figure: Figure) -> str:
    """The figure as a PNG data URI, for a self-contained page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def axes_of(
    width: float, height: float, *, rows: int = 1, columns: int = 1, heights: Sequence[float] | None = None
) -> tuple[Figure, Any]:
    """A figure in the house's style with one axes, or a list of them; raises MissingExtraError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("drawing a report", "server", str(error)) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(
        rows, columns, squeeze=False, sharex=rows > 1, gridspec_kw={"height_ratios": heights} if heights else None
    )
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(MUTED)
        axes.tick_params(colors=MUTED, labelsize=8)
        axes.xaxis.label.set(color=INK, fontsize=9)
        axes.yaxis.label.set(color=INK, fontsize=9)
        axes.grid(axis="y", color=GRID, lw=0.7)
        axes.set_axisbelow(True)
    if rows == columns == 1:
        return figure, grid[0, 0]
    return figure, grid.ravel()
