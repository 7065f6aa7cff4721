"""The pictures of the convergence theorem: the bound beside what was observed, and a real learner without a bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streamsplit.evaluation.plots import MUTED, PALETTE, axes_of
from streamsplit.evaluation.theory import Convergence
from streamsplit.learning.theorem import GradientTrace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROUNDING = 1e-24  # below it a squared norm is zero but for rounding


def convergence_figure(run: Convergence) -> Figure:
    """Squared gradient, distance to the optimum, and sigma^2 and eps^2 against the step; all axes log."""
    figure, panels = axes_of(7.2, 6.4, rows=3, heights=(2.2, 1.4, 1.4))
    step = np.arange(1, len(run.rate) + 1)
    bound = r"$2(f_0-f^*)/(T\eta)+L\eta\sigma^2+\epsilon^2$"
    paper = r"paper: $2(f_0-f^*)/(T\eta)+L\eta\sigma^2/2+L\epsilon^2$"
    panels[0].plot(step, run.gradient2, color=MUTED, lw=0.6, alpha=0.6, label="observed")
    panels[0].plot(step, run.smallest2, color=PALETTE[0], lw=1.8, label="observed, smallest so far")
    panels[0].plot(step, run.average2, color=PALETTE[2], lw=1.4, label="observed, mean so far")
    panels[0].plot(step, run.bound, color=PALETTE[3], lw=1.4, label=bound)
    if np.isfinite(run.paper_bound).any():
        panels[0].plot(step, run.paper_bound, color=PALETTE[1], lw=1.2, ls="--", label=paper)
    panels[0].set_ylabel(r"$E\|\nabla f\|^2$")
    panels[1].plot(step, run.distance2, color=PALETTE[0], lw=1.4, label="observed")
    panels[1].plot(step, run.distance_bound, color=PALETTE[3], lw=1.4, label="bound")
    panels[1].set_ylim(min(run.distance2.min(), run.distance_bound.min()) / 3, run.distance_bound.max() * 20)
    panels[1].set_ylabel(r"$E\|W-W^*\|^2$")
    parts = (
        (run.sigma2, r"$\sigma^2$", PALETTE[4]),
        (run.bias2, r"$\epsilon^2$", PALETTE[3]),
        (run.selection2, "of it selection alone", PALETTE[1]),
        (run.split2, "of it split alone", PALETTE[5]),
    )
    drawn: list[float] = []
    for values, label, color in parts:
        known = np.where(values > _ROUNDING, values, np.nan)
        if np.isfinite(known).any():
            panels[2].plot(step, known, color=color, lw=1.2, label=label)
            drawn += known[np.isfinite(known)].tolist()
    panels[2].set_ylabel("measured")
    panels[2].set_xlabel("step of SGD")
    for axes in panels:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.tick_params(axis="y", which="minor", labelleft=False)
        if axes.get_lines():
            axes.legend(frameon=False, fontsize=7, loc="upper right", ncols=2)
    if drawn:
        panels[2].set_ylim(min(drawn) / 3, max(drawn) * 100)  # with room for the legend
    return figure


def trace_figure(trace: GradientTrace) -> Figure:
    """A real learner's sigma^2, mean gradient's squared norm and the noise in it, per optimiser step; log axis."""
    figure, axes = axes_of(7.2, 2.9)
    rows = (
        (trace.sigma2, r"$\sigma^2$ of a mini-batch", PALETTE[4]),
        (trace.mean_norm2, r"$\|\bar g\|^2$ of a step", PALETTE[0]),
        (trace.noise_norm2, "of it expected from noise", "#8fa3b8"),
    )
    for values, label, color in rows:
        axes.plot(trace.step, values, color=color, lw=1.4, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("squared gradient norm")
    axes.legend(frameon=False, fontsize=8, loc="upper right", ncols=3)
    return figure
