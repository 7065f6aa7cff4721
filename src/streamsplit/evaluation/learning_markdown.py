"""The comparison as Markdown, for pages and notes: the rows of report.html, from results.json alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streamsplit.evaluation.uncertainty_study import measures_of

LEAST_SEEDS = 3  # for an interval: of two, Student's is 6 standard deviations wide on either side
QUARTER = 0.25  # share sent at which the uncertainty's table looks

_HEAD = (
    "method",
    "probe",
    "P@10",
    "P@10, all",
    "silhouette",
    "rank",
    "updates",
    "server's",
    "windows",
    "MB/h up",
    "sent",
)


def results_markdown(results: Mapping[str, Any]) -> str:
    """A section a data set: table of means and half 95 % intervals over seeds, paired differences, notes, what the
    uncertainty is worth, whether the bound held."""
    meta, settings = results["meta"], results["settings"]
    seeds = settings["seeds"]
    lines = [
        "# What was learned", "",
        f"`{meta['command']}`, {seeds} {'seed' if seeds == 1 else 'seeds'}, code {', '.join(meta['cells_code'])}, "
        f"{meta['machine']['processor']}, {_cpu(meta['cpu_s'])}. "
        + (f"What learns begins with the published encoder {results['start']}. " if results.get("start") else "")
        + "Means over seeds ± half of the 95 % interval; P@10 looks for neighbours among the test pieces, 'all' among "
        "the training pieces too; updates of the devices and of the server, windows that either trained on.", "",
    ]  # fmt: skip
    for data in results["data"]:
        rows = [row for row in results["summary"] if row["data"] == data["name"]]
        lines += [
            f"## {data['name']}: {data['held_out']} held out",
            "",
            f"P@10 can be {data['precision_at_10_possible']:.3f} at most: a class has few other recordings here."
            if data["precision_at_10_possible"] < 1.0
            else "Every class has at least ten other pieces to be found.",
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
        lines += _uncertainty([cell for cell in results["cells"] if cell["data"] == data["name"]])
        lines += _theory(results.get("theory", {}).get(data["name"]))
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


def _uncertainty(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each measure's worth for every method that was studied, means over seeds; gains over sending at random."""
    lines = []
    for name in dict.fromkeys(cell["method"] for cell in cells if "uncertainty" in cell):
        studies = [cell["uncertainty"] for cell in cells if cell["method"] == name]
        curve = _mean_curve([study["curve"] for study in studies])
        rows = []
        for measure in measures_of(studies[0]):
            worth = [held[measure] for held in map(measures_of, studies) if measure in held]
            quality = [_known([one["quality"][key] for one in worth]) for key in (
                "auroc_error", "auroc_benefit", "spearman_error", "spearman_benefit")]  # fmt: skip
            sent = _mean_curve([one["curve"] for one in worth])["by_uncertainty"]
            areas = [one["area_interval"] for one in worth]
            apart = sum(area["low"] is not None and area["low"] > 0 for area in areas)
            area = _known([area["mean"] for area in areas], 2, 100.0)
            rows.append((measure, *quality, f"{sent:.3f}", area, f"{apart} of {len(areas)}"))
        head = (
            "measure", "AUROC, error", "AUROC, benefit", "Spearman, error", "Spearman, benefit", "a quarter sent",
            "above random, points", "interval above 0",
        )  # fmt: skip
        lines += [
            f"What the uncertainty of {name} is worth, window by window: the device alone, after block "
            f"{studies[0]['block']}, is right on {curve['edge']:.3f}, the server on {curve['server']:.3f}; with a "
            f"quarter of the windows sent, {curve['random']:.3f} at random and {curve['oracle']:.3f} for who knows the "
            "answers. 'Above random' is the mean over all shares; its interval is over recordings, seed by seed.",
            "", *_table(head, rows), "",
        ]  # fmt: skip
    return lines


def _mean_curve(curves: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Accuracies at the share nearest to QUARTER, and without and with everything sent, means over curves."""
    held: dict[str, list[float]] = {}
    for curve in curves:
        nearest = np.argmin(np.abs(np.asarray(curve["shares"]) - QUARTER))
        for name in ("by_uncertainty", "random", "oracle"):
            held.setdefault(name, []).append(curve[name][nearest])
        for side in ("edge", "server"):
            held.setdefault(side, []).append(curve[f"{side}_accuracy"])
    return {name: float(np.mean(values)) for name, values in held.items()}


def _theory(study: Mapping[str, Any] | None) -> list[str]:
    """Whether the corrected bound held, and how often the paper's did not."""
    if study is None:
        return []
    run = study["convergence"]
    return [
        f"Theory, a strongly convex head over {study['rows']} embeddings of an untrained network: the corrected bound "
        f"{'holds at every step' if run['holds'] else 'does NOT hold at every step'}; the smallest observed gradient "
        f"is above the bound as the paper writes it at {run['paper_violations']:.0%} of the steps. sigma^2 is "
        f"{run['sigma2'][0]:.2g} at the first step and {run['sigma2'][-1]:.2g} at the last, epsilon^2 "
        f"{run['bias2'][0]:.2g} and {run['bias2'][-1]:.2g}.",
        "",
    ]


def _known(values: Sequence[float | None], digits: int = 2, scale: float = 1.0) -> str:
    """The mean of those that could be said."""
    held = [value for value in values if value is not None]
    return f"{scale * sum(held) / len(held):.{digits}f}" if held else "–"


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["method"],
        *(_spread(row[name], 3) for name in ("probe", "precision_at_10", "precision_at_10_all", "silhouette")),
        _spread(row["effective_rank"], 0), f"{row['updates']:.0f}", f"{row['server_updates']:.0f}",
        f"{(row['windows'] + row['server_windows']) / 1000:.1f}k", f"{row['uplink_mb_per_h']:.1f}",
        f"{row['share_sent']:.0%}",
    )  # fmt: skip


def _spread(held: Mapping[str, Any], digits: int, scale: float = 1.0) -> str:
    mean = f"{scale * held['mean']:.{digits}f}"
    few = held["low"] is None or held["n"] < LEAST_SEEDS
    return mean if few else f"{mean} ± {scale * (held['high'] - held['low']) / 2:.{digits}f}"


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = "|" + "|".join("---" if number == 0 else "---:" for number in range(len(head))) + "|"
    return [f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]


def _cpu(seconds: float) -> str:
    return f"{seconds / 3600:.1f} CPU hours" if seconds >= 360 else f"{seconds:.0f} CPU seconds"
