"""The picture of a cut table: what each cut costs and is worth, against how deep it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from streamsplit.errors import ConfigError, MissingExtraError
from streamsplit.splitting.table import CutTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS = (
    ("edge_ms", "device, ms", False),
    ("server_ms", "server, ms", False),
    ("payload_bytes", "bytes a window", True),
    ("energy_mj", "device energy, mJ", True),
    ("agreement", "agreement with the full path", False),
    ("accuracy", "probe accuracy", False),
    ("privacy_risk", "privacy risk (log-mel variance given away)", False),
    ("fetch_bytes", "weights to fetch, bytes", False),
)
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h", "d", "p")


def draw_table(table: CutTable) -> Figure:
    """One panel for each column against the block, one mark for each encoding; raises MissingExtraError."""
    try:
        from matplotlib.figure import Figure as NewFigure
    except ImportError as error:
        raise MissingExtraError("--plot", "server", str(error)) from error
    figure = NewFigure(figsize=(13.0, 6.4), layout="constrained")
    encodings = list(dict.fromkeys(row.cut.encoding for row in table.rows))
    for axes, (name, title, logarithmic) in zip(figure.subplots(2, 4).flat, _PANELS, strict=True):
        drawn = False
        for number, encoding in enumerate(encodings):
            rows = [row for row in table.rows if row.cut.encoding is encoding and not math.isnan(getattr(row, name))]
            if logarithmic:
                rows = [row for row in rows if getattr(row, name) > 0]
            if not rows:
                continue
            drawn = True
            axes.plot(
                [row.cut.block for row in rows], [getattr(row, name) for row in rows], marker=_MARKS[number % 13],
                markersize=4, linewidth=1.0, color=f"C{number % 10}", label=encoding.label,
                linestyle="-" if number < 10 else ":",
            )  # fmt: skip
        if logarithmic:
            axes.set_yscale("log")
        axes.set_title(title if drawn else f"{title}: not measured", fontsize=9)
        axes.set_xlabel("block", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    handles = [figure.axes[0].get_lines()[i] for i in range(len(figure.axes[0].get_lines()))]
    figure.legend(handles, [str(line.get_label()) for line in handles], loc="outside right center", fontsize=8)
    figure.suptitle(f"{table.encoder} on {table.device} (factor {table.factor:g}), per window", fontsize=11)
    return figure


def save_plot(table: CutTable, path: Path) -> None:
    """Writes the picture, in the format of the file's suffix; raises ConfigError where that cannot be."""
    figure = draw_table(table)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: the picture cannot be written ({error}); give a .png, .svg or .pdf") from error
