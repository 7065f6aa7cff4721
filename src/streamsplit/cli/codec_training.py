"""What `streamsplit codec train` and `codec evaluate` do."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from streamsplit.cli.evaluate_policy import Ticker, command_line
from streamsplit.errors import ConfigError

if TYPE_CHECKING:
    from streamsplit.codec.tinystream.model import TinyStream
    from streamsplit.evaluation.codec_run import CodecSettings, Told


def train(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """`codec train`: the last figures, and lines for people."""
    import torch

    from streamsplit.evaluation.codec_run import CODEC, run_training
    from streamsplit.evaluation.codec_sounds import hear_for_codec
    from streamsplit.evaluation.provenance import machine, revision_of_code
    from streamsplit.refinement.codec_training import CodecTraining
    from streamsplit.server.models import torch_device

    settings = _settings(args)
    if args.threads < 1:
        raise ConfigError(f"'--threads': got {args.threads}, expected at least 1")
    torch.set_num_threads(args.threads)
    device = torch_device(args.device)
    with Ticker("codec train") as tick:
        sounds = hear_for_codec(
            args.data, settings.data, settings.codec.sample_rate,
            lambda done, total: tick.show(done, total, "recordings read"),
        )  # fmt: skip
        model = _first_model(settings, args.start).to(device)
        training = CodecTraining(model, sounds.train, sounds.held_out, settings.training, settings.seed)
        card = {
            "name": args.name, "about": "TinyStream codec", "licence": args.licence,
            "data": f"{len(sounds.train.recordings)} recordings of {args.data.name or args.data.resolve().name}, "
            f"{len(sounds.held_out.recordings)} held out: {', '.join(settings.data.held_out) or 'every twentieth'}",
            "hours": round(sounds.train.seconds / 3600, 2), "command": command_line("codec"),
            "commit": revision_of_code(), "machine": machine(), "settings": settings.training.as_dict(),
            "seed": settings.seed, "start": args.start or "", "left_out": list(sounds.notes),
        }  # fmt: skip

        def tell(told: Told) -> None:
            text = f"mel {told.step.mel_db:.2f} dB"
            if told.health is not None:
                text += f", held out {told.health.best_mel_db:.2f} dB, rank {told.health.effective_rank:.1f}"
            tick.show(told.step.step, settings.training.steps, text)

        last = run_training(training, args.output_dir, card, resume=args.resume, tell=tell)
    path = args.output_dir / CODEC
    figures = {**last._asdict(), "codec": str(path), "bytes": path.stat().st_size, "left_out": list(sounds.notes)}
    lines = [
        f"{path}: {path.stat().st_size / 1e6:.2f} MB after {last.step} steps",
        f"held out: mel distance {last.mel_db:.2f} dB, {last.mel_db_one:.2f} with one quantizer, "
        f"{last.mel_db_unquantized:.2f} without quantizing; rank of the latent {last.effective_rank:.1f}",
        *sounds.notes,
    ]
    return figures, lines


def _first_model(settings: CodecSettings, start: str | None) -> TinyStream:
    """The codec of the seed, or one that starts with a published encoder and codebooks, and its decoder if it is alike.

    Raises ConfigError where the published encoder has another architecture.
    """
    from streamsplit.codec.tinystream.model import TinyStream
    from streamsplit.weights.codec_file import read_codec

    model = TinyStream.from_settings(settings.codec, settings.seed)
    if start is None:
        return model
    published = read_codec(start).model
    own, wanted = published.settings.as_dict(), settings.codec.as_dict()
    wrong = [name for name, value in wanted.items() if own[name] != value]
    for name in wrong:
        if not name.startswith("decoder"):
            raise ConfigError(
                f"'--start': got a codec with {name} {own[name]}, expected {wanted[name]} as the config has it"
            )
    if not wrong:
        return published
    model.encoder.load_state_dict(published.encoder.state_dict())
    model.quantizer.load_state_dict(published.quantizer.state_dict())
    return model


def _settings(args: argparse.Namespace) -> CodecSettings:
    from streamsplit.codec.tinystream.settings import SIZES
    from streamsplit.config import load_settings
    from streamsplit.evaluation.codec_run import CodecSettings

    settings = load_settings(args.config, CodecSettings) if args.config else CodecSettings(codec=SIZES["tiny_mel"])
    if args.steps is None:
        return settings
    return settings.replace(training=settings.training.replace(steps=args.steps))


def evaluate(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """`codec evaluate`: the study, and its table as lines."""
    from streamsplit.config import load_settings
    from streamsplit.evaluation.codec_report import run_study
    from streamsplit.evaluation.codec_run import CodecSettings
    from streamsplit.evaluation.codec_study import rows_markdown
    from streamsplit.weights.codec_file import read_codec

    settings = load_settings(args.config, CodecSettings)
    wanted: dict[str, Any] = {"alone": True} if args.alone else {}
    if args.lost:
        try:
            wanted["lost"] = tuple(float(share) for share in args.lost.split(","))
        except ValueError:
            raise ConfigError(f"'--lost': got {args.lost!r}, expected shares of the frames, like 0.05,0.1") from None
    if args.forms:
        wanted["forms"] = tuple(args.forms.split(","))
    settings = settings.replace(evaluation=settings.evaluation.replace(**wanted))
    codecs = [read_codec(name) for name in args.codec.split(",")]
    with Ticker("codec evaluate") as tick:
        study = run_study(codecs, args.data, settings, args.output_dir, command_line("codec"), tick.show)
    lines = [*study["meta"]["notes"], rows_markdown(study["rows"]), f"report: {args.output_dir / 'report.html'}"]
    return study, lines
