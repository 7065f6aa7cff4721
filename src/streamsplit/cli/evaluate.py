"""`streamsplit evaluate`: every way to learn an embedding, from the same start and budget, judged on the same sound."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamsplit.cli.console import LOG_LEVELS, print_json, set_up_logging
from streamsplit.cli.evaluate_policy import Ticker, command_line
from streamsplit.errors import ConfigError

if TYPE_CHECKING:
    from streamsplit.evaluation.baselines.base import Method
    from streamsplit.evaluation.corpus import Corpus
    from streamsplit.evaluation.grid import GridSettings

QUICK_BUDGET: dict[str, Any] = {
    "heard": 512, "windows": 960, "updates": 30, "converge_updates": 30, "server_batch": 64, "devices": 2
}  # fmt: skip

QUICK_SOUND: dict[str, Any] = {"scenes": 60, "stream_s": 240.0}
QUICK_THEORY_WINDOWS = 224


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--config", type=Path, help="YAML of methods, seeds and the budget")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--data", type=Path, help="prepared data, esc10/ and fsdd/, or <label>/<audio> (default: none)")
    where.add_argument("--audioset-path", type=Path, help="AudioSet: prepared data, or <label>/<audio>")
    where.add_argument("--ondevice-path", type=Path, help="recordings of devices: prepared data, or <label>/<audio>")
    parser.add_argument(
        "--model-path", metavar="NAME", help="an encoder to judge as one more row: a safetensors file, or 'default'"
    )
    parser.add_argument(
        "--start",
        metavar="NAME",
        help="published encoder that all methods which learn begin with: a file, or 'default'",
    )
    parser.add_argument(
        "--speakers", metavar="NAMES", help="of spoken digits, who is left out: names or 'all' (default: the last one)"
    )
    parser.add_argument("--output-dir", type=Path, default=Path("results"), help="(default: results)")
    parser.add_argument("--plot", action="store_true", help="t-SNE maps and the confusion matrix in the report too")
    parser.add_argument("--seeds", type=int, help="(default: 5, with --quick 1)")
    parser.add_argument("--methods", help="names, separated by commas (default: all)")
    parser.add_argument("--quick", action="store_true", help="few methods on synthetic sound, under three minutes")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.add_argument("--log-level", default="WARNING", choices=LOG_LEVELS)


def run(args: argparse.Namespace) -> int:
    """Runs the grid's missing cells, writes results.json, results.md and report.html, prints the table."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    from streamsplit.evaluation.grid import as_heard, plain, run_grid
    from streamsplit.evaluation.learning_markdown import results_markdown
    from streamsplit.evaluation.learning_report import FIGURES, paired_rows, summarise, write_learning_report
    from streamsplit.evaluation.provenance import machine, revision_of_code
    from streamsplit.evaluation.speakers import speaker_groups, speaker_means
    from streamsplit.evaluation.theory_study import HEARD_WINDOWS, kept_study

    set_up_logging(args.log_level)
    torch.set_num_threads(1)
    settings = grid_settings(args)
    start, extra = settings.budget.start_about, _given(args.model_path)
    corpora = load_corpora(args)
    with Ticker("evaluating") as tick:
        cells = run_grid(corpora, settings, args.output_dir, extra=extra, progress=tick.show)
        theory = {}
        heard = QUICK_THEORY_WINDOWS if args.quick else HEARD_WINDOWS
        for corpus in as_heard(corpora, settings):
            tick.show(len(cells), len(cells), f"{corpus.name}: theory")
            theory[corpus.name] = kept_study(corpus, args.output_dir / "studies", heard=heard)
    results = plain(
        {
            "settings": settings.as_dict() | {"plot": args.plot}, "data": [_about(corpus) for corpus in corpora],
            "start": start, "summary": summarise(cells),
            "speakers": {name: speaker_means(cells, data, FIGURES) for name, data in speaker_groups(corpora).items()},
            "paired": paired_rows(cells), "cells": cells,
            "theory": {name: study.as_dict() for name, study in theory.items()},
            "meta": {
                "command": command_line("evaluate"), "code": revision_of_code(), "machine": machine(),
                "cells_code": sorted({cell["code"] for cell in cells}), "digest": settings.digest,
                "cpu_s": sum(cell["cpu_s"] for cell in cells),
            },
        }
    )  # fmt: skip
    path = args.output_dir / "results.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    report = write_learning_report(results, args.output_dir, theory)
    (args.output_dir / "results.md").write_text(results_markdown(results) + "\n", encoding="utf-8")
    if args.json:
        shown = {name: results[name] for name in ("start", "summary", "speakers", "paired", "meta")}
        print_json(shown | {"report": str(report), "results": str(path)})
    else:
        _show(results)
        print(f"\nreport: {report}")
    return 0


def grid_settings(args: argparse.Namespace) -> GridSettings:
    """What is compared: the file's settings, or those of --quick, with what the options change; ConfigError."""
    from streamsplit.config import load_settings
    from streamsplit.evaluation.baselines.base import Budget
    from streamsplit.evaluation.baselines.catalogue import QUICK
    from streamsplit.evaluation.grid import GridSettings

    if args.quick and args.config:
        raise ConfigError("got --quick and --config, expected one of them: --quick has settings of its own")
    settings = load_settings(args.config, GridSettings) if args.config else GridSettings()
    if args.quick:
        settings = GridSettings(methods=QUICK, seeds=1, budget=Budget(**QUICK_BUDGET))
    changes: dict[str, Any] = {}
    if args.seeds is not None:
        changes["seeds"] = args.seeds
    if args.start is not None:
        changes["budget"] = settings.budget.replace(start=args.start)
    if args.methods:
        changes["methods"] = tuple(dict.fromkeys(name.strip() for name in args.methods.split(",") if name.strip()))
    return settings.replace(**changes)


