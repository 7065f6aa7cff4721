"""`streamsplit measure-latency`: how late an echo is heard, stage by stage."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from streamsplit.cli.console import print_json
from streamsplit.cli.edge import server_url
from streamsplit.cli.evaluate_policy import Ticker
from streamsplit.cli.settings_files import load_device_settings
from streamsplit.edge.settings import EdgeSettings
from streamsplit.errors import ConfigError

_SHOWN = ("mean", "p50", "p95", "p99")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--iterations", type=int, default=100, help="messages that are measured (default 100)")
    parser.add_argument("--message-ms", type=int, default=60, choices=(20, 40, 60), help="of sound (default 60)")
    parser.add_argument("--one-way-ms", type=float, default=20.0, help="delay of the shaped link (default 20)")
    parser.add_argument("--down-ms", type=float, help="its delay on the way back (default: the same)")
    parser.add_argument("--jitter-ms", type=float, default=0.0, help="its standard deviation (default 0)")
    parser.add_argument("--transport", choices=("websocket", "quic"), default="websocket")
    parser.add_argument(
        "--loss", type=float, default=0.0, metavar="%%", help="of packets each way, quic only (default 0)"
    )
    parser.add_argument("--server", metavar="URL", help="a server with dialogue.responder echo, in place of one here")
    parser.add_argument("--config", type=Path, help="YAML file of the device (section talk)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the result as JSON here")
    parser.add_argument("--plot", type=Path, help="draw the stages into this file (.png, .svg, .pdf)")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Measures, prints, writes."""
    if args.iterations < 10 or args.one_way_ms < 0 or args.jitter_ms < 0:
        raise ConfigError(
            f"got --iterations {args.iterations}, --one-way-ms {args.one_way_ms:g}, --jitter-ms {args.jitter_ms:g}; "
            "expected at least 10, 0 and 0"
        )
    if args.down_ms is not None and args.down_ms < 0:
        raise ConfigError(f"got --down-ms {args.down_ms:g}, expected at least 0")
    if not 0 <= args.loss < 100 or (args.loss and args.transport != "quic"):
        raise ConfigError(
            f"got --loss {args.loss:g} with --transport {args.transport}, expected 0 to below 100, and with quic only: "
            "TCP repeats what is lost"
        )
    from streamsplit.evaluation.talk_latency import measure

    settings = load_device_settings(args.config) if args.config else EdgeSettings()
    frames = max(1, round(args.message_ms / settings.talk.opus.frame_ms))
    lossy = settings.talk.lossy.replace(frames_per_message=frames)
    settings = settings.replace(talk=settings.talk.replace(frames_per_message=frames, lossy=lossy))
    with Ticker("measure-latency") as tick:
        found = measure(
            settings, args.iterations, url=None if args.server is None else server_url(args.server),
            transport=args.transport, one_way_ms=args.one_way_ms, down_ms=args.down_ms, jitter_ms=args.jitter_ms,
            loss=args.loss / 100.0, seed=args.seed,
            progress=lambda done, total: tick.show(done, total, "messages"),
        )  # fmt: skip
    found = {"command": _command(args), **found}
    if args.output is not None:
        args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if args.plot is not None:
        from streamsplit.evaluation.talk_plot import save_stages

        save_stages(found, args.plot)
    if args.json:
        print_json(found)
    else:
        _show(found)
    return 0


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"echo, messages of {found['message_ms']:g} ms ({found['codec']}), {found['frames']} frames, ms"
    )
    for name in ("stage", *_SHOWN, "aim"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    aims = found["aims_ms"]
    for name, values in [*found["stages"].items(), ("total", found["total"])]:
        aim = f"{aims[name]:.0f}" if values["p95"] < aims[name] else f"{aims[name]:.0f} missed"
        table.add_row(name, *_spread(values), aim)
        for part, inside in found["parts"].get(name, {}).items():
            table.add_row(f"  {part}", *_spread(inside), "", style="dim")
    least, most = (f"{found['bitrates'][name] / 1000:.0f}" for name in ("least_bps", "most_bps"))
    table.caption = (
        f"aims: the p95 stays below; {found['socket_bytes_s'] / 1000:.1f} kB/s up at "
        f"{least if least == most else f'{least} to {most}'} kbit/s; the client takes "
        f"{100 * found['client_cpu_share']:.1f} % of a core; clocks: {found['clocks']}"
    )
    Console(file=sys.stdout).print(table)


def _spread(values: dict[str, float]) -> list[str]:
    return [f"{values[key]:.1f}" for key in _SHOWN]


def _command(args: argparse.Namespace) -> str:
    given = {"iterations": args.iterations, "message-ms": args.message_ms, "one-way-ms": args.one_way_ms}
    more = (("down-ms", args.down_ms), ("jitter-ms", args.jitter_ms or None), ("loss", args.loss or None))
    given |= {name: value for name, value in more if value is not None}
    words = [word for name, value in given.items() for word in (f"--{name}", f"{value:g}")]
    return " ".join(["streamsplit measure-latency", *words, "--transport", args.transport])
