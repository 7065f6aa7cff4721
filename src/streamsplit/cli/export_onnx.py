"""`streamsplit export-onnx`: a published encoder as ONNX, whole or as the two sides of a cut, checked against torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from streamsplit.cli.console import print_json

SUFFIX = ".onnx"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "--model",
        default="default",
        metavar="NAME",
        help="a packaged encoder, or a .safetensors file of a published one",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the ONNX file to write")
    parser.add_argument(
        "--cut", type=int, metavar="K",
        help="write two files: FILE-to-K for the device's blocks 1..K, FILE-from-K for the server's",
    )  # fmt: skip
    parser.add_argument("--frames", type=int, default=100, help="of a window, 10 ms each (default: 100)")
    parser.add_argument("--json", action="store_true", help="print what was written as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Exports, checks, and only then writes."""
    from streamsplit.encoders.onnx_export import check_models, export_cut, export_encoder
    from streamsplit.server.checkpoint import write_atomic
    from streamsplit.weights.pretrained import pretrained_encoder, read_pretrained

    found = read_pretrained(args.model)
    encoder = pretrained_encoder(found)
    whole = args.cut is None
    models = [export_encoder(encoder, args.frames)] if whole else [*export_cut(encoder, args.cut, args.frames)]
    agreement = check_models(encoder, models, args.frames)
    paths = output_paths(args.output, args.cut)
    for path, model in zip(paths, models, strict=True):
        write_atomic(path, model.data)
    if args.json:
        files = [
            {"file": str(path), "bytes": len(model.data), "inputs": model.inputs, "outputs": model.outputs}
            for path, model in zip(paths, models, strict=True)
        ]
        print_json({"model": found.card["name"], "revision": found.revision, "files": files, **agreement._asdict()})
        return 0
    for path, model in zip(paths, models, strict=True):
        names = f"{', '.join(model.inputs)} -> {', '.join(model.outputs)}"
        print(f"{path}: {names}, {len(model.data) / 1e6:.1f} MB")
    print(
        f"against torch on {agreement.windows} windows: largest difference {agreement.max_difference:.1e}, "
        f"least cosine {agreement.least_cosine:.7f}"
    )
    return 0


def output_paths(output: Path, cut: int | None) -> tuple[Path, ...]:
    """The file, or with a cut the two that it stands for."""
    if cut is None:
        return (output,)
    stem, suffix = (output.stem, output.suffix) if output.suffix == SUFFIX else (output.name, SUFFIX)
    return tuple(output.with_name(f"{stem}-{side}-{cut}{suffix}") for side in ("to", "from"))
