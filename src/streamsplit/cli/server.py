"""`streamsplit server`: runs the server, or checks its settings (`server validate FILE`)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamsplit.cli.console import LOG_LEVELS, console, is_terminal, print_json, set_up_logging
from streamsplit.cli.settings_files import load_server_settings
from streamsplit.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from streamsplit.server.settings import ServerSettings

SHOWN_DEVICES = 20
COLUMNS = ("device", "link", "cut", "sent", "kept", "up", "ms p50/95", "nats", "label")  # fits 80 characters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options, and the action 'validate'."""
    parser.add_argument("--config", type=Path, help="YAML file (see configs/server.yaml); default settings without one")
    parser.add_argument("--port", type=int, help="listen here (0: any free port)")
    parser.add_argument("--log-level", choices=LOG_LEVELS)
    parser.add_argument(
        "--pretrained", nargs="?", const="default", metavar="NAME",
        help="a new data folder starts from a published encoder: the packaged one, another's name, or a file",
    )  # fmt: skip
    device = parser.add_mutually_exclusive_group()
    device.add_argument("--gpu", action="store_true", help="compute on CUDA; an error where there is none")
    device.add_argument("--cpu-only", action="store_true", help="never use a GPU")
    parser.add_argument(
        "--json", action="store_true", help="a line of JSON on stdout when ready, every --interval and at the end"
    )
    parser.add_argument("--interval", type=float, default=2.0, metavar="S", help="between updates (default 2)")
    actions = parser.add_subparsers(dest="action", metavar="[validate FILE]", title="actions")
    validate = actions.add_parser("validate", help="check a settings file and say what is wrong with it")
    validate.add_argument("file", type=Path)
    validate.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="the answer as a line of JSON on stdout"
    )


def run(args: argparse.Namespace) -> int:
    """Serves until Ctrl-C or SIGTERM: the end is in order then, and the code 0."""
    from streamsplit.server.settings import ServerSettings

    if args.action == "validate":
        return _validate(args.file, as_json=args.json)
    settings = load_server_settings(args.config) if args.config else ServerSettings()
    settings = overridden(settings, args)
    set_up_logging(settings.server.log_level)
    if args.gpu:
        _require_cuda()
    from streamsplit.server.run import run_server

    status = _StatusView(settings, args.interval, as_json=args.json)
    try:
        run_server(settings, on_ready=status.start, on_end=status.end, on_quic=status.quic)
    finally:
        status.stop()
    return 0


def _validate(path: Path, *, as_json: bool) -> int:
    """Says whether the file is good; what is wrong goes to stderr as for any command, and into the JSON."""
    try:
        settings = load_server_settings(path)
        if settings.policy.file:
            from streamsplit.server.policy_shelf import check_policy_settings

            check_policy_settings(settings.policy, settings.encoder.name)
    except ConfigError as error:
        if as_json:
            print_json({"file": str(path), "good": False, "problem": str(error)})
        raise
    if as_json:
        print_json({"file": str(path), "good": True, "problem": None})
    else:
        print(f"{path}: good")
    return 0


def overridden(settings: ServerSettings, args: argparse.Namespace) -> ServerSettings:
    """The settings with what the command line says in place of the file."""
    changes: dict[str, Any] = {}
    if args.port is not None:
        changes["port"] = args.port
    if args.log_level is not None:
        changes["log_level"] = args.log_level
    device = "cuda" if args.gpu else "cpu" if args.cpu_only else settings.device
    encoder = settings.encoder if args.pretrained is None else settings.encoder.starting_from(args.pretrained)
    return settings.replace(device=device, server=dataclasses.replace(settings.server, **changes), encoder=encoder)


def _require_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        raise ConfigError("'--gpu': CUDA is not available here; leave the option out, or use --cpu-only")


class _StatusView:
    """Asks the running server for its status, as any page would, and shows it: a live table, or lines of JSON."""

    def __init__(self, settings: ServerSettings, interval_s: float, *, as_json: bool) -> None:
        self._token = settings.auth.api_token
        self._interval_s = max(interval_s, 0.1)
        self._as_json = as_json
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._quic: dict[str, Any] = {}

    def quic(self, port: int, fingerprint: str) -> None:
        """Called before `start` where devices can connect over QUIC, too."""
        self._quic = {"port": port, "fingerprint": fingerprint}

    def start(self, address: str, port: int) -> None:
        """Called when devices can connect."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
        base = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        if self._as_json:
            ready = {"event": "ready", "address": address, "port": port, "page": f"{base}/"}
            print_json({**ready, **({"quic": self._quic} if self._quic else {})})
        elif is_terminal():
            console().print(f"devices connect to ws://{address}:{port}/v1/stream, live page at {base}/")
            if self._quic:
                fingerprint = self._quic["fingerprint"]
                console().print(f"or to quic://{address}:{self._quic['port']} with --fingerprint {fingerprint}")
        if self._as_json or is_terminal():
            self._thread = threading.Thread(target=self._watch, args=(base,), name="status", daemon=True)
            self._thread.start()

    def end(self, status: dict[str, Any]) -> None:
        """Called when everything that was accepted is done: its status is the last that a reader of JSON sees."""
        self.stop()
        if self._as_json:
            print_json({"event": "status", **status})

    def stop(self) -> None:
        """Ends the display; harmless when it never started."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _watch(self, base: str) -> None:
        if self._as_json:
            while not self._stop.wait(self._interval_s):
                status = self._ask(base)
                if status is not None:
                    print_json({"event": "status", **status})
            return
        from rich.live import Live

        with Live(console=console(), auto_refresh=False, transient=True) as live:
            while not self._stop.wait(self._interval_s):
                status = self._ask(base)
                if status is not None:
                    live.update(status_table(status), refresh=True)

    def _ask(self, base: str) -> dict[str, Any] | None:
        """The status, or None while the server is too busy or about to end: the next look will tell."""
        request = urllib.request.Request(f"{base}/api/status")
        if self._token:
            request.add_header("Authorization", f"Bearer {self._token}")
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                status: dict[str, Any] = json.load(answer)
                return status
        except (urllib.error.URLError, OSError, ValueError):
            return None


def status_table(status: dict[str, Any]) -> Table:
    """The live table of what /api/status says."""
    from rich.table import Table

    totals, refiner = status["totals"], status["refiner"]
    table = Table(
        title=f"{totals['devices_connected']} of {totals['devices']} devices connected, {totals['windows']} windows",
        padding=(0, 0),
        pad_edge=False,
        caption=(
            f"revision {status['revision'][:8]}, refiner {refiner['state']} (step {refiner['steps']}, "
            f"loss {_number(refiner['loss'], '.3f')}), up {status['uptime_s']:.0f} s"
        ),
    )
    for column in COLUMNS:
        table.add_column(column, no_wrap=True)
    for device in status["devices"][:SHOWN_DEVICES]:
        latency = device["latency_ms"]
        table.add_row(
            device["device"], "up" if device["connected"] else "down", device["cut"], str(device["windows"]),
            str(device["skipped"]), f"{device['uplink_bytes'] / 1e3:.1f} kB",
            f"{_number(latency['p50'], '.0f')}/{_number(latency['p95'], '.0f')}",
            _number(device["uncertainty"], ".2f"), device["label"],
        )  # fmt: skip
    hidden = len(status["devices"]) - SHOWN_DEVICES
    if hidden > 0:
        table.add_row(f"... {hidden} more")
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
