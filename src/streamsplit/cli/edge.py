"""`streamsplit edge`: runs one device until its source ends or Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamsplit.cli.console import LOG_LEVELS, console, is_terminal, on_enter, print_json, set_up_logging
from streamsplit.cli.settings_files import load_device_settings
from streamsplit.edge.settings import EdgeSettings, ServerLinkSettings
from streamsplit.errors import ConfigError
from streamsplit.splitting.policy import DEFAULT_POLICY, LEARNED_POLICIES, POLICIES

if TYPE_CHECKING:
    from rich.table import Table

    from streamsplit.edge.counters import EdgeStatus, RunSummary
    from streamsplit.edge.runtime import EdgeRuntime
    from streamsplit.edge.talker import TalkEvent
    from streamsplit.edge.voice import TalkStatus, Voice

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options; they replace what the file says."""
    parser.add_argument("--config", type=Path, help="YAML file (see configs/edge.yaml); default settings without one")
    parser.add_argument("--device-id", help="the device's name at the server")
    parser.add_argument("--server", metavar="URL", help="ws://host:port/v1/stream, host:port, or quic://host:port")
    parser.add_argument(
        "--fingerprint", metavar="HEX", help="quic: the server's certificate's, as the server prints it"
    )
    sound = parser.add_mutually_exclusive_group()
    sound.add_argument(
        "--source", help="a file, a folder of <label>/*.wav, 'mic[:device]', 'synthetic[:seconds]', a URL"
    )
    sound.add_argument("--synthetic", action="store_true", help="listen to a synthetic soundscape")
    parser.add_argument("--speed", type=float, default=1.0, help="1: real time, N: N times, 0: as fast as it goes")
    parser.add_argument("--duration", type=float, metavar="S", help="stop after so many seconds")
    parser.add_argument("--no-splitting", action="store_true", help="keep everything on the device; no server needed")
    parser.add_argument("--policy", choices=POLICIES, help=f"what chooses the cuts (default {DEFAULT_POLICY})")
    parser.add_argument(
        "--policy-file", type=Path, metavar="FILE", help="a file of `streamsplit train-policy` (policy 'ppo')"
    )
    parser.add_argument("--cut", help="send every window at this cut, such as 6:int8 (policy 'fixed')")
    parser.add_argument(
        "--pretrained", nargs="?", const="default", metavar="NAME",
        help="start from a published encoder, as the server must too: the packaged one, another's name, or a file",
    )  # fmt: skip
    parser.add_argument(
        "--talk", nargs="?", const="speaker", metavar="SINK",
        help="speak with the server, too (section talk): 'speaker[:device]', a WAV to write, or 'none'",
    )  # fmt: skip
    parser.add_argument("--journal", type=Path, help="write a line of JSON per window, result and learning step here")
    parser.add_argument("--log-level", default="INFO", choices=LOG_LEVELS)
    parser.add_argument("--json", action="store_true", help="a line of JSON on stdout every --interval and at the end")
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="between updates (default 1)")


def run(args: argparse.Namespace) -> int:
    """Listens, learns and streams; after Ctrl-C or SIGTERM the end is in order and the code 0."""
    if not args.speed >= 0:
        raise ConfigError(f"'--speed': got {args.speed}, expected 0 (as fast as it goes) or more")
    settings = load_device_settings(args.config) if args.config else EdgeSettings()
    settings = overridden(settings, args)
    set_up_logging(args.log_level)
    from streamsplit.edge.journal import Journal
    from streamsplit.edge.runtime import EdgeRuntime
    from streamsplit.edge.sources import open_source

    audio = settings.audio
    block_ms = float(audio.block_ms) if args.talk is None else settings.talk.opus.frame_ms
    source = open_source(
        audio.source, speed=args.speed, seed=audio.seed, loop=audio.loop, block_ms=block_ms, retry_s=audio.retry_s
    )
    with contextlib.ExitStack() as opened:
        opened.callback(source.close)
        voice = None
        if args.talk is not None:
            voice = _voice(settings, args.talk, as_json=args.json)
            opened.callback(voice.sink.close)
        journal = Journal(settings.device.journal) if settings.device.journal else None
        runtime = EdgeRuntime(
            settings, source, speed=args.speed, journal=journal, strict_policy=args.policy_file is not None, voice=voice
        )
        summary = asyncio.run(_run(runtime, args))
    if args.json:
        print_json({"event": "summary", **_flat(summary)})
    else:
        _show_summary(summary)
    return 0


