"""The summary and the HTML report of a comparison of learners: tables with intervals, paired tests, pictures."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamsplit.evaluation import learning_plots
from streamsplit.evaluation.baselines.catalogue import OURS, REFERENCES
from streamsplit.evaluation.grid import load_vectors
from streamsplit.evaluation.learning_markdown import LEAST_SEEDS
from streamsplit.evaluation.page import heading, paragraph, picture, section, table, write_page
from streamsplit.evaluation.plots import embedding_maps
from streamsplit.evaluation.statistics import holm, mean_interval, paired_test
from streamsplit.evaluation.study import map_2d
from streamsplit.evaluation.theory_plots import convergence_figure, trace_figure
from streamsplit.evaluation.theory_study import TheoryStudy
from streamsplit.evaluation.transmission_plot import transmission_figure
from streamsplit.evaluation.uncertainty_study import curve_of, curves_of, measures_of

FIGURES = ("probe", "precision_at_10", "precision_at_10_all", "silhouette", "effective_rank", "uniformity")
EFFORT = (
    "windows", "updates", "server_windows", "server_updates", "cpu_s", "uplink_mb_per_h", "downlink_mb_per_h",
    "share_sent",
)  # fmt: skip
BASELINE = "five_statistics_pca"
_RADAR = ("probe", "precision_at_10", "silhouette", "effective_rank")
_COLUMNS = (
    "method", "probe", "P@10", "P@10, all", "silhouette", "rank", "windows", "updates", "server windows",
    "server updates", "CPU s", "MB/h up", "MB/h down", "sent",
)  # fmt: skip


def summarise(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a data set and method: every figure's mean and 95 % interval over seeds, and what it took on average."""
    rows = []
    for data, name in dict.fromkeys((cell["data"], cell["method"]) for cell in cells):
        mine = [cell for cell in cells if (cell["data"], cell["method"]) == (data, name)]
        row: dict[str, Any] = {"data": data, "method": name, "about": mine[0]["about"], "seeds": len(mine)}
        for figure in FIGURES:
            row[figure] = mean_interval([cell["figures"][figure] for cell in mine]).as_dict()
        for part in EFFORT:
            row[part] = float(np.mean([cell["effort"][part] for cell in mine]))
        row["probe_standard_error"] = float(np.mean([cell["figures"]["probe_standard_error"] for cell in mine]))
        row["notes"] = list(dict.fromkeys(note for cell in mine for note in cell["notes"]))
        rows.append(row)
    return rows


