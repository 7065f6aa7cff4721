"""`streamsplit codec`: trains TinyStream codecs, and encodes and decodes files with them."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamsplit.cli import codec_training
from streamsplit.cli.console import LOG_LEVELS, print_json, set_up_logging
from streamsplit.errors import AudioError, ConfigError

if TYPE_CHECKING:
    from streamsplit.codec.tinystream.frames import FrameStream
    from streamsplit.weights.codec_file import PublishedCodec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own commands."""
    commands = parser.add_subparsers(dest="codec_command", metavar="COMMAND", required=True)
    train = commands.add_parser("train", help="train a codec on a folder of sound")
    train.add_argument("--config", type=Path, help="YAML with codec, training and data (default: tiny_mel)")
    train.add_argument("--data", type=Path, required=True, help="folder with audio files, at any depth")
    train.add_argument("--output-dir", type=Path, default=Path("runs/codec"), help="(default: runs/codec)")
    train.add_argument("--resume", action="store_true", help="go on with the training in --output-dir, exactly")
    train.add_argument("--start", help="begin with a published codec: a name or a file; its decoder may be another")
    train.add_argument("--steps", type=int, help="optimiser steps (default: the config's)")
    train.add_argument("--threads", type=int, default=1, help="processor threads (default: 1)")
    train.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU where there is one")
    train.add_argument("--name", default="codec", help="for the card")
    train.add_argument("--licence", default="that of the recordings", help="for the card: terms of the training sound")
    encode = commands.add_parser("encode", help="audio file -> bitstream")
    decode = commands.add_parser("decode", help="bitstream -> WAV")
    for command in (encode, decode):
        command.add_argument("input", type=Path)
        command.add_argument("output", type=Path)
    encode.add_argument("--quantizers", type=int, help="send only the first ones: fewer bits, coarser")
    encode.add_argument("--integer", action="store_true", help="encode in whole numbers, as a microcontroller does")
    evaluate = commands.add_parser("evaluate", help="judge codecs on held-out sound, beside Opus and Codec2")
    evaluate.add_argument("--config", type=Path, required=True, help="the YAML that the codec was trained with")
    evaluate.add_argument("--data", type=Path, required=True, help="folder with audio files, at any depth")
    evaluate.add_argument("--output-dir", type=Path, default=Path("results/codec"), help="(default: results/codec)")
    evaluate.add_argument("--lost", help="also with frames lost and concealed: shares, like 0.05,0.1")
    evaluate.add_argument("--forms", help="also with other forms of the encoder: float,onnx-int8")
    evaluate.add_argument("--alone", action="store_true", help="without Opus and Codec2")
    export = commands.add_parser("export", help="write the encoder for other runtimes")
    export.add_argument(
        "--format", choices=("c", "integer", "onnx", "onnx-int8"), default="c",
        help="c: constants for firmware/ and golden vectors (default); onnx: one frame in, codes and state out; "
        "onnx-int8: the same with 8-bit weights; integer: whole numbers for numpy alone",
    )  # fmt: skip
    export.add_argument("--output-dir", type=Path, required=True)
    info = commands.add_parser("info", help="a codec's clock, sizes and card")
    for command in (encode, decode, evaluate, export, info):
        command.add_argument("--codec", required=True, help="a packaged codec's name, or its .safetensors file")
    for command in (train, encode, decode, evaluate, export, info):
        command.add_argument("--json", action="store_true", help="print the result as JSON")
        command.add_argument("--log-level", default="WARNING", choices=LOG_LEVELS)


def run(args: argparse.Namespace) -> int:
    """Runs the chosen command."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    set_up_logging(args.log_level)
    command = {
        "train": codec_training.train,
        "encode": _encode,
        "decode": _decode,
        "evaluate": codec_training.evaluate,
        "export": _export,
        "info": _info,
    }
    result, lines = command[args.codec_command](args)
    if args.json:
        print_json(result)
    else:
        print("\n".join(lines))
    return 0


def _encode(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    import numpy as np

    from streamsplit.audio.files import iter_audio
    from streamsplit.codec.tinystream.bitstream import MODEL_ID_BYTES
    from streamsplit.codec.tinystream.coded_file import PACKET_FRAMES, pack_file
    from streamsplit.server.checkpoint import write_atomic

    stream, rate, index_bits, model_id = _encoder_stream(args)
    parts, samples = [], 0
    for block in iter_audio(args.input, rate, rate):
        parts.append(stream.push(block))
        samples += len(block)
    parts.append(stream.finish())
    indices = np.concatenate(parts, 1)
    data = pack_file(indices, index_bits, model_id[:MODEL_ID_BYTES], PACKET_FRAMES)
    write_atomic(args.output, data)
    seconds = samples / rate
    result = {"frames": indices.shape[1], "seconds": seconds, "bytes": len(data), "bps": 8 * len(data) / seconds}
    return result, [f"{args.output}: {len(data)} bytes for {seconds:.2f} s, {result['bps'] / 1000:.2f} kbit/s"]


def _encoder_stream(args: argparse.Namespace) -> tuple[FrameStream, int, int, bytes]:
    """What encodes, its sample rate, the bits of an index and the model's id; in whole numbers without torch."""
    from streamsplit.codec.tinystream.frames import IntegerEncoderStream
    from streamsplit.codec.tinystream.integer_file import PACKAGED, SUFFIX, read_integer

    if args.integer and (args.codec.endswith(SUFFIX) or (PACKAGED / f"{args.codec}{SUFFIX}").is_file()):
        encoder = read_integer(args.codec)
        bits = encoder.codebooks.shape[1].bit_length() - 1
        return IntegerEncoderStream(encoder, args.quantizers), encoder.sample_rate, bits, encoder.model_id
    import torch

    from streamsplit.codec.tinystream.streams import EncoderStream
    from streamsplit.weights.codec_file import read_codec

    torch.set_num_threads(1)
    codec = read_codec(args.codec)
    settings, model_id = codec.model.settings, codec.model.model_id()
    stream: FrameStream
    if args.integer:
        stream = IntegerEncoderStream(codec.integer_encoder(), args.quantizers)
    else:
        stream = EncoderStream(codec.model, args.quantizers)
    return stream, settings.sample_rate, settings.index_bits, model_id


