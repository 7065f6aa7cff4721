"""`streamsplit simulate-network`: a link's figures, its trace as files and picture, and live traffic shaped by it."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamsplit.cli.console import console, is_terminal, print_json, set_up_logging
from streamsplit.config import nearest
from streamsplit.errors import ConfigError
from streamsplit.network.scenarios import SCENARIOS, Stretch, scenario_stretches, scenario_trace

if TYPE_CHECKING:
    from streamsplit.network.statistics import TraceStatistics
    from streamsplit.network.trace import BandwidthTrace

DRIVE = "drive"  # the built-in link, like the measured drives
DEFAULT_S = 300.0
TARGET = "127.0.0.1:8888"
LISTEN = "127.0.0.1:8889"
_LINE_EVERY_S = 10.0  # without a terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--duration", type=float, metavar="S", help="seconds (default: 300, or the file's length)")
    parser.add_argument(
        "--scenario", choices=[*SCENARIOS, DRIVE],
        help="a sequence of environments, or 'drive': a link like the measured drives (default: drive)",
    )  # fmt: skip
    parser.add_argument(
        "--trace", type=Path, metavar="FILE",
        help="CSV, table or mahimahi file in place of a scenario, or the folder of the measured drives",
    )  # fmt: skip
    parser.add_argument("--run", metavar="NAME", help="run of a trace file with several (default: the first)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", type=Path, help="where trace.csv, statistics.json and trace.png are written "
                        "(default: runs/<time>-network)")  # fmt: skip
    parser.add_argument("--plot", action="store_true", help="draw the link (trace.png)")
    parser.add_argument("--enable-shaping", action="store_true", help="shape live traffic by the link for the duration")
    parser.add_argument(
        "--method", default="auto", choices=("auto", "proxy", "tc"),
        help="proxy: in user space, everywhere; tc: the whole --interface, Linux and root (default: tc where "
        "--interface is given and it works, else proxy)",
    )  # fmt: skip
    parser.add_argument("--target", default=TARGET, metavar="HOST:PORT", help=f"proxy: the server (default: {TARGET})")
    parser.add_argument("--listen", default=LISTEN, metavar="HOST:PORT", help=f"proxy: for devices (default: {LISTEN})")
    parser.add_argument("--interface", metavar="NAME", help="tc: the interface, such as eth0")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Makes or reads the link, prints and writes it, shapes traffic where asked."""
    set_up_logging("WARNING")
    target, listen = address(arguments.target, "--target"), address(arguments.listen, "--listen")
    if arguments.method == "tc" and not arguments.interface:
        raise ConfigError("'--method tc' needs the interface to shape; add --interface NAME (`ip link` lists them)")
    if arguments.plot:
        from streamsplit.network.picture import require_matplotlib

        require_matplotlib()
    trace, stretches = link(arguments)
    duration_s = trace.duration_s if arguments.duration is None else arguments.duration

    from streamsplit.network.statistics import trace_statistics

    found = trace_statistics([trace])
    folder = arguments.output_dir or Path("runs") / time.strftime("%Y%m%d-%H%M%S-network")
    result: dict[str, Any] = {
        "link": trace.name,
        "settings": {
            "duration_s": duration_s, "scenario": arguments.scenario, "seed": arguments.seed, "run": arguments.run,
            "trace": str(arguments.trace) if arguments.trace else None,
        },
        "statistics": found.as_dict(),
        "environments": [stretch._asdict() for stretch in stretches],
        "shaping": None,
    }  # fmt: skip
    files = write(folder, trace, stretches, result, plot=arguments.plot)
    if not arguments.json:
        _show(trace, stretches, found)
        print(f"written to {', '.join(str(file) for file in files)}")
    if arguments.enable_shaping:
        result["shaping"] = _shape(arguments, trace, duration_s, target, listen)
        _write_json(folder / "statistics.json", result)
        if not arguments.json:
            print(_shaped(result["shaping"]))
    if arguments.json:
        print_json({**result, "files": [str(file) for file in files]})
    return 0


