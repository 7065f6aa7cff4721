"""The stages of an echo's latency as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamsplit.errors import StreamSplitError


def save_stages(found: Mapping[str, Any], path: Path) -> None:
    """Each stage's median as a bar that begins where the stages before it end, its 95th percentile as a line, its aim
    as a tick; the total below. Raises StreamSplitError for a file that cannot be written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8.0, 3.6), layout="constrained")
    left = 0.0
    for name, values in [*found["stages"].items(), ("total", found["total"])]:
        left = 0.0 if name == "total" else left
        axes.barh(name, values["p50"], left=left, color="#2f4a63" if name == "total" else "#8fa3b8")
        axes.plot([left + values["p50"], left + values["p95"]], [name, name], color="black", linewidth=1.0)
        axes.plot([left + found["aims_ms"][name]], [name], marker="|", markersize=14, color="#b03a2e", linestyle="")
        left += values["p50"]
    axes.invert_yaxis()
    axes.set_xlabel(
        f"ms from a sample to its echo, messages of {found['message_ms']:g} ms; bar: p50, line: to p95, tick: aim"
    )
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise StreamSplitError(f"{path}: cannot be written ({error})") from None
    finally:
        pyplot.close(figure)
