"""`streamsplit evaluate-policy`: every policy on every device class over links that none of them has seen."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamsplit.cli.console import LOG_LEVELS, console, is_terminal, print_json, set_up_logging
from streamsplit.encoders.factory import ENCODERS
from streamsplit.errors import ConfigError, CutError
from streamsplit.splitting.device import DEVICES

if TYPE_CHECKING:
    from streamsplit.splitting.table import CutTable

QUICK: dict[str, Any] = {"runs": 12, "generated": 8, "sensitivity_runs": 6}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--data", default="", help="folder with traces/ of measured drives (default: generated links)")
    parser.add_argument("--drives", type=int, nargs="+", default=[3], help="drives to test on (default: 3)")
    parser.add_argument("--runs", type=int, default=0, help="how many of their runs, evenly spread (default: all)")
    parser.add_argument("--encoder", default="mobilenet", choices=ENCODERS)
    parser.add_argument("--table", help="cut table that `streamsplit profile` wrote (default: the packaged one)")
    parser.add_argument("--policy", help="policy that `streamsplit train-policy` wrote (default: the packaged one)")
    parser.add_argument("--policies", nargs="+", help="which to compare (default: all)")
    parser.add_argument("--devices", nargs="+", help=f"device classes, of {', '.join(DEVICES)}")
    parser.add_argument("--seeds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--stride-ms", type=float, default=500.0, help="from one window to the next (default: 500)")
    parser.add_argument(
        "--max-quality-loss", type=float, default=1.0,
        help="leave out cuts whose accuracy is further below the whole encoder's, such as 0.01 (default: none)",
    )  # fmt: skip
    parser.add_argument("--objective", choices=("v2", "v1"), default="v2", help="reward of which paper (default: v2)")
    parser.add_argument("--output-dir", type=Path, help="(default: runs/<time>-policies)")
    parser.add_argument("--processes", type=int, default=2, help="(default: 2)")
    parser.add_argument("--quick", action="store_true", help="few runs and two seeds: to see that everything works")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.add_argument("--log-level", default="WARNING", choices=LOG_LEVELS)


def run(args: argparse.Namespace) -> int:
    """Runs the study, writes study.json and report.html, prints the table."""
    from streamsplit.evaluation.policy_report import write_policy_report
    from streamsplit.evaluation.policy_run import PolicyRunSettings, run_policy_study
    from streamsplit.evaluation.policy_study import StudySettings
    from streamsplit.simulation.conditions import SimulationSettings
    from streamsplit.splitting.objective import V1_OBJECTIVE, ObjectiveSettings

    set_up_logging(args.log_level)
    simulation = SimulationSettings(
        stride_ms=args.stride_ms, objective=V1_OBJECTIVE if args.objective == "v1" else ObjectiveSettings()
    )
    chosen: dict[str, Any] = {"seeds": 2 if args.quick else args.seeds, "processes": args.processes}
    chosen |= {"policies": tuple(args.policies)} if args.policies else {}
    chosen |= {"devices": tuple(args.devices)} if args.devices else {}
    study = StudySettings(simulation=simulation, **chosen)
    given = {"data": args.data, "drives": tuple(args.drives), "runs": args.runs}
    settings = PolicyRunSettings(study=study, **(given | (QUICK if args.quick else {})))
    table = study_table(args.table, args.encoder, args.stride_ms)
    table = _good_enough(table, args.max_quality_loss)
    policy = _policy(args, table)
    folder = args.output_dir or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-policies"
    folder.mkdir(parents=True, exist_ok=True)
    with Ticker("evaluating") as tick:
        about = {"max_quality_loss": args.max_quality_loss, "command": command_line("evaluate-policy")}
        found = run_policy_study(table, policy, settings, progress=tick.show, about=about)
    (folder / "study.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    report = write_policy_report(found, folder / "report.html")
    if args.json:
        shown = {name: found[name] for name in ("summary", "verdicts", "goals", "adaptation", "sensitivity", "meta")}
        print_json(shown | {"report": str(report), "study": str(folder / "study.json")})
    else:
        _show(found)
        print(f"\nreport: {report}")
    return 0


def _good_enough(table: CutTable, max_quality_loss: float) -> CutTable:
    """The rows that lose no more than this; raises CutError when none is left."""
    from streamsplit.splitting.constraints import Constraints, ConstraintSettings
    from streamsplit.splitting.observation import Observation

    mask = Constraints(ConstraintSettings(max_quality_loss=max_quality_loss), table).allowed(Observation())
    return table.only([row.cut for row, kept in zip(table.rows, mask, strict=True) if kept])


def study_table(path: str | None, encoder: str, stride_ms: float = 500.0) -> CutTable:
    """The table to study policies on, as of the machine it was measured on; raises CutError."""
    from streamsplit.evaluation.adaptation import table_at_stride
    from streamsplit.splitting.table import load_table, packaged_table

    table = load_table(path) if path else packaged_table(encoder)
    return table_at_stride(table, stride_ms)


def command_line(command: str) -> str:
    """The command as one would type it: paths by their last part, for the meta of what it writes."""
    words = sys.argv[1:] if sys.argv[1:2] == [command] else [command]
    return shlex.join(["streamsplit", *(Path(word).name if "/" in word else word for word in words)])


class Ticker:
    """Progress on stderr: a bar on a terminal, a line now and then otherwise."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Any = None
        self._task: Any = None
        self._told_s = 0.0

    def __enter__(self) -> Ticker:
        if is_terminal():
            from rich.progress import Progress

            self._bar = Progress(console=console(), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, total: int, text: str) -> None:
        """`done` of `total`, and what was last."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, description=text)
        elif time.monotonic() - self._told_s > 5.0 or done == total:
            self._told_s = time.monotonic()
            console().print(f"{self._what}: {done}/{total}  {text}", highlight=False)


def _policy(args: argparse.Namespace, table: CutTable) -> bytes:
    """The file's bytes, checked against the table; b"" where none is wanted, or none ships and none was named."""
    from streamsplit.evaluation.policy_run import read_policy_bytes
    from streamsplit.splitting.policy_file import packaged_policy, policy_from_bytes

    wanted = not args.policies or any(name.startswith("ppo") for name in args.policies)
    if args.policy:
        data = read_policy_bytes(args.policy)
        policy_from_bytes(data, args.policy).check_table(table)
        return data
    if not wanted:
        return b""
    try:
        file = packaged_policy(args.encoder)
    except CutError as error:
        if args.policies:
            raise ConfigError(str(error)) from None
        console().print(f"without a learned policy: {error}", highlight=False)
        return b""
    file.check_table(table)
    return file.to_bytes()


