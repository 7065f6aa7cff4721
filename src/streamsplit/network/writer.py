"""A trace as a CSV file that reads back."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from streamsplit.network.bandwidth import BandwidthTrace
from streamsplit.network.scenarios import Stretch


def write_trace(path: Path, trace: BandwidthTrace, stretches: Sequence[Stretch] = ()) -> None:
    """One pass as t_s, mbps, rtt_ms, loss, and the environment where `stretches` say it; `read_trace` reads it."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["t_s", "mbps", "rtt_ms", "loss", *(["environment"] if stretches else [])])
        places = iter(stretches)
        place = next(places, None)
        for index, t_s in enumerate(trace.t_s.tolist()):
            while place is not None and t_s >= place.stop_s:
                place = next(places, None)
            row = [f"{round(t_s, 6)}", f"{trace.rate_bps[index] / 1e6:.6g}", f"{trace.rtt_ms[index]:.5g}"]
            row.append("0" if trace.loss is None else f"{trace.loss[index]:g}")
            table.writerow([*row, place.environment] if place is not None else row)
