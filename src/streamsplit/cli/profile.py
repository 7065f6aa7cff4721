"""`streamsplit profile`: measures the cut table of this machine, or of a device emulated by its factor."""

from __future__ import annotations

import argparse
import math
import platform
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamsplit.cli.console import LOG_LEVELS, console, is_terminal, print_json, set_up_logging
from streamsplit.encoders.factory import ENCODERS, EncoderSettings, make_encoder
from streamsplit.errors import ConfigError, CutError
from streamsplit.splitting.cut import Cut, all_cuts
from streamsplit.splitting.device import DEVICES, RADIOS, DeviceProfile, device_profile
from streamsplit.splitting.table import load_table

if TYPE_CHECKING:
    from streamsplit.audio.windows import Window
    from streamsplit.encoders.base import SplitEncoder
    from streamsplit.splitting.quality import Material, Quality
    from streamsplit.splitting.table import CutTable

FIT_WINDOWS = 256  # projection, exits and bottlenecks are fitted to this many first, as a fleet's are
PRIVACY_WINDOWS = 200  # that a decoder learns from, and at most as many that it is tested on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--device", default="host", help=f"row of the device table: {', '.join(DEVICES)}")
    parser.add_argument("--factor", type=float, help="how much slower than this machine, in place of the row's factor")
    parser.add_argument(
        "--reference-ms", type=float, metavar="MS",
        help="scale all times as if the uncut encoder took this long here; for a busy machine, or one that is not the "
        "EPYC core which device factors are against",
    )  # fmt: skip
    parser.add_argument("--radio", choices=sorted(RADIOS), help="link of the energy model (default: the device's)")
    parser.add_argument("--encoder", default="mobilenet", choices=ENCODERS)
    parser.add_argument("--width", type=float, default=0.75, help="channel multiplier of mobilenet")
    parser.add_argument("--embedding-dim", type=int, default=128)
    parser.add_argument("--source", type=Path, help="an audio file to profile on (default: a synthetic soundscape)")
    parser.add_argument("--windows", type=int, default=60, help="windows that take turns (default 60)")
    parser.add_argument("--repeats", type=int, default=60, help="timed calls per cut; the median counts (default 60)")
    parser.add_argument(
        "--bottleneck", type=int, action="append", metavar="K",
        help="a block whose map can cross narrowed to a quarter of its channels, in place of the encoder's own choice "
        "(encoder.bottlenecks); may be repeated",
    )  # fmt: skip
    parser.add_argument("--data", type=Path, help="judge cuts on labelled recordings, <folder>/<label>/<audio file>")
    parser.add_argument(
        "--quality-from", type=Path, metavar="TABLE",
        help="keep agreement, accuracy and risk of a table of the same encoder, and measure costs alone",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="costs and agreement only: no accuracy, no privacy risk")
    parser.add_argument(
        "--only", type=Cut.parse, action="append", metavar="CUT",
        help="measure this cut alone, such as 0:tinystream; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--into",
        type=Path,
        metavar="TABLE",
        help="put what is measured into this table, in place of its rows of the same cuts",
    )
    parser.add_argument("--plot", type=Path, help="draw the table into this file (.png, .svg, .pdf)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the table here, for splitting.table of an edge config")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    parser.add_argument("--log-level", default="WARNING", choices=LOG_LEVELS)


def run(args: argparse.Namespace) -> int:
    """Measures, prints, and writes the table where asked."""
    set_up_logging(args.log_level)
    if args.windows < 2 or args.repeats < 1:
        raise ConfigError(f"got --windows {args.windows}, --repeats {args.repeats}; expected at least 2 and 1")
    if args.reference_ms is not None and not args.reference_ms > 0:
        raise ConfigError(f"'--reference-ms': got {args.reference_ms:g}, expected more than 0")
    chosen = [name for name in ("--quick", "--data", "--quality-from") if getattr(args, name[2:].replace("-", "_"))]
    if len(chosen) > 1:
        raise ConfigError(f"got {' and '.join(chosen)}: each says where quality comes from; give one of them")
    device = device_profile(args.device, factor=args.factor, radio=args.radio)
    settings = EncoderSettings(
        name=args.encoder, width=args.width, embedding_dim=args.embedding_dim, seed=args.seed,
        bottlenecks=tuple(args.bottleneck) if args.bottleneck else None,
    )  # fmt: skip
    earlier = None if args.into is None else load_table(args.into).check_encoder(settings)
    encoder = make_encoder(settings)
    windows = _windows(args)
    quality = None if args.quality_from is None else _quality(args.quality_from, settings, args.only or [])
    material, probe = _material(args)
    fit_to = np.stack([window.features for window in windows]) if material is None else material.train
    rows = np.random.default_rng(args.seed).permutation(len(fit_to))[: max(FIT_WINDOWS, args.windows)]
    _fit(encoder, fit_to[np.sort(rows)], args.seed)
    table = _measure(args, encoder, device, windows[: args.windows], fit_to, material, probe, quality)
    meta = {
        "command": _command(args), "seed": args.seed, "machine": _machine(),
        "encoder": {**settings.as_dict(), "bottlenecks": list(settings.bottleneck_blocks)}, **table.meta,
    }  # fmt: skip
    table = table._replace(meta=meta)
    if earlier is not None:
        table = earlier.joined(table)
    if args.output is not None:
        table.save(args.output)
    if args.plot is not None:
        from streamsplit.evaluation.cut_plot import save_plot

        save_plot(table, args.plot)
    if args.json:
        print_json(table.as_dict())
    else:
        _show(table)
        for path in filter(None, (args.output, args.plot)):
            print(f"written to {path}")
    return 0


