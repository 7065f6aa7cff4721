"""`streamsplit opus-test`: what lost packets cost a recording, with and without forward error correction."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from streamsplit.cli.console import print_json
from streamsplit.errors import AudioError, ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--input", type=Path, required=True, help="a recording of speech, a few seconds at least")
    parser.add_argument("--output", type=Path, help="the sound after the largest loss, as .wav or .opus")
    parser.add_argument("--loss", default="5,10,20", help="of packets, in percent, separated by commas")
    parser.add_argument("--bitrate", type=int, default=24_000, metavar="BPS")
    parser.add_argument("--frame-ms", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Codes, loses, judges."""
    from streamsplit.audio.files import read_audio
    from streamsplit.codec.opus_stream import OpusSettings
    from streamsplit.evaluation.opus_loss import as_dicts, study

    losses = sorted(_percent(text) for text in args.loss.split(","))
    settings = OpusSettings(bitrate_bps=args.bitrate, frame_ms=args.frame_ms)
    audio = read_audio(args.input)
    if len(audio) < 16_000:
        raise AudioError(f"{args.input}: got {len(audio) / 16_000:.2f} s of sound, expected at least a second")
    rows, heard = study(audio, losses, settings, args.seed)
    if args.output is not None:
        _write(args.output, heard)
    if args.json:
        print_json({"rows": as_dicts(rows)})
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{args.input.name}, Opus at {args.bitrate / 1000:g} kbit/s, losses in bursts of mean 2")
    names = ("loss", "lost frames are", "stream", "kbit/s", "ESTOI", "PESQ-NB", "PESQ-WB")
    for name in names:
        table.add_column(name, justify="right" if name not in names[1:3] else "left")
    for row in rows:
        quality = row.quality
        table.add_row(
            f"{row.loss:.1%}", row.receiver, "with FEC" if row.fec else "plain", f"{row.kbit_s:.1f}",
            f"{quality['estoi']:.3f}", f"{quality['nb']:.2f}", f"{quality['wb']:.2f}",
        )  # fmt: skip
    Console(file=sys.stdout).print(table)
    return 0


def _percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 90:
        raise ConfigError(f"'--loss': got '{text}', expected percentages above 0 and below 90")
    return value / 100.0


def _write(path: Path, samples: object) -> None:
    import soundfile

    kind = {".wav": ("WAV", "PCM_16"), ".opus": ("OGG", "OPUS")}.get(path.suffix.lower())
    if kind is None:
        raise ConfigError(f"'--output': got {path.name}, expected a name that ends in .wav or .opus")
    try:
        soundfile.write(str(path), samples, 16_000, format=kind[0], subtype=kind[1])
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{path}: cannot be written ({error})") from error