def link(arguments: argparse.Namespace) -> tuple[BandwidthTrace, list[Stretch]]:
    """The trace that is asked for, and where the device is when."""
    from streamsplit.network.trace import generate_trace, read_trace

    if arguments.duration is not None and not 1 <= arguments.duration <= 7 * 86400:
        raise ConfigError(f"'--duration': got {arguments.duration:g} s, expected 1 s to a week")
    if arguments.seed < 0:
        raise ConfigError(f"'--seed': got {arguments.seed}, expected 0 or more")
    if arguments.trace is not None:
        if arguments.scenario is not None:
            raise ConfigError("got --trace and --scenario, expected one of the two; leave one out")
        if arguments.trace.is_dir():
            return _measured(arguments.trace, arguments.run), []
        return read_trace(arguments.trace, arguments.run), []
    if arguments.run is not None:
        raise ConfigError(f"got --run '{arguments.run}' without a trace file to find it in; add --trace FILE")
    duration_s = DEFAULT_S if arguments.duration is None else arguments.duration
    if arguments.scenario in (None, DRIVE):
        return generate_trace(duration_s, arguments.seed), []
    stretches = scenario_stretches(arguments.scenario, duration_s, arguments.seed)
    return scenario_trace(arguments.scenario, duration_s, arguments.seed), stretches


def _measured(folder: Path, run: str | None) -> BandwidthTrace:
    """A measured drive with its operator's round trips."""
    from streamsplit.network.drives import ALL_DRIVES, read_drives

    traces = {trace.name: trace for trace in read_drives(folder, ALL_DRIVES)}
    name = next(iter(traces), "") if run is None else run
    if name not in traces:
        raise ConfigError(f"{folder}: no run '{name}'; {nearest(name, traces)}")
    return traces[name]


def address(text: str, option: str) -> tuple[str, int]:
    """(host, port) of 'host:port' or '[v6]:port'; raises ConfigError."""
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"'{option}': got '{text}', expected HOST:PORT such as {TARGET}")
    return host, int(port)


def write(
    folder: Path, trace: BandwidthTrace, stretches: Sequence[Stretch], result: dict[str, Any], *, plot: bool
) -> list[Path]:
    """Writes trace.csv (`--trace` reads it again), statistics.json and where asked trace.png; gives their paths."""
    from streamsplit.network.writer import write_trace

    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "trace.csv", folder / "statistics.json"]
    write_trace(files[0], trace, stretches)
    _write_json(files[1], result)
    if plot:
        from streamsplit.network.picture import save_trace_picture

        files.append(folder / "trace.png")
        save_trace_picture(files[-1], trace, stretches)
    return files


