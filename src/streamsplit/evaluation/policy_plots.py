"""The pictures of a policy study: each function takes plain data and gives a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsplit.evaluation.plots import GRID, INK, MUTED, PALETTE, axes_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def reward_bars(rows: Sequence[Mapping[str, Any]], devices: Sequence[str]) -> Figure:
    """Mean reward of every policy with its interval, a group of bars a device class.

    Bars far below zero are cut off and named by their value, so that the good ones can be told apart. Each row
    needs `policy`, `device` and `reward` = {mean, low, high}.
    """
    figure, axes = axes_of(8.4, 3.4)
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    width = 0.84 / len(policies)
    values = [row["reward"]["mean"] for row in rows]
    floor = min(0.0, max(min(values), -1.2 * max(values)) if max(values) > 0 else min(values))
    for number, policy in enumerate(policies):
        found = {row["device"]: row["reward"] for row in rows if row["policy"] == policy}
        at = np.arange(len(devices)) + (number - (len(policies) - 1) / 2) * width
        means = [found[device]["mean"] for device in devices]
        spread = [[m - found[d]["low"] for m, d in zip(means, devices, strict=True)]]
        spread.append([found[d]["high"] - m for m, d in zip(means, devices, strict=True)])
        color = PALETTE[number % len(PALETTE)] if number < len(PALETTE) else MUTED
        axes.bar(at, means, width * 0.92, yerr=np.nan_to_num(spread), color=color, label=policy, error_kw={"lw": 0.8})
        for x, mean in zip(at, means, strict=True):
            if mean < floor:
                axes.text(
                    x, floor, f"{mean:.0f}", rotation=90, va="bottom", ha="center", fontsize=6, color="white",
                    bbox={"facecolor": color, "edgecolor": "none", "pad": 0.6},
                )  # fmt: skip
    axes.set_xticks(np.arange(len(devices)), devices)
    axes.set_ylabel("mean reward a window")
    axes.set_ylim(bottom=floor)
    axes.legend(frameon=False, fontsize=7, ncols=6, loc="upper center", bbox_to_anchor=(0.5, 1.24))
    return figure


def edge_share_over_time(run: Sequence[Mapping[str, float]], num_blocks: int, title: str) -> Figure:
    """The papers' picture: share of the blocks computed on the device above processor load and link rate over time.

    Each row needs `t_s`, `block`, `cpu` and `mbps`, and `kept` (1 for a window that nothing was sent for).
    """
    figure, (top, middle, bottom) = axes_of(8.4, 4.6, rows=3, heights=(2, 1, 1))
    at = np.array([row["t_s"] for row in run])
    share = np.array([row["block"] for row in run]) / num_blocks
    kept = np.array([row["kept"] for row in run], bool)
    top.plot(at, share, color=GRID, lw=0.8, zorder=1)
    top.scatter(at[~kept], share[~kept], s=7, color=PALETTE[0], label="sent", zorder=2)
    top.scatter(at[kept], share[kept], s=7, color=PALETTE[1], label="kept", zorder=2)
    top.set_ylabel("share of blocks\non the device")
    top.set_ylim(-0.05, 1.05)
    top.set_title(title, fontsize=9, color=INK, loc="left")
    top.legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
    middle.plot(at, [row["cpu"] for row in run], color=PALETTE[3], lw=1.0)
    middle.set_ylabel("cpu")
    middle.set_ylim(0, 1.02)
    bottom.plot(at, np.maximum([row["mbps"] for row in run], 1e-3), color=PALETTE[2], lw=1.0)
    bottom.set_yscale("log")
    bottom.set_ylabel("Mbit/s")
    bottom.set_xlabel("s")
    return figure


def choice_map(blocks: np.ndarray, cpu: Sequence[float], mbps: Sequence[float], num_blocks: int, title: str) -> Figure:
    """Block chosen over processor load and link rate [cpu, rate]; -1 where nothing is sent (hatched white)."""
    figure, axes = axes_of(4.6, 3.4)
    shown = np.ma.masked_less(np.asarray(blocks, float), 0)
    mesh = axes.pcolormesh(mbps, cpu, shown, vmin=0, vmax=num_blocks, cmap="viridis", shading="nearest")
    axes.set_xscale("log")
    axes.set_xlabel("estimated Mbit/s")
    axes.set_ylabel("cpu")
    axes.set_facecolor("#f3efe6")
    axes.set_title(f"{title} (blank: kept)", fontsize=9, color=INK, loc="left")
    figure.colorbar(mesh, ax=axes, label="blocks on the device")
    return figure


def training_curve(points: Sequence[Mapping[str, float]]) -> Figure:
    """Held-out reward and entropy over environment steps, one line a seed.

    Each point needs `seed`, `steps`, `held_out_reward` and `entropy`.
    """
    figure, axes = axes_of(7.2, 2.9)
    for number, seed in enumerate(sorted({int(point["seed"]) for point in points})):
        mine = [point for point in points if point["seed"] == seed]
        axes.plot(
            [point["steps"] for point in mine], [point["held_out_reward"] for point in mine],
            color=PALETTE[number % len(PALETTE)], lw=1.6, label=f"seed {seed}",
        )  # fmt: skip
    axes.set_xlabel("environment steps")
    axes.set_ylabel("reward a window, held-out runs")
    axes.legend(frameon=False, fontsize=8)
    return figure
