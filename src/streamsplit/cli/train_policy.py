"""`streamsplit train-policy`: trains the split policy by PPO on measured or generated links, for devices to load."""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

from streamsplit.cli.console import LOG_LEVELS, print_json, set_up_logging
from streamsplit.cli.evaluate_policy import Ticker, command_line, study_table
from streamsplit.encoders.factory import ENCODERS
from streamsplit.errors import ConfigError
from streamsplit.splitting.device import DEVICES

GENERATED_LINKS = 120
GENERATED_S = 300.0
HELD_OUT_EVERY = 8  # every eighth run is kept for choosing among checkpoints and seeds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--data", default="", help="folder with traces/ of measured drives (default: generated links)")
    parser.add_argument("--drives", type=int, nargs="+", default=[1, 2], help="drives to train on (default: 1 2)")
    parser.add_argument("--encoder", default="mobilenet", choices=ENCODERS)
    parser.add_argument("--table", help="cut table that `streamsplit profile` wrote (default: the packaged one)")
    parser.add_argument("--devices", nargs="+", help=f"device classes to train for, of {', '.join(DEVICES)}")
    parser.add_argument("--steps", type=int, default=1_000_000, help="environment steps a seed (default: 1000000)")
    parser.add_argument(
        "--lessons", type=int, default=160_000, help="windows learned from the oracle first (default: 160000)"
    )
    parser.add_argument("--seeds", type=int, default=1, help="trainings; the best is kept (default: 1)")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--objective", choices=("v2", "v1"), default="v2", help="reward of which paper (default: v2)")
    parser.add_argument("--stride-ms", type=float, default=500.0, help="from one window to the next (default: 500)")
    parser.add_argument("--version", type=int, default=1, help="number of the policy: devices take newer ones only")
    parser.add_argument("--output", type=Path, default=Path("policy.npz"), help="(default: policy.npz)")
    parser.add_argument("--output-dir", type=Path, help="curves as CSV and PNG (default: beside the policy)")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--log-level", default="WARNING", choices=LOG_LEVELS)


def run(args: argparse.Namespace) -> int:
    """Trains every seed, keeps the best on the held-out runs, writes policy, card and curves."""
    from streamsplit.evaluation.policy_plots import training_curve
    from streamsplit.evaluation.provenance import machine, revision_of_code
    from streamsplit.simulation.conditions import SimulationSettings
    from streamsplit.simulation.environment import EnvironmentSettings
    from streamsplit.simulation.load import recorded_loads
    from streamsplit.simulation.training import Point, Trained, TrainingSettings, train_policy
    from streamsplit.splitting.objective import V1_OBJECTIVE, ObjectiveSettings

    set_up_logging(args.log_level)
    if args.seeds < 1 or args.version < 1:
        raise ConfigError(f"got --seeds {args.seeds}, --version {args.version}; expected at least 1 of each")
    folder = args.output_dir or args.output.parent
    for needed in (folder, args.output.parent):  # before hours of training, not after them
        needed.mkdir(parents=True, exist_ok=True)
    objective = V1_OBJECTIVE if args.objective == "v1" else ObjectiveSettings()
    simulation = SimulationSettings(stride_ms=args.stride_ms, objective=objective)
    environment = EnvironmentSettings(simulation=simulation)
    if args.devices:
        environment = environment.replace(devices=tuple(args.devices))
    table = study_table(args.table, args.encoder, args.stride_ms)
    traces, held_out, material = _material(args)
    about = {
        "command": command_line("train-policy"), "code": revision_of_code(), "machine": machine(), "material": material,
        "traces": len(traces), "held_out": len(held_out), "time": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    best: tuple[float, int, Trained] | None = None
    curves: list[dict[str, Any]] = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        settings = TrainingSettings(environment=environment, steps=args.steps, lessons=args.lessons, seed=seed)
        with Ticker(f"training, seed {seed}") as tick:

            def seen(point: Point, number: int = seed, show: Any = tick.show) -> None:
                curves.append({"seed": number, **point._asdict()})
                text = f"held-out reward {point.held_out_reward:.3f}, entropy {point.entropy:.2f}"
                show(point.steps, max(args.steps, point.steps), text)

            trained = train_policy(
                table, traces, held_out, recorded_loads(), settings, about=about | {"seed": seed}, progress=seen
            )
        reward = max(point.held_out_reward for point in trained.curve)
        if best is None or reward > best[0]:
            best = (reward, seed, trained)
    assert best is not None  # at least one seed
    reward, seed, trained = best
    file = trained.file._replace(
        about=dict(trained.file.about) | {"held_out_reward": round(reward, 4), "seeds": args.seeds},
        version=args.version,
    )  # fmt: skip
    file.save(args.output)
    stem = folder / args.output.stem
    _write_curves(stem.with_name(f"{stem.name}-curve.csv"), curves)
    training_curve(curves).savefig(stem.with_name(f"{stem.name}-curve.png"), dpi=130)
    summary = {
        "policy": str(args.output), "bytes": args.output.stat().st_size, "seed": seed, "held_out_reward": reward,
        "starts_from": curves[0]["held_out_reward"], "actions": [str(cut) for cut in file.cuts],
        "curve": str(stem.with_name(f"{stem.name}-curve.csv")), "cpu_seconds": round(trained.seconds, 1),
    }  # fmt: skip
    if args.json:
        print_json(summary)
    else:
        print(json.dumps(summary, indent=1))
    return 0


def _material(args: argparse.Namespace) -> tuple[list[Any], list[Any], str]:
    """(training traces, held-out ones, where they come from). Held-out runs are of the training drives."""
    from streamsplit.network.drives import read_drives
    from streamsplit.network.trace import generate_trace

    if args.data:
        runs = read_drives(Path(args.data), tuple(args.drives))
        name = f"measured drives {', '.join(map(str, args.drives))}"
    else:
        runs = [generate_trace(GENERATED_S, seed) for seed in range(GENERATED_LINKS)]
        name = "generated links"
    held_out = runs[::HELD_OUT_EVERY]
    training = [run for index, run in enumerate(runs) if index % HELD_OUT_EVERY]
    if not training:
        raise ConfigError(f"got {len(runs)} runs to train on, expected at least 2")
    return training, held_out, name


def _write_curves(path: Path, curves: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(curves[0]))
        writer.writeheader()
        writer.writerows(curves)
