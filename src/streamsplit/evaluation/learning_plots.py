"""The pictures of a comparison of learners: each function takes plain data and gives a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsplit.errors import MissingExtraError
from streamsplit.evaluation.plots import GRID, INK, MUTED, PALETTE, axes_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def radar(rows: Mapping[str, Mapping[str, float]], axes_names: Sequence[str]) -> Figure:
    """One polygon a method over several figures, each scaled from the worst (centre) to the best of those shown."""
    try:
        from matplotlib.figure import Figure as New
    except ImportError as error:
        raise MissingExtraError("drawing a report", "server", str(error)) from error
    figure = New(figsize=(5.2, 4.4), layout="constrained")
    axes: Any = figure.add_subplot(projection="polar")
    angles = np.linspace(0.0, 2 * np.pi, len(axes_names), endpoint=False)
    table = np.array([[values[name] for name in axes_names] for values in rows.values()], float)
    low, high = table.min(axis=0), table.max(axis=0)
    scaled = 0.1 + 0.9 * (table - low) / np.where(high > low, high - low, 1.0)
    for (name, values), color in zip(zip(rows, scaled, strict=True), PALETTE * 2, strict=False):
        axes.plot(np.append(angles, angles[0]), np.append(values, values[0]), color=color, lw=1.6, label=name)
    axes.set_xticks(angles, axes_names, fontsize=8, color=INK)
    axes.set_yticks([])
    axes.set_ylim(0, 1.05)
    axes.grid(color=GRID)
    figure.legend(frameon=False, fontsize=8, ncols=3, loc="outside lower center")
    return figure


def bandwidth_front(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Probe accuracy against MB an hour of uplink (log axis), with the front of what nothing else beats in both.

    Each row needs `method`, `uplink_mb_per_h` and `probe` = {mean, low, high}. What sends nothing stands at the left.
    """
    figure, axes = axes_of(7.2, 3.6)
    sends = [row["uplink_mb_per_h"] for row in rows if row["uplink_mb_per_h"] > 0]
    floor = min(sends, default=1.0) / 4
    front: list[tuple[float, float]] = []
    for number, row in enumerate(sorted(rows, key=lambda row: (row["uplink_mb_per_h"], -row["probe"]["mean"]))):
        at, held = max(row["uplink_mb_per_h"], floor), row["probe"]
        if held["low"] is not None:
            axes.plot([at, at], [held["low"], held["high"]], color=MUTED, lw=0.8, zorder=1)
        axes.scatter(at, held["mean"], s=22, color=PALETTE[number % len(PALETTE)], zorder=3)
        axes.annotate(row["method"], (at, held["mean"]), xytext=(5, 3), textcoords="offset points", fontsize=7)
        if not front or held["mean"] > front[-1][1]:
            front.append((at, held["mean"]))
    axes.step([x for x, _ in front], [y for _, y in front], where="post", color=GRID, lw=1.4, zorder=0)
    axes.set_xscale("log")
    axes.set_xlabel(f"uplink MB/h (what sends nothing is drawn at {floor:.2g})")
    axes.set_ylabel("linear probe")
    return figure


def confusion_map(confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> Figure:
    """Shares of each true class (rows) that the probe calls by each name (columns)."""
    figure, axes = axes_of(5.2, 4.6)
    counts = np.asarray(confusion, float)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(counts > 0):
        color = "white" if share[row, column] > 0.5 else INK
        axes.text(column, row, f"{int(counts[row, column])}", ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", fontsize=7)
    axes.set_yticks(range(len(classes)), classes, fontsize=7)
    axes.grid(visible=False)
    axes.set_xlabel("called")
    axes.set_ylabel("is")
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    return figure
