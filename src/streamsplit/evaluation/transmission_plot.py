"""The picture of a transmission curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from streamsplit.evaluation.plots import GRID, PALETTE, axes_of
from streamsplit.evaluation.transmission import GatePoint, TransmissionCurve

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def transmission_figure(
    curve: TransmissionCurve, gate: Sequence[GatePoint] = (), others: Mapping[str, TransmissionCurve] | None = None
) -> Figure:
    """Accuracy against the share of windows sent: the most uncertain, random with its interval, oracle, live gate;
    thinner, the most uncertain by `others`, measures of uncertainty over the same windows."""
    figure, axes = axes_of(7.2, 3.4)
    x = curve.shares
    axes.fill_between(x, curve.random_low, curve.random_high, color=GRID, lw=0, label="random, 95 % of orders")
    axes.plot(x, curve.random, color="#8fa3b8", lw=1.2, label="random, expected")
    axes.plot(x, curve.oracle, color=PALETTE[2], lw=1.2, ls="--", label="oracle")
    said = "" if math.isnan(curve.area_of_oracle) else f" ({curve.area_of_oracle:.0%} of the oracle's area)"
    axes.plot(x, curve.by_uncertainty, color=PALETTE[0], lw=1.8, label=f"most uncertain first{said}")
    for number, (name, other) in enumerate((others or {}).items()):
        color = PALETTE[3 + number % (len(PALETTE) - 3)]
        axes.plot(other.shares, other.by_uncertainty, color=color, lw=1.0, label=f"by {name}")
    if gate:
        shares, accuracies = [point.share for point in gate], [point.accuracy for point in gate]
        axes.scatter(shares, accuracies, s=18, color=PALETTE[1], zorder=3, label="live gate")
    axes.set_xlim(-0.01, 1.01)
    axes.set_xlabel("share of windows sent")
    axes.set_ylabel("accuracy over all windows")
    axes.legend(frameon=False, fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.22))
    return figure