def load_corpora(args: argparse.Namespace) -> list[Corpus]:
    """The sound to learn from and to be judged on; AudioError or ConfigError."""
    from streamsplit.evaluation.corpus import (
        digits_corpus,
        esc10_corpus,
        folder_corpus,
        prepared_corpus,
        synthetic_corpus,
    )
    from streamsplit.evaluation.data.manifest import is_prepared
    from streamsplit.evaluation.speakers import digits_by_speaker, prepared_by_speaker, speaker_folds

    speakers = [name.strip() for name in (args.speakers or "").split(",") if name.strip()]
    root = args.data or args.audioset_path or args.ondevice_path
    if root is None:
        if speakers:
            raise ConfigError("got --speakers without data, expected --data with spoken digits")
        return [synthetic_corpus(**(QUICK_SOUND if args.quick else {}))]
    if not root.is_dir():
        raise ConfigError(f"{root}: there is no such folder; give one with <label>/<audio>, or with esc10/ and fsdd/")
    if not is_prepared(root):
        refuse_unprepared(root)
    folders = [root] if is_prepared(root) else sorted(path for path in root.iterdir() if path.is_dir())
    found: list[Corpus] = []
    digits: list[Corpus] = []
    for folder in filter(is_prepared, folders):
        if speakers and speaker_folds(folder):
            digits += prepared_by_speaker(folder, speakers)
        else:
            found.append(prepared_corpus(folder))
    if root / "esc10" in folders:
        found.append(esc10_corpus(root / "esc10"))
    if root / "fsdd" in folders:
        digits += digits_by_speaker(root / "fsdd", speakers) if speakers else [digits_corpus(root / "fsdd")]
    if speakers and not digits:
        raise ConfigError(f"{root}: got --speakers, expected spoken digits in it: fsdd/, or prepared ones")
    return found + digits or [folder_corpus(root)]


def refuse_unprepared(root: Path) -> None:
    """Raises ConfigError for a folder whose labels are in a table, which `streamsplit data prepare` reads."""
    from streamsplit.evaluation.data.audioset import find_segments
    from streamsplit.evaluation.data.folder import ESC_META
    from streamsplit.evaluation.data.ondevice import find_annotations

    tables = {"audioset": (find_segments, "AudioSet's list of segments"), "ondevice": (find_annotations, "labels")}
    found = {"esc": "/".join(ESC_META)} if root.joinpath(*ESC_META).is_file() else {}
    for kind, (find, what) in tables.items():
        try:
            path = find(root)
        except ConfigError as error:  # several such tables: which one is said when the data are prepared
            found[kind] = str(error)
        else:
            if path is not None:
                found[kind] = f"{what} in {path.name}"
    for kind, what in found.items():
        words = ["streamsplit", "data", "prepare", str(root), "--kind", kind, "--output", f"{root.resolve().name}-set"]
        raise ConfigError(f"{root}: got {what}, expected prepared data; run `{shlex.join(words)}` and give that folder")


def _given(name: str | None) -> list[Method]:
    from streamsplit.evaluation.baselines.checkpoint import GivenEncoder
    from streamsplit.weights.pretrained import pretrained_file

    return [] if name is None else [GivenEncoder(pretrained_file(name))]


def _about(corpus: Corpus) -> dict[str, Any]:
    from streamsplit.evaluation.retrieval import possible_precision

    most = possible_precision(corpus.test.labels, 10, groups=corpus.test.recordings)
    return {
        "name": corpus.name, "held_out": corpus.held_out, "classes": len(corpus.classes),
        "learn_windows": len(corpus.learn.windows), "learn_pieces": len(corpus.learn.labels),
        "train_pieces": len(corpus.train.labels), "test_pieces": len(corpus.test.labels),
        "precision_at_10_possible": most, "fingerprint": corpus.fingerprint, "notes": list(corpus.notes),
    }  # fmt: skip


def _show(results: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    screen = Console()
    for data in results["data"]:
        start = f", from {results['start']}" if results["start"] else ""
        view = Table(title=f"{data['name']}: {data['held_out']} held out{start}", box=SIMPLE_HEAD, padding=0)
        for name in ("method", "probe", "±", "P@10", "silh.", "rank", "MB/h up", "sent", "CPU s"):
            view.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
        for row in [row for row in results["summary"] if row["data"] == data["name"]]:
            probe = row["probe"]
            half = "–" if probe["low"] is None else f"{(probe['high'] - probe['low']) / 2:.3f}"
            view.add_row(
                row["method"], f"{probe['mean']:.3f}", half, f"{row['precision_at_10']['mean']:.3f}",
                f"{row['silhouette']['mean']:+.3f}", f"{row['effective_rank']['mean']:.0f}",
                f"{row['uplink_mb_per_h']:.1f}", f"{row['share_sent']:.0%}", f"{row['cpu_s']:.0f}",
            )  # fmt: skip
        screen.print(view)