def _export(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from streamsplit.export.c_model import c_files, sizes
    from streamsplit.server.checkpoint import write_atomic
    from streamsplit.weights.codec_file import read_codec

    codec = read_codec(args.codec)
    if args.format == "integer":
        return _export_integer(codec, args)
    if args.format != "c":
        return _export_onnx(codec, args)
    encoder = codec.integer_encoder()
    files = c_files(encoder)
    for name, text in files.items():
        write_atomic(args.output_dir / name, text.encode())
    size, frame_rate = sizes(encoder), codec.model.clock.frame_rate_hz
    ram_bytes, macs = size.ram_bytes(encoder), (size.macs + size.search_macs) * frame_rate
    result = {
        "files": [str(args.output_dir / name) for name in files], "stored_bytes": encoder.stored_bytes,
        "ram_bytes": ram_bytes, "macs_per_s": round(macs),
    }  # fmt: skip
    lines = [
        f"{args.output_dir}: {', '.join(files)}",
        f"weights and codebooks {encoder.stored_bytes / 1024:.1f} KiB, static RAM {ram_bytes / 1024:.1f} KiB, "
        f"{macs / 1e6:.1f} million multiply-accumulates a second beside the front",
    ]
    return result, lines


def _decode(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    import soundfile
    import torch

    from streamsplit.codec.tinystream.file_decoder import decode_file
    from streamsplit.weights.codec_file import read_codec

    torch.set_num_threads(1)
    if args.output.suffix.lower() != ".wav":
        raise ConfigError(f"got {args.output}, expected a .wav file to write")
    model = read_codec(args.codec).model
    try:
        data = args.input.read_bytes()
    except OSError as error:
        raise AudioError(f"{args.input}: cannot be read ({error.strerror or error})") from None
    decoded = decode_file(data, model)
    soundfile.write(args.output, decoded.audio.clip(-1.0, 1.0), model.settings.sample_rate)
    seconds, concealed = len(decoded.audio) / model.settings.sample_rate, sum(lost.frames for lost in decoded.lost)
    if decoded.lost:
        print(
            f"streamsplit: warning: {args.input}: {len(decoded.lost)} packets cannot be read, {concealed} frames of "
            f"{decoded.frames} concealed (the first: {decoded.lost[0].why})",
            file=sys.stderr,
        )
    return {
        "seconds": seconds, "frames": decoded.frames, "lost_packets": len(decoded.lost), "concealed_frames": concealed,
    }, [f"{args.output}: {seconds:.2f} s"]  # fmt: skip


def _export_integer(codec: PublishedCodec, args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from streamsplit.codec.tinystream.integer_file import SUFFIX, pack_integer
    from streamsplit.server.checkpoint import write_atomic

    path = args.output_dir / f"{codec.card['name']}{SUFFIX}"
    data = pack_integer(codec.integer_encoder())
    write_atomic(path, data)
    return {"files": [str(path)], "bytes": len(data)}, [f"{path}: {len(data) / 1024:.1f} KiB; needs numpy alone"]


def _export_onnx(codec: PublishedCodec, args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from streamsplit.export.codec_onnx import check_streaming, export_streaming
    from streamsplit.server.checkpoint import write_atomic

    int8 = args.format == "onnx-int8"
    exported = export_streaming(codec.model, int8=int8)
    same = check_streaming(codec.model, exported, exact=not int8)
    speech = same["speech"]
    path = args.output_dir / f"{codec.card['name']}{'-int8' if int8 else ''}.onnx"
    write_atomic(path, exported.data)
    states = {name: list(shape) for name, shape in exported.states}
    result = {"files": [str(path)], "bytes": len(exported.data), "states": states,
              "same_codes": {name: share._asdict() for name, share in same.items()}}  # fmt: skip
    return result, [
        f"{path}: {len(exported.data) / 1024:.0f} KiB; on synthetic speech {speech.every:.1%} of all codes "
        f"as the float encoder's in torch, {speech.first:.1%} of the first quantizer's",
        f"audio [1, 1, {exported.hop}] and {len(states)} states (zeros at first) in; indices and states after out",
    ]


def _info(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from streamsplit.weights.codec_file import read_codec

    codec = read_codec(args.codec)
    model, card = codec.model, codec.card
    sizes = {
        "encoder": sum(value.numel() for value in model.encoder.parameters()),
        "codebooks": model.quantizer.codebooks.numel(),
        "decoder": sum(value.numel() for value in model.decoder.parameters()),
    }
    clock = model.clock
    result = {"clock": clock._asdict(), "parameters": sizes, "settings": model.settings.as_dict(), "card": card,
              "model_id": model.model_id().hex()}  # fmt: skip
    lines = [
        f"{card['name']} {model.model_id().hex()}: {clock.bitrate_bps / 1000:g} kbit/s, {clock.frame_rate_hz:g} frames "
        f"of {clock.bits_per_frame} bits a second, {clock.latency_ms:g} ms",
        ", ".join(f"{name} {count:,}" for name, count in sizes.items()) + " parameters",
        *(f"{name}: {card[name]}" for name in ("data", "licence", "commit")),
        *(f"{name} {value:.3f}" for name, value in card["metrics"].items()),
    ]
    return result, lines
