"""`streamsplit talk`: speak with a server that answers, through a microphone and a loudspeaker or files."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamsplit.cli.console import LOG_LEVELS, console, is_terminal, on_enter, print_json, set_up_logging
from streamsplit.cli.edge import outages_text, reached
from streamsplit.cli.settings_files import load_device_settings
from streamsplit.edge.settings import EdgeSettings
from streamsplit.edge.talk_settings import ACTIVITIES

if TYPE_CHECKING:
    from rich.table import Table

    from streamsplit.edge.talk import TalkRuntime
    from streamsplit.edge.talker import TalkEvent
    from streamsplit.edge.voice import TalkStatus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options; they replace what the file says."""
    parser.add_argument("--config", type=Path, help="YAML file (see configs/edge.yaml, section talk)")
    parser.add_argument("--server", metavar="URL", help="ws://host:port/v1/stream, host:port, or quic://host:port")
    parser.add_argument(
        "--fingerprint", metavar="HEX", help="quic: the server's certificate's, as the server prints it"
    )
    parser.add_argument("--device-id", help="the device's name at the server")
    parser.add_argument(
        "--source", default="mic", help="'mic[:device]' (default), an audio file, 'synthetic[:seconds]'"
    )
    parser.add_argument("--sink", default="speaker", help="'speaker[:device]' (default), a WAV to write, or 'none'")
    parser.add_argument("--activity", choices=ACTIVITIES, help="when a question begins; push: Enter begins and ends it")
    parser.add_argument("--codec", choices=("opus", "pcm16"))
    parser.add_argument("--message-ms", type=int, choices=(20, 40, 60), help="of sound in a message (default 60)")
    parser.add_argument("--duration", type=float, metavar="S", help="stop after so many seconds")
    parser.add_argument("--log-level", default="WARNING", choices=LOG_LEVELS)
    parser.add_argument("--json", action="store_true", help="a line of JSON for every event, and the end")


def run(args: argparse.Namespace) -> int:
    """Talks until the source ends or Ctrl-C; then the end is in order and the code 0."""
    set_up_logging(args.log_level)
    settings = overridden(load_device_settings(args.config) if args.config else EdgeSettings(), args)
    from streamsplit.edge.sources import open_source
    from streamsplit.edge.speaker import open_sink
    from streamsplit.edge.talk import TalkRuntime

    audio = settings.audio
    source = open_source(
        args.source, speed=1.0, seed=audio.seed, block_ms=settings.talk.opus.frame_ms, retry_s=audio.retry_s
    )
    try:
        sink = open_sink(args.sink, retry_s=audio.retry_s)
        try:
            shown: list[str] = []

            def watch(event: TalkEvent) -> None:
                if args.json:
                    print_json({"event": event.kind, "value": event.value, "at_ms": round(event.at_ms, 1)})
                elif event.kind in ("text", "error", "device"):
                    shown.append(f"{event.kind}: {event.value}")

            runtime = TalkRuntime(settings, source, sink, watch=watch)
            status = asyncio.run(_run(runtime, args, shown))
        finally:
            sink.close()
    finally:
        source.close()
    if args.json:
        print_json({"event": "summary", **status._asdict()})
    else:
        console().print(view(status, shown))
    return 0


def overridden(settings: EdgeSettings, args: argparse.Namespace) -> EdgeSettings:
    """The settings with what the command line says in place of the file."""
    talk = settings.talk
    if args.codec is not None:
        talk = talk.replace(codec=args.codec)
    if args.message_ms is not None:
        frames = max(1, round(args.message_ms / talk.opus.frame_ms))
        talk = talk.replace(frames_per_message=frames, lossy=talk.lossy.replace(frames_per_message=frames))
    if args.activity is not None:
        talk = talk.replace(activity=talk.activity.replace(kind=args.activity))
    device = settings.device if args.device_id is None else settings.device.replace(id=args.device_id)
    server = reached(settings.server, args.server, args.fingerprint)
    return settings.replace(talk=talk, device=device, server=server)


async def _run(runtime: TalkRuntime, args: argparse.Namespace, shown: list[str]) -> TalkStatus:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C arrives as KeyboardInterrupt
            loop.add_signal_handler(number, runtime.stop)
    if runtime.settings.talk.activity.kind == "push":
        on_enter(loop, runtime.voice.press)
    talking = asyncio.create_task(runtime.run(args.duration))
    if args.json or not is_terminal():
        return await talking
    from rich.live import Live

    with Live(console=console(), refresh_per_second=8, transient=True) as live:
        while not talking.done():
            live.update(view(runtime.status(), shown))
            await asyncio.wait({talking}, timeout=0.12)
    return talking.result()


def view(status: TalkStatus, shown: list[str]) -> Table:
    """The live table."""
    from rich.table import Table

    counts, frames = status.counts, status.frames
    table = Table(title=f"{status.state.lower()} ({'connected' if status.connected else 'no link'})", show_header=False)
    for name, value in (
        ("questions", f"{counts['questions']}, {counts['delivered']} answered, {status.waiting} waiting"),
        ("answers played", f"{counts['answers']}, {counts['barge_ins']} interrupted"),
        ("frames of answers", ", ".join(f"{value} {name}" for name, value in frames.items() if value) or "none"),
        ("round trip", "-" if status.rtt_ms != status.rtt_ms else f"{status.rtt_ms:.0f} ms"),
        ("jitter buffer", f"{status.target_ms:.0f} ms, {status.underruns} underruns"),
        ("speech", f"{_bitrates(status)}, {counts['payload_bytes'] / 1000:.1f} kB sent"),
        ("microphone", _microphone(counts)),
    ):
        table.add_row(name, value)
    if outages := outages_text(status):
        table.add_row("devices", outages)
    for line in shown[-5:]:
        table.add_row("", line)
    if status.problem:
        table.add_row("problem", status.problem)
    return table


def _bitrates(status: TalkStatus) -> str:
    now, used = f"{status.bitrate_bps / 1000:.0f} kbit/s", status.bitrates
    if not used["changes"]:
        return now
    least, mean, most = (f"{used[name] / 1000:.0f}" for name in ("least_bps", "mean_bps", "most_bps"))
    return f"{now} ({least} to {most}, {mean} on average, {used['changes']:.0f} changes)"


def _microphone(counts: dict[str, Any]) -> str:
    heard = max(counts["frames"], 1)
    words = []
    if counts["clipped_frames"]:
        words.append(f"clips in {counts['clipped_frames'] / heard:.1%} of frames")
    if counts["silent_frames"] > 0.5 * heard and counts["frames"]:
        words.append("gives silence: muted, or the wrong device?")
    return ", ".join(words) or ("fine" if counts["frames"] else "nothing heard yet")