def _windows(args: argparse.Namespace) -> list[Window]:
    from streamsplit.audio.windows import WindowStream

    count = max(args.windows, FIT_WINDOWS)
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


def _material(args: argparse.Namespace) -> tuple[Material | None, Any]:
    """Labelled sound, and the maker of its probe; none where neither is wanted."""
    if args.quick or args.quality_from is not None:
        return None, None
    from streamsplit.evaluation.cut_material import folder_material, synthetic_material

    return synthetic_material(args.seed) if args.data is None else folder_material(args.data, args.seed)


def _quality(path: Path, settings: EncoderSettings, only: list[Cut]) -> Quality:
    """The quality in a table of this encoder; raises CutError."""
    from streamsplit.splitting.quality import quality_of

    table = load_table(path)
    wanted = only or all_cuts(table.num_blocks, settings.bottleneck_blocks)
    missing = sorted(set(wanted) - set(table.cuts))
    try:
        table.check_encoder(settings)
        if missing:
            raise CutError(f"got a table without {missing[0]}, expected one with every cut to be measured")
        quality = quality_of(table)
    except CutError as error:
        raise CutError(f"{path}: {error}") from None
    quality.meta.setdefault("command", table.meta.get("command", ""))
    return quality


def _fit(encoder: SplitEncoder, features: np.ndarray, seed: int) -> None:
    from streamsplit.encoders.bottleneck import fit_bottlenecks
    from streamsplit.encoders.projection import fit_exits, fit_projection, fit_reduced

    fit_projection(encoder, features, seed)
    fit_exits(encoder, features)
    fit_reduced(encoder, features)
    fit_bottlenecks(encoder, features)


def _measure(
    args: argparse.Namespace,
    encoder: SplitEncoder,
    device: DeviceProfile,
    windows: list[Window],
    heard: np.ndarray,
    material: Material | None,
    probe: Any,
    quality: Quality | None,
) -> CutTable:
    """The table; how sure an exit is, a memory tells that has heard `heard` [n, f, t], as a device's has."""
    from streamsplit.learning.mixture import GaussianMixture
    from streamsplit.splitting.profile import embed, profile_encoder

    mixture = GaussianMixture(dim=encoder.embedding_dim, seed=args.seed)
    mixture.observe_batch(embed(encoder, heard))
    measure = partial(
        profile_encoder, encoder, device, windows, args.repeats, uncertainty=mixture.entropy, material=material,
        probe=probe, privacy_windows=PRIVACY_WINDOWS, seed=args.seed, quality=quality,
        reference_ms=args.reference_ms, only=args.only or (),
    )  # fmt: skip
    if args.json or not is_terminal():
        return measure()
    from rich.progress import Progress

    with Progress(console=console(), transient=True) as bar:
        task = bar.add_task("measuring cuts", total=None)
        return measure(progress=lambda done, total: bar.update(task, completed=done, total=total))


def _show(table: CutTable) -> None:
    from rich.console import Console
    from rich.table import Table

    view = Table(title=f"{table.encoder} on {table.device} (factor {table.factor:g}), per window")
    names = ("cut", "edge ms", "server ms", "bytes", "energy mJ", "agreement", "accuracy", "privacy risk", "fetch kB")
    for name in names:
        view.add_column(name, justify="left" if name == "cut" else "right")
    for row in table.rows:
        view.add_row(
            str(row.cut), f"{row.edge_ms:.2f}", f"{row.server_ms:.2f}", f"{row.payload_bytes:.0f}",
            f"{row.energy_mj:.2f}", f"{row.agreement:.4f}", _share(row.accuracy), _share(row.privacy_risk),
            f"{row.fetch_bytes / 1000:.0f}",
        )  # fmt: skip
    quality = table.meta.get("quality")
    if quality is not None and "full_accuracy" in quality:
        view.caption = (
            f"accuracy of a probe that learned on the full path: {quality['full_accuracy']:.3f} +- "
            f"{quality['full_accuracy_standard_error']:.3f} there, differences to it +- at most "
            f"{quality['largest_standard_error_of_a_difference']:.3f}; {quality['material']}"
        )
    Console(file=sys.stdout).print(view)


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _command(args: argparse.Namespace) -> str:
    words = ["streamsplit", "profile", "--device", args.device, "--encoder", args.encoder]
    for name, default in (
        ("factor", None), ("radio", None), ("width", 0.75), ("embedding_dim", 128), ("source", None), ("windows", 60),
        ("repeats", 60), ("seed", 0), ("data", None), ("quality_from", None), ("reference_ms", None),
    ):  # fmt: skip
        value = getattr(args, name)
        if value != default:
            words += [f"--{name.replace('_', '-')}", value.name if isinstance(value, Path) else str(value)]
    if args.quick:
        words.append("--quick")
    for cut in args.only or ():
        words += ["--only", str(cut)]
    if args.into is not None:
        words += ["--into", args.into.name]
    for block in sorted(set(args.bottleneck or ())):
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
        "python": platform.python_version(), "torch": torch.__version__, "load_average": _load(),
    }  # fmt: skip


def _load() -> list[float] | None:
    """How busy the machine was at the end, over 1, 5 and 15 minutes; None where the system does not tell."""
    import os

    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