def _voice(settings: EdgeSettings, sink: str, *, as_json: bool) -> Voice:
    """What speaks with the server beside the listening; its events go to stdout as lines of JSON, or to the log."""
    from streamsplit.edge.speaker import open_sink
    from streamsplit.edge.voice import Voice

    def watch(event: TalkEvent) -> None:
        if as_json:
            print_json({"event": event.kind, "value": event.value, "at_ms": round(event.at_ms, 1)})
        elif event.kind in ("text", "question", "answer"):
            log.info("%s: %s %s", settings.device.id, event.kind, event.value)

    return Voice(settings, open_sink(sink, retry_s=settings.audio.retry_s), watch=watch)


def overridden(settings: EdgeSettings, args: argparse.Namespace) -> EdgeSettings:
    """The settings with what the command line says in place of the file."""
    device: dict[str, Any] = {}
    if args.device_id is not None:
        device["id"] = args.device_id
    if args.journal is not None:
        device["journal"] = str(args.journal)
    source = "synthetic" if args.synthetic else args.source
    audio: dict[str, Any] = {} if source is None else {"source": source}
    splitting = settings.splitting
    if args.no_splitting:
        splitting = dataclasses.replace(splitting, enabled=False)
        for option, value in (("--cut", args.cut), ("--policy", args.policy), ("--policy-file", args.policy_file)):
            if value not in (None, "keep-local"):
                raise ConfigError(
                    f"'{option}': got {value} together with --no-splitting, which sends nothing; leave one of them out"
                )
    if args.cut is not None and args.policy not in (None, "fixed"):
        raise ConfigError(f"'--cut': got it together with --policy {args.policy}, expected --policy fixed")
    if args.policy_file is not None and (args.cut is not None or args.policy not in (None, *LEARNED_POLICIES)):
        other = f"--policy {args.policy}" if args.policy else "--cut"
        raise ConfigError(f"'--policy-file': got it together with {other}, expected --policy ppo or ppo-corrected")
    agent: dict[str, Any] = {}
    if args.policy_file is not None:
        learned = splitting.agent.policy if splitting.agent.learned else "ppo"
        agent = {"policy": args.policy or learned, "policy_file": str(args.policy_file)}
    elif args.policy is not None or args.cut is not None:
        agent = {"policy": args.policy or "fixed"}
    if args.cut is not None:
        agent["cut"] = args.cut
    if agent:
        splitting = dataclasses.replace(splitting, agent=dataclasses.replace(splitting.agent, **agent))
    encoder = settings.encoder if args.pretrained is None else settings.encoder.starting_from(args.pretrained)
    return settings.replace(
        encoder=encoder,
        device=dataclasses.replace(settings.device, **device),
        audio=dataclasses.replace(settings.audio, **audio),
        server=reached(settings.server, args.server, args.fingerprint),
        splitting=splitting,
    )


def reached(settings: ServerLinkSettings, server: str | None, fingerprint: str | None) -> ServerLinkSettings:
    """The settings with what the command line says of the server in place of the file."""
    if server is not None:
        url = server_url(server)
        none = ServerLinkSettings()
        kept = settings if url.startswith("quic://") else none
        authorities = settings if url.startswith(("quic://", "wss://")) else none
        settings = settings.replace(
            url=url,
            tls_fingerprint=kept.tls_fingerprint,
            tls_ca_file=authorities.tls_ca_file,
            tls_unverified=kept.tls_unverified,
        )
    if fingerprint is not None:
        settings = settings.replace(tls_fingerprint=fingerprint, tls_ca_file="", tls_unverified=False)
    return settings


def server_url(text: str) -> str:
    """A WebSocket URL from 'host', 'host:port' or a URL with or without a path; quic:// stays as it is."""
    if "://" not in text:
        host, _, port = text.rpartition(":")
        text = f"ws://{text}" if host and port.isdigit() else f"ws://{text}:8888"
    scheme, _, rest = text.partition("://")
    if scheme == "quic":
        return text
    scheme = {"http": "ws", "https": "wss"}.get(scheme, scheme)
    return f"{scheme}://{rest}" if "/" in rest.rstrip("/") else f"{scheme}://{rest.rstrip('/')}/v1/stream"


async def _run(runtime: EdgeRuntime, args: argparse.Namespace) -> RunSummary:
    loop = asyncio.get_running_loop()
    installed = []
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError, RuntimeError):  # Windows: Ctrl-C arrives as KeyboardInterrupt
            loop.add_signal_handler(number, _stopper(runtime))
            installed.append(number)
    if runtime.voice is not None and runtime.settings.talk.activity.kind == "push":
        on_enter(loop, runtime.voice.press)
    view = asyncio.create_task(_watch(runtime, max(args.interval, 0.1), args.json))
    try:
        return await runtime.run(args.duration)
    finally:
        view.cancel()
        await asyncio.gather(view, return_exceptions=True)
        for number in installed:
            loop.remove_signal_handler(number)


