"""The stages of an echo's latency as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamsplit.errors import StreamSplitError


def save_stages(found: Mapping[str, Any], path: Path) -> None:
    """Means of the stages on top of each other, beside the total's percentiles. Raises StreamSplitError for a file that
    cannot be written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8.0, 2.6), layout="constrained")
    left = 0.0
    for name, values in [*found["stages"].items(), ("codec", {"mean": found["codec_delay_ms"]})]:
        axes.barh("mean", values["mean"], left=left, label=name)
        left += values["mean"]
    for name in ("p50", "p95", "p99"):
        axes.barh(name, found["total"][name], color="#8fa3b8")
    axes.invert_yaxis()
    axes.set_xlabel(f"ms from a sample to its echo, messages of {found['message_ms']:g} ms")
    axes.legend(ncols=4, fontsize="small", frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise StreamSplitError(f"{path}: cannot be written ({error})") from None
    finally:
        pyplot.close(figure)
