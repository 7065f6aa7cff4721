"""`streamsplit pretrain`: learns an encoder from folders of sound, without labels, and publishes it as a file."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamsplit.cli.console import LOG_LEVELS, print_json, set_up_logging
from streamsplit.cli.evaluate_policy import Ticker, command_line
from streamsplit.errors import ConfigError

if TYPE_CHECKING:
    from streamsplit.evaluation.pretraining_run import Heard
    from streamsplit.refinement.pretraining import PretrainingSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--clips", type=Path, help="clips of one sound each, <folder>/<label>/<audio>; labels unused")
    parser.add_argument("--folds", help="use these folds of the clips only, separated by commas")
    parser.add_argument("--speech", type=Path, help="speech of many speakers, any audio files in a folder")
    parser.add_argument("--config", type=Path, help="YAML of the training's settings")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: the settings', 1500)")
    parser.add_argument("--width", type=float, default=0.75, help="channel multiplier of the encoder (default 0.75)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", type=Path, help="data folder with esc10/ and fsdd/ to say on what it is worth")
    parser.add_argument("--name", help="for the card (default: the output's name)")
    parser.add_argument("--licence", default="that of the recordings", help="for the card: terms of the training sound")
    parser.add_argument("--output", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--json", action="store_true", help="print the card as JSON")
    parser.add_argument("--log-level", default="WARNING", choices=LOG_LEVELS)


def run(args: argparse.Namespace) -> int:
    """Learns, measures, writes the file and beside it the card as Markdown."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    from streamsplit.encoders.factory import EncoderSettings, make_encoder
    from streamsplit.evaluation.pretraining_run import measure
    from streamsplit.evaluation.provenance import machine, revision_of_code
    from streamsplit.facade.pretrained import card_markdown, save_pretrained
    from streamsplit.refinement.pretraining import Pretraining

    set_up_logging(args.log_level)
    torch.set_num_threads(1)
    if args.output.suffix != ".safetensors" or not args.output.resolve().parent.is_dir():
        raise ConfigError(f"'--output': got {args.output}, expected a .safetensors file in a folder that exists")
    settings = _settings(args)
    clips, speech = _heard(args)
    encoder_settings = EncoderSettings(width=args.width, seed=args.seed)
    heard = [part for part in (clips, speech) if part is not None]
    with Ticker("pretraining") as tick:
        pretraining = Pretraining(
            make_encoder(encoder_settings), clips.recordings if clips else None,
            speech.recordings if speech else None, settings, args.seed,
        )  # fmt: skip
        encoder = pretraining.run(
            lambda at: tick.show(at.step, settings.steps, f"contrast {at.contrast:.2f} target {at.target:.2f}")
        )
    card: dict[str, Any] = {
        "name": args.name or args.output.stem, "about": "Windows of log-mel to 128 numbers, learned without labels.",
        "licence": args.licence, "data": "; ".join(part.about for part in heard),
        "hours": round(sum(part.hours for part in heard), 2), "command": command_line("pretrain"),
        "commit": revision_of_code(), "machine": machine(), "settings": settings.as_dict(), "seed": args.seed,
        "left_out": [note for part in heard for note in part.notes], "metrics": {},
    }  # fmt: skip
    ready = save_pretrained(encoder, encoder_settings, card, args.output)
    if args.measure is not None:
        card["metrics"] = measure(ready.encoder, args.measure)
        ready = save_pretrained(encoder, encoder_settings, card, args.output)
    page = args.output.with_suffix(".md")
    page.write_text(card_markdown(ready.card), encoding="utf-8")
    if args.json:
        print_json(ready.card)
    else:
        print(f"{args.output}: revision {ready.revision[:12]}, {args.output.stat().st_size / 1e6:.1f} MB")
        for name, value in card["metrics"].items():
            print(f"  {name} {value:.3f}")
        print(f"card: {page}")
    return 0


def _settings(args: argparse.Namespace) -> PretrainingSettings:
    from streamsplit.config import load_settings
    from streamsplit.refinement.pretraining import PretrainingSettings

    settings = load_settings(args.config, PretrainingSettings) if args.config else PretrainingSettings()
    return settings if args.steps is None else settings.replace(steps=args.steps)


def _heard(args: argparse.Namespace) -> tuple[Heard | None, Heard | None]:
    from streamsplit.evaluation.pretraining_run import hear_clips, hear_speech

    if args.clips is None and args.speech is None:
        raise ConfigError("got neither --clips nor --speech, expected a folder of sound to learn from")
    try:
        folds = [int(fold) for fold in args.folds.split(",")] if args.folds else []
    except ValueError:
        raise ConfigError(f"'--folds': got '{args.folds}', expected numbers separated by commas, like 1,2,3") from None
    if folds and args.clips is None:
        raise ConfigError("got --folds without --clips, expected the folder that has these folds")
    clips = None if args.clips is None else hear_clips(args.clips, folds)
    return clips, None if args.speech is None else hear_speech(args.speech)