def _write_json(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _show(trace: BandwidthTrace, stretches: Sequence[Stretch], found: TraceStatistics) -> None:
    from rich.console import Console
    from rich.table import Table

    out = Console(file=sys.stdout)
    if stretches:
        places = Table(title=f"{trace.name}: where the device is")
        for name in ("from s", "to s", "environment"):
            places.add_column(name, justify="left" if name == "environment" else "right")
        for stretch in stretches:
            places.add_row(f"{stretch.start_s:g}", f"{stretch.stop_s:g}", stretch.environment)
        out.print(places)
    view = Table(title=f"{trace.name}: the link over {found.seconds:g} s", show_header=False)
    view.add_column("what")
    view.add_column("figures", justify="right")
    lags = ", ".join(f"{value:.2f} at {lag:g} s" for lag, value in found.autocorrelation.items() if value == value)
    dips = f"{found.dips_per_hour:.0f} an hour"
    if found.dips_per_hour:
        dips += f", median {found.dip_median_s:g} s, longest {found.dip_longest_s:g} s"
    for what, figures in (
        ("uplink, mean", f"{found.mean_mbps:.2f} Mbit/s"),
        ("uplink, p5 / p50 / p95", f"{found.p5_mbps:.2f} / {found.p50_mbps:.2f} / {found.p95_mbps:.2f} Mbit/s"),
        ("spread within a run", f"{found.log10_sd:.2f} (sd of log10 rate)"),
        ("autocorrelation", lags or "too short to say"),
        ("dips below 0.5 Mbit/s", dips),
        ("round trip, p50 / p95 / p99", f"{found.rtt_p50_ms:.0f} / {found.rtt_p95_ms:.0f} / {found.rtt_p99_ms:.0f} ms"),
        ("pings lost", f"{found.ping_loss:.2%}"),
    ):
        view.add_row(what, figures)
    out.print(view)


def _shape(
    arguments: argparse.Namespace,
    trace: BandwidthTrace,
    duration_s: float,
    target: tuple[str, int],
    listen: tuple[str, int],
) -> dict[str, Any]:
    from streamsplit.network.traffic_control import TrafficControl, find_tc

    if arguments.interface and arguments.method != "proxy":
        try:
            find_tc()
        except ConfigError as error:
            if arguments.method == "tc":
                raise
            _say(f"{error} (now: proxy)")
        else:
            return _shape_interface(TrafficControl(arguments.interface, trace), duration_s)
    return _shape_proxy(trace, duration_s, target, listen, arguments.seed)


def _shape_interface(control: Any, duration_s: float) -> dict[str, Any]:
    with _terminated_like_interrupted(), ExitStack() as stack:
        stack.callback(control.stop)  # before entering: an interruption may come right after it
        stack.enter_context(control)
        if not control.delay_shaped:
            _say(f"this kernel has no netem: the rate of {control.interface} is shaped (TBF), delay and loss are not")
        with _progress(f"shaping {control.interface}", duration_s) as show:
            control.follow(duration_s, lambda now_s: show(now_s, _offer(control.trace, now_s)))
    return {
        "method": "tc", "interface": control.interface, "seconds": duration_s, "delay_shaped": control.delay_shaped
    }  # fmt: skip


def _shape_proxy(
    trace: BandwidthTrace, duration_s: float, target: tuple[str, int], listen: tuple[str, int], seed: int
) -> dict[str, Any]:
    from streamsplit.network.shaper import ShapedProxy

    proxy = ShapedProxy(target, trace, listen=listen, seed=seed).start_in_thread()
    try:
        host, port = proxy.address[:2]
        _say(f"devices connect to {host}:{port}, which leads to {target[0]}:{target[1]} over the link")
        with _terminated_like_interrupted(), _progress("shaping", duration_s) as show:
            while (now_s := proxy.elapsed_s) < duration_s:
                show(now_s, f"{_offer(trace, now_s)}, {proxy.uplink_bytes} bytes up, {proxy.downlink_bytes} down")
                time.sleep(min(0.5, duration_s - now_s))
        return {
            "method": "proxy", "listen": f"{host}:{port}", "target": f"{target[0]}:{target[1]}", "seconds": duration_s,
            "uplink_bytes": proxy.uplink_bytes, "downlink_bytes": proxy.downlink_bytes,
        }  # fmt: skip
    finally:
        proxy.stop_thread()


def _offer(trace: BandwidthTrace, now_s: float) -> str:
    rate, rtt_ms = trace.at(now_s)
    return f"{rate / 1e6:.2f} Mbit/s, {rtt_ms:.0f} ms"


def _shaped(shaping: dict[str, Any]) -> str:
    if shaping["method"] == "tc":
        what = "rate and delay" if shaping["delay_shaped"] else "rate"
        return f"{shaping['interface']} was shaped for {shaping['seconds']:g} s ({what}), and is free again"
    carried = f"{shaping['uplink_bytes']} bytes went up, {shaping['downlink_bytes']} down"
    return f"shaped for {shaping['seconds']:g} s: {carried}"


def _say(text: str) -> None:
    console().print(text, markup=False, soft_wrap=True)


@contextmanager
def _progress(title: str, duration_s: float) -> Iterator[Callable[[float, str], None]]:
    """Gives what shows (seconds, words): a bar on a terminal, a line every ten seconds otherwise."""
    if is_terminal():
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        with Progress(
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[words]}"),
            console=console(), transient=True,
        ) as bar:  # fmt: skip
            task = bar.add_task(title, total=duration_s, words="")
            yield lambda now_s, words: bar.update(task, completed=now_s, words=words)
        return
    due_s = 0.0

    def line(now_s: float, words: str) -> None:
        nonlocal due_s
        if now_s >= due_s:
            due_s = now_s + _LINE_EVERY_S
            _say(f"{title}: {now_s:.0f} of {duration_s:g} s, {words}")

    yield line


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does, so that nothing stays shaped."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: whoever runs it there handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