def _show(found: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    screen = Console()
    for device in found["settings"]["devices"]:
        material = f"{found['meta']['traces']} traces, {found['settings']['seeds']} seeds"
        view = Table(title=f"{device}: {material}; ms, accuracy lost in points", box=SIMPLE_HEAD, padding=0)
        for name in ("policy", "reward", "p50", "p95", "p99", "MB/h", "J/h", "loss", "late", "seen", "cuts/h"):
            view.add_column(name, justify="left" if name == "policy" else "right", no_wrap=name != "policy")
        for row in found["summary"]:
            if row["device"] == device:
                times = [("–" if row["latency_ms"][p] is None else f"{row['latency_ms'][p]:.0f}") for p in _PERCENTILES]
                view.add_row(
                    row["policy"] + (f" {row['cut']}" if row["cut"] else ""), f"{row['reward']['mean']:.3f}", *times,
                    f"{row['uplink_mb_per_h']:.2f}", f"{row['marginal_j_per_h']:.0f}",
                    f"{row['quality_loss_points']:.2f}", f"{row['deadline_misses']:.1%}", f"{row['seen']:.0%}",
                    f"{row['changes_per_h']:.0f}",
                )  # fmt: skip
        screen.print(view)
    for row in found["goals"]:
        print(", ".join(f"{name} {value}" for name, value in row.items()))


_PERCENTILES = ("p50", "p95", "p99")
