"""`streamsplit profile`: measures the cut table of this machine, or of a device emulated by its factor."""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamsplit.cli.console import LOG_LEVELS, console, is_terminal, print_json, set_up_logging
from streamsplit.encoders.factory import ENCODERS, EncoderSettings, make_encoder
from streamsplit.errors import ConfigError
from streamsplit.splitting.device import DEVICES, RADIOS, device_profile

if TYPE_CHECKING:
    from streamsplit.audio.windows import Window
    from streamsplit.encoders.base import SplitEncoder
    from streamsplit.splitting.table import CutTable

FIT_WINDOWS = 256  # the encoder's readout is fitted to this many first, as a fleet's is
BOTTLENECK_STEPS = 100  # of Adam, on FIT_WINDOWS windows after those that are measured
FEWEST_FIT_WINDOWS = 16  # for a bottleneck


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--device", default="host", help=f"row of the device table: {', '.join(DEVICES)}")
    parser.add_argument("--factor", type=float, help="how much slower than this machine, in place of the row's factor")
    parser.add_argument("--radio", choices=sorted(RADIOS), help="link of the energy model (default: the device's)")
    parser.add_argument("--encoder", default="mobilenet", choices=ENCODERS)
    parser.add_argument("--width", type=float, default=0.75, help="channel multiplier of mobilenet")
    parser.add_argument("--embedding-dim", type=int, default=128)
    parser.add_argument("--source", type=Path, help="an audio file to profile on (default: a synthetic soundscape)")
    parser.add_argument("--windows", type=int, default=60, help="windows that take turns (default 60)")
    parser.add_argument("--repeats", type=int, default=60, help="timed calls per cut; the median counts (default 60)")
    parser.add_argument(
        "--bottleneck", type=int, action="append", default=[], metavar="K",
        help=f"fit a bottleneck of a quarter of the channels after block K ({BOTTLENECK_STEPS} steps) and show its "
        "K:int8 beside the table; may be repeated",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the table here, for splitting.table of an edge config")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    parser.add_argument("--log-level", default="WARNING", choices=LOG_LEVELS)


def run(args: argparse.Namespace) -> int:
    """Measures, prints, and writes the table where asked."""
    set_up_logging(args.log_level)
    if args.windows < 2 or args.repeats < 1:
        raise ConfigError(f"got --windows {args.windows}, --repeats {args.repeats}; expected at least 2 and 1")
    device = device_profile(args.device, factor=args.factor, radio=args.radio)
    settings = EncoderSettings(name=args.encoder, width=args.width, embedding_dim=args.embedding_dim, seed=args.seed)
    encoder = make_encoder(settings)
    windows = _windows(args)
    _fit(encoder, windows[: max(args.windows, FIT_WINDOWS)], args.seed)
    fitted = windows[args.windows + 1 :]  # shares no sound with those that are measured
    _fit_bottlenecks(args, encoder, fitted)
    table = _measure(args, encoder, device, windows[: args.windows])
    meta = {"command": _command(args), "machine": _machine(), "encoder": settings.as_dict(), **table.meta}
    if args.bottleneck:
        meta["bottleneck_fit"] = {"steps": BOTTLENECK_STEPS, "windows": len(fitted), "measured_on_other_windows": True}
    table = table._replace(meta=meta)
    if args.output is not None:
        table.save(args.output)
    if args.json:
        print_json(table.as_dict())
    else:
        _show(table)
        if args.output is not None:
            print(f"written to {args.output}")
    return 0


def _windows(args: argparse.Namespace) -> list[Window]:
    from streamsplit.audio.windows import WindowStream

    count = args.windows + 1 + FIT_WINDOWS if args.bottleneck else max(args.windows, FIT_WINDOWS)
    stream = WindowStream()
    stride = stream.windows.stride_frames * stream.settings.hop_samples
    needed = stream.settings.span(stream.windows.length_frames) + (count - 1) * stride
    if args.source is None:
        from streamsplit.audio.synth import Soundscape

        return stream.push(Soundscape(args.seed).read(needed))
    from streamsplit.audio.files import read_audio

    windows = stream.push(read_audio(args.source, stream.settings.sample_rate_hz)[:needed])
    if len(windows) < 2:
        raise ConfigError(f"{args.source}: got {len(windows)} whole windows, expected at least 2 (1.5 s of sound)")
    return windows


def _fit(encoder: SplitEncoder, windows: list[Window], seed: int) -> None:
    import numpy as np

    from streamsplit.encoders.projection import fit_exits, fit_projection, fit_reduced

    features = np.stack([window.features for window in windows])
    fit_projection(encoder, features, seed)
    fit_exits(encoder, features)
    fit_reduced(encoder, features)


def _fit_bottlenecks(args: argparse.Namespace, encoder: SplitEncoder, windows: list[Window]) -> None:
    """Registers what --bottleneck asks for, fitted on windows that are not measured afterwards."""
    import numpy as np

    from streamsplit.encoders.bottleneck import fit_bottleneck

    last = encoder.num_blocks - 1
    for block in args.bottleneck:
        if not 0 < block <= last:
            raise ConfigError(f"'--bottleneck': got block {block}, expected 1..{last} for {encoder.name}")
    if args.bottleneck and len(windows) < FEWEST_FIT_WINDOWS:
        raise ConfigError(
            f"'--bottleneck': got {len(windows)} windows besides the {args.windows} that are measured, expected at "
            f"least {FEWEST_FIT_WINDOWS} to fit it to; give a longer --source or fewer --windows"
        )
    for block in sorted(set(args.bottleneck)):
        features = np.stack([window.features for window in windows])
        fit_bottleneck(encoder, block, features, BOTTLENECK_STEPS, seed=args.seed)


def _measure(args: argparse.Namespace, encoder: SplitEncoder, device: Any, windows: list[Window]) -> CutTable:
    from streamsplit.splitting.profile import profile_encoder

    if args.json or not is_terminal():
        return profile_encoder(encoder, device, windows, args.repeats)
    from rich.progress import Progress

    with Progress(console=console(), transient=True) as bar:
        task = bar.add_task("measuring cuts", total=None)
        return profile_encoder(
            encoder, device, windows, args.repeats,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip


def _show(table: CutTable) -> None:
    from rich.console import Console
    from rich.table import Table

    view = Table(title=f"{table.encoder} on {table.device} (factor {table.factor:g}), per window")
    for name in ("cut", "edge ms", "server ms", "bytes", "energy mJ", "agreement"):
        view.add_column(name, justify="left" if name == "cut" else "right")
    for row in table.rows:
        view.add_row(
            str(row.cut), f"{row.edge_ms:.2f}", f"{row.server_ms:.2f}", f"{row.payload_bytes:.0f}",
            f"{row.energy_mj:.2f}", f"{row.agreement:.4f}",
        )  # fmt: skip
    narrowed = table.meta.get("bottlenecks", [])
    for values in narrowed:
        view.add_row(
            f"{values['cut']} *", f"{values['edge_ms']:.2f}", f"{values['server_ms']:.2f}",
            f"{values['payload_bytes']:.0f}", f"{values['energy_mj']:.2f}", f"{values['agreement']:.4f}",
        )  # fmt: skip
    if narrowed:
        view.caption = "* through a bottleneck; in the table's meta, not among the cuts that policies choose from"
    Console(file=sys.stdout).print(view)


def _command(args: argparse.Namespace) -> str:
    words = ["streamsplit", "profile", "--device", args.device, "--encoder", args.encoder]
    for name, default in (
        ("factor", None), ("radio", None), ("width", 0.75), ("embedding_dim", 128), ("source", None), ("windows", 60),
        ("repeats", 60), ("seed", 0),
    ):  # fmt: skip
        value = getattr(args, name)
        if value != default:
            words += [f"--{name.replace('_', '-')}", value.name if isinstance(value, Path) else str(value)]
    for block in args.bottleneck:
        words += ["--bottleneck", str(block)]
    return shlex.join(words)


def _machine() -> dict[str, Any]:
    """The machine, as far as a reader of the numbers needs it; no host name."""
    import os

    import torch

    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:  # not Linux: platform's name has to do
        pass
    return {
        "processor": model, "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(), "torch": torch.__version__,
    }  # fmt: skip
