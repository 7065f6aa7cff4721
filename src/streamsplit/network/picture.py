"""A link as a picture: rate, round trip and losses over time, and where the device is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from streamsplit.errors import MissingExtraError
from streamsplit.network.bandwidth import BandwidthTrace
from streamsplit.network.scenarios import ENVIRONMENTS, Stretch
from streamsplit.network.statistics import DIP_MBPS, FLOOR_MBPS


def save_trace_picture(path: Path, trace: BandwidthTrace, stretches: Sequence[Stretch] = ()) -> None:
    """Writes a PNG of one pass of the trace; raises MissingExtraError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("--plot", "server", str(error)) from error
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    rate, trip = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    times = np.append(trace.t_s, trace.duration_s)
    mbps = np.maximum(trace.rate_bps / 1e6, FLOOR_MBPS)
    rate.step(times, np.append(mbps, mbps[-1]), where="post", linewidth=0.9, color="#1b5e8c")
    rate.axhline(DIP_MBPS, color="#999999", linewidth=0.7, linestyle=":")
    rate.set(yscale="log", ylabel="uplink, Mbit/s", title=trace.name)
    rate.set_ylim(top=mbps.max() * (20 if stretches else 2))  # room for the names of places
    trip.step(times, np.append(trace.rtt_ms, trace.rtt_ms[-1]), where="post", linewidth=0.9, color="#8c4a1b")
    trip.set(yscale="log", ylabel="round trip, ms", xlabel="s", xlim=(0, trace.duration_s))
    if trace.loss is not None and np.any(trace.loss > 0):
        lost = trace.t_s[trace.loss > 0]
        trip.plot(lost, np.full(len(lost), trace.rtt_ms.min()), "|", color="#b00020", markersize=5, label="lost pings")
        trip.legend(loc="upper right", fontsize="small")
    shades = {name: f"C{place}" for place, name in enumerate(ENVIRONMENTS)}
    for stretch in stretches:
        for axes in (rate, trip):
            axes.axvspan(stretch.start_s, stretch.stop_s, color=shades[stretch.environment], alpha=0.10, linewidth=0)
        rate.annotate(
            stretch.environment, ((stretch.start_s + stretch.stop_s) / 2, 0.98), xycoords=("data", "axes fraction"),
            ha="center", va="top", rotation=90, fontsize="x-small",
        )  # fmt: skip
    figure.savefig(path, dpi=110)


def require_matplotlib() -> None:
    """Raises MissingExtraError before any work is done for a picture that cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("--plot", "server", str(error)) from error