def paired_rows(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Ours minus each reference row on the same seeds: probe difference, interval, p-values corrected by Holm."""
    rows: list[dict[str, Any]] = []
    for data in dict.fromkeys(cell["data"] for cell in cells):
        made: list[dict[str, Any]] = []
        for ours in OURS:
            for reference in [name for name in REFERENCES if name != ours]:
                first, second = _by_seed(cells, data, ours), _by_seed(cells, data, reference)
                seeds = sorted(set(first) & set(second))
                if not seeds:
                    continue
                test = paired_test([first[seed] for seed in seeds], [second[seed] for seed in seeds])
                made.append(
                    {"data": data, "method": ours, "reference": reference, "seeds": len(seeds),
                     "difference": test.difference.as_dict(), "t_p": test.t_p, "wilcoxon_p": test.wilcoxon_p}
                )  # fmt: skip
        known = [row for row in made if np.isfinite(row["t_p"])]
        for row, corrected in zip(known, holm([row["t_p"] for row in known]), strict=True):
            row["t_holm_p"] = corrected
        rows += made
    return rows


def write_learning_report(results: Mapping[str, Any], output: Path, theory: Mapping[str, TheoryStudy]) -> Path:
    """Writes report.html beside the cells in `output`, from what results.json holds and each data set's theory
    study; returns its path."""
    parts = [_top(results)]
    for data in results["data"]:
        rows = [row for row in results["summary"] if row["data"] == data["name"]]
        parts.append(section(data["name"], paragraph(_about(data)), _table(rows)))
        parts.append(section(f"{data['name']}: paired over seeds", _tests(results, data["name"])))
        parts.append(section(f"{data['name']}: pictures", *_pictures(results, rows, output)))
        parts += _uncertainty([cell for cell in results["cells"] if cell["data"] == data["name"]])
        if data["name"] in theory:
            parts.append(_theory(data["name"], theory[data["name"]]))
    parts += [_over_speakers(name, rows) for name, rows in results.get("speakers", {}).items()]
    parts.append(section("How it was measured", f"<pre>{html.escape(json.dumps(results['meta'], indent=1))}</pre>"))
    return write_page(output / "report.html", "StreamSplit: what was learned", parts)


def best_of(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The row with the highest mean probe accuracy."""
    return max(rows, key=lambda row: row["probe"]["mean"])


def _by_seed(cells: Sequence[Mapping[str, Any]], data: str, name: str) -> dict[int, float]:
    mine = [cell for cell in cells if cell["data"] == data and cell["method"] == name]
    return {cell["seed"]: cell["figures"]["probe"] for cell in mine}


def _top(results: Mapping[str, Any]) -> str:
    tiles = []
    for data in results["data"]:
        best = best_of([row for row in results["summary"] if row["data"] == data["name"]])
        tiles.append((f"{best['probe']['mean']:.3f}", f"best probe on {data['name']}: {best['method']}"))
    seeds = results["settings"]["seeds"]
    sub = f"{len(results['settings']['methods'])} methods, {seeds} {'seed' if seeds == 1 else 'seeds'}, one budget"
    if results.get("start"):
        sub += f"; what learns begins with {results['start']}"
    return heading("What was learned", sub, tiles)


def _about(data: Mapping[str, Any]) -> str:
    return (
        f"Learned from {data['learn_windows']} windows of {data['learn_pieces']} pieces without labels; probe trained "
        f"on {data['train_pieces']} pieces of {data['classes']} classes, tested on {data['test_pieces']} "
        f"({data['held_out']}); P@10 among these can be {data['precision_at_10_possible']:.3f} at most. "
        "Means over seeds with 95 % intervals; where seeds change nothing, the interval is a point and the test "
        "pieces are still only a sample (one probe's standard error is in results.json)."
        + "".join(f" {note[0].upper()}{note[1:]}." for note in data["notes"])
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        (
            f"{row['method']}: {row['about']}",
            *(_interval(row[name], 3) for name in ("probe", "precision_at_10", "precision_at_10_all", "silhouette")),
            _interval(row["effective_rank"], 1),
            *(f"{row[name]:.0f}" for name in EFFORT[:5]),
            f"{row['uplink_mb_per_h']:.2f}", f"{row['downlink_mb_per_h']:.2f}", f"{row['share_sent']:.1%}",
        )
        for row in rows
    ]  # fmt: skip
    notes = [f"{row['method']}: {'; '.join(row['notes'])}." for row in rows if row["notes"]]
    return table(_COLUMNS, cells, ["after" if row["method"] in OURS else "" for row in rows]) + paragraph(
        " ".join(notes)
    )


def _over_speakers(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A section of each method's mean over the left-out speakers, with the probe on every one."""
    speakers = list(rows[0]["probe_by_data"])
    text = (
        f"Each seed's mean over {len(speakers)} speakers, every one left out once; intervals are over seeds, and say "
        "nothing of speakers that are not among these."
    )
    cells = [
        (
            row["method"], _interval(row["probe"], 3), _interval(row["precision_at_10"], 3),
            *(f"{row['probe_by_data'][speaker]:.3f}" for speaker in speakers),
        )
        for row in rows
    ]  # fmt: skip
    header = ("method", "probe", "P@10", *(f"probe, {speaker}" for speaker in speakers))
    return section(f"{name}: mean over the speakers left out", paragraph(text), table(header, cells))


def _tests(results: Mapping[str, Any], data: str) -> str:
    rows = [row for row in results["paired"] if row["data"] == data]
    if not rows:
        return paragraph("Neither StreamSplit nor Server-Only ran beside one of the rows that they are held against.")
    header = ("method", "minus", "points", "seeds", "p (t)", "p (t, Holm)", "p (Wilcoxon)")
    return table(
        header,
        [
            (
                row["method"], row["reference"], _interval(row["difference"], 1, 100.0), str(row["seeds"]),
                *(_number(row.get(name)) for name in ("t_p", "t_holm_p", "wilcoxon_p")),
            )
            for row in rows
        ],
    )  # fmt: skip


def _uncertainty(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """A section a method whose uncertainty was studied: the first seed's curve, and every seed's figures."""
    parts = []
    header = (
        "seed", "measure", "windows", "edge", "server", "Spearman, error", "Spearman, benefit", "AUROC, error",
        "AUROC, benefit", "area above random, points", "of the oracle's",
    )  # fmt: skip
    for data, name in dict.fromkeys((cell["data"], cell["method"]) for cell in cells if "uncertainty" in cell):
        mine = [cell for cell in cells if cell["method"] == name]
        rows = [
            _worth(str(cell["seed"]), measure, worth)
            for cell in mine
            for measure, worth in measures_of(cell["uncertainty"]).items()
        ]
        first = mine[0]["uncertainty"]
        text = paragraph(
            f"Windows of the test part, one by one: the device answers by a probe on its early exit after block "
            f"{first['block']}, the server by one on the embedding; the memory has heard the stream. v2, v1 and "
            "context are computed without labels; classifier is the doubt of the device's own probe, which needed "
            "them. Intervals are over whole recordings: one that holds 0 does not tell the uncertainty from chance. "
            "Where the server is hardly better than the device, windows are spoiled as often as repaired, and no "
            "uncertainty can gain much."
        )
        caption = f"Share of windows sent against accuracy: {name}, seed {mine[0]['seed']}."
        drawn = picture(transmission_figure(*curve_of(first), curves_of(first)), caption)
        parts.append(section(f"{data}: what the uncertainty of {name} is worth", text, table(header, rows), drawn))
    return parts


def _worth(seed: str, measure: str, held: Mapping[str, Any]) -> tuple[str, ...]:
    """A row of the uncertainty's table."""
    quality, curve = held["quality"], held["curve"]
    figures = [quality[key] for key in ("spearman_error", "spearman_benefit", "auroc_error", "auroc_benefit")]
    return (
        seed, measure, str(curve["windows"]), f"{curve['edge_accuracy']:.3f}", f"{curve['server_accuracy']:.3f}",
        *map(_number, figures), _interval(held["area_interval"], 2, 100.0), _number(curve["area_of_oracle"]),
    )  # fmt: skip


def _theory(name: str, study: TheoryStudy) -> str:
    run = study.run
    held = "holds at every step" if run.holds else "does NOT hold at every step"
    text = (
        f"Stochastic gradient descent on a strongly convex head over {study.rows} window embeddings that cross as "
        f"int8, only the least certain {100 - run.settings.percentile:g} % sent: the corrected bound {held}; the "
        f"smallest observed gradient is above the bound as the paper writes it at {run.paper_violations:.0%} of the "
        f"steps. Below it, a device that heard {study.heard} windows: its gradients, for which nothing is claimed."
    )
    bounds = picture(convergence_figure(run), "The corrected bound, the paper's and what was observed.")
    return section(
        f"{name}: theory", paragraph(text), bounds, picture(trace_figure(study.trace), "A real learner, no claim.")
    )


def _pictures(results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], output: Path) -> list[str]:
    best = best_of(rows)
    made = [picture(learning_plots.bandwidth_front(rows), "Probe accuracy against uplink, headers included.")]
    chosen = [row for row in rows if row["method"] in (*OURS, *REFERENCES) or row is best]
    if len(chosen) > 1:
        values = {row["method"]: {name: row[name]["mean"] for name in _RADAR} for row in chosen}
        made.append(
            picture(learning_plots.radar(values, _RADAR), "Each axis runs from the worst of these to the best.")
        )
    if not results["settings"]["plot"]:
        return made
    first = {row["method"]: _first_cell(results, row) for row in rows}
    ranked = sorted(rows, key=lambda row: -row["probe"]["mean"])
    others = [BASELINE if BASELINE in first else "", *(row["method"] for row in ranked)]
    rival = next((name for name in others if name and name != best["method"]), None)
    if rival is not None:
        names = (best["method"], rival)
        maps = [(name, map_2d(load_vectors(output, first[name]))) for name in names]
        figure = embedding_maps(maps, first[best["method"]]["test_labels"])
        made.append(picture(figure, f"t-SNE of the test pieces: {' and '.join(names)}, first seed."))
    cell = first[best["method"]]
    figure = learning_plots.confusion_map(cell["confusion"], cell["classes"], f"{best['method']}, first seed")
    made.append(picture(figure, "What the probe calls the test pieces."))
    return made


def _first_cell(results: Mapping[str, Any], row: Mapping[str, Any]) -> Mapping[str, Any]:
    cells: list[Mapping[str, Any]] = results["cells"]
    return next(cell for cell in cells if cell["data"] == row["data"] and cell["method"] == row["method"])


def _interval(held: Mapping[str, Any], digits: int, scale: float = 1.0) -> str:
    mean = f"{scale * held['mean']:.{digits}f}"
    if held["low"] is None or held["n"] < LEAST_SEEDS:
        return mean
    return f"{mean} [{scale * held['low']:.{digits}f}, {scale * held['high']:.{digits}f}]"


def _number(value: float | None) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:.3g}"