def _stopper(runtime: EdgeRuntime) -> Any:
    """Asks for an end in order the first time; the second time there is no more waiting."""
    asked = False

    def stop() -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        runtime.stop()

    return stop


async def _watch(runtime: EdgeRuntime, interval_s: float, as_json: bool) -> None:
    if as_json:
        while True:
            await asyncio.sleep(interval_s)
            print_json({"event": "status", **runtime.status()._asdict()})
    elif is_terminal():
        from rich.live import Live

        with Live(console=console(), auto_refresh=False, transient=True) as live:
            while True:
                await asyncio.sleep(interval_s)
                live.update(status_table(runtime.status()), refresh=True)


def status_table(status: EdgeStatus) -> Table:
    """The live table of one device."""
    from rich.table import Table

    table = Table(title=f"{status.device_id}: {status.connection}, {status.elapsed_s:.0f} s", show_header=False)
    kept = f"{status.windows_skipped} kept, {status.windows_dropped} dropped, {status.windows_rejected} rejected"
    rows = (
        ("windows", f"{status.windows_seen} heard, {status.windows_sent} sent, {kept}"),
        ("answers", f"{status.results}, {_number(status.latency_ms, '.0f')} ms after capture"),
        ("cut", f"{status.cut or '-'}, {_number(status.edge_ms, '.1f')} ms on the device at cpu {status.cpu:.0%}"),
        ("policy", f"{status.policy or '-'}, {_judgement(status)}"),
        ("link", f"{_number(status.bandwidth_bps / 1e6, '.2f')} Mbit/s, {_number(status.rtt_ms, '.0f')} ms round trip"),
        ("queue", f"{status.queue_windows} windows, {status.queue_bytes / 1e3:.1f} kB"),
        ("traffic", f"{status.uplink_bytes / 1e3:.1f} kB up, {status.downlink_bytes / 1e3:.1f} kB down"),
        ("learning", f"{status.learner_steps} steps, loss {_number(status.loss, '.3f')}"),
        ("memory", f"uncertainty {_number(status.uncertainty, '.2f')}, rank {_number(status.effective_rank, '.1f')}"),
        ("revision", status.revision[:8] or "-"),
    )
    for name, text in rows:
        table.add_row(name, text)
    if outages := outages_text(status):
        table.add_row("devices", f"{outages}; {status.windows_missed} windows missed")
    if status.problem:
        table.add_row("problem", status.problem)
    return table


def outages_text(status: EdgeStatus | TalkStatus) -> str:
    """How often sound devices were gone, and how long; "" where none was."""
    devices = (
        ("microphone", status.microphone_outages, status.microphone_gone_s),
        ("loudspeaker", status.loudspeaker_outages, status.loudspeaker_gone_s),
    )
    return ", ".join(f"{name} gone {count} times, {gone_s:.1f} s" for name, count, gone_s in devices if count)


def _flat(summary: RunSummary) -> dict[str, Any]:
    values = summary._asdict()
    return {**values.pop("status")._asdict(), **values}


def _show_summary(summary: RunSummary) -> None:
    status = summary.status
    cuts = ", ".join(f"{cut} {count}" for cut, count in sorted(summary.cuts.items(), key=lambda item: -item[1]))
    print(
        f"{status.device_id}: {status.windows_seen} windows heard, {status.windows_sent} sent, "
        f"{status.results} answered, {summary.left_in_queue} left in the queue; {status.uplink_bytes / 1e3:.1f} kB up, "
        f"{status.downlink_bytes / 1e3:.1f} kB down; {status.learner_steps} learning steps; cuts: {cuts or 'none'}; "
        f"policy {status.policy or '-'}: {_judgement(status)}"
    )
    if outages := outages_text(status):
        print(f"{status.device_id}: {outages}; {status.windows_missed} windows missed")
    sys.stdout.flush()


def _judgement(status: EdgeStatus) -> str:
    """How the policy did, in hindsight."""
    return (
        f"{status.decisions} decisions, {status.cut_changes} changes, {status.fallbacks} fallbacks, "
        f"mean regret {_number(status.regret, '.2f')}"
    )


def _number(value: float, form: str) -> str:
    return "-" if value != value else format(value, form)
