"""The comparison as Markdown, for pages and notes: the rows of report.html, from results.json alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_HEAD = ("method", "probe", "P@10", "P@10, all", "silhouette", "rank", "updates", "MB/h up", "sent")


def results_markdown(results: Mapping[str, Any]) -> str:
    """A section a data set: table of means and half 95 % intervals over seeds, paired differences, notes."""
    meta, settings = results["meta"], results["settings"]
    seeds = settings["seeds"]
    lines = [
        "# What was learned", "",
        f"`{meta['command']}`, {seeds} {'seed' if seeds == 1 else 'seeds'}, code {', '.join(meta['cells_code'])}, "
        f"{meta['machine']['processor']}, {meta['cpu_s'] / 3600:.1f} CPU hours. "
        + (f"What learns begins with the published encoder {results['start']}. " if results.get("start") else "")
        + "Means over seeds ± half of the 95 % interval; P@10 looks for neighbours among the test pieces, 'all' among "
        "the training pieces too.", "",
    ]  # fmt: skip
    for data in results["data"]:
        rows = [row for row in results["summary"] if row["data"] == data["name"]]
        lines += [
            f"## {data['name']}: {data['held_out']} held out",
            "",
            *_table(_HEAD, [_row(row) for row in rows]),
            "",
        ]
        paired = [row for row in results["paired"] if row["data"] == data["name"] and row["seeds"] > 1]
        if paired:
            cells = [
                (row["method"], row["reference"], _spread(row["difference"], 1, 100.0), _p(row.get("t_holm_p")))
                for row in paired
            ]
            lines += [*_table(("method", "minus", "points", "p (t, Holm)"), cells), ""]
        lines += [f"- {row['method']}: {'; '.join(row['notes'])}" for row in rows if row["notes"]]
        lines += [""] if any(row["notes"] for row in rows) else []
    for name, means in results.get("speakers", {}).items():
        speakers = list(means[0]["probe_by_data"])
        cells = [
            (row["method"], _spread(row["probe"], 3), _spread(row["precision_at_10"], 3),
             *(f"{row['probe_by_data'][speaker]:.3f}" for speaker in speakers))
            for row in means
        ]  # fmt: skip
        lines += [
            f"## {name}: mean over the speakers left out",
            "",
            *_table(("method", "probe", "P@10", *speakers), cells),
            "",
        ]
    return "\n".join(lines)


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["method"],
        *(_spread(row[name], 3) for name in ("probe", "precision_at_10", "precision_at_10_all", "silhouette")),
        _spread(row["effective_rank"], 0), f"{row['updates']:.0f}", f"{row['uplink_mb_per_h']:.1f}",
        f"{row['share_sent']:.0%}",
    )  # fmt: skip


def _spread(held: Mapping[str, Any], digits: int, scale: float = 1.0) -> str:
    mean = f"{scale * held['mean']:.{digits}f}"
    return mean if held["low"] is None else f"{mean} ± {scale * (held['high'] - held['low']) / 2:.{digits}f}"


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = "|" + "|".join("---" if number == 0 else "---:" for number in range(len(head))) + "|"
    return [f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]
