"""`streamsplit weights`: cuts transformer models into chunks, serves them, and publishes new revisions."""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from pathlib import Path
from typing import Any

from streamsplit.cli.console import console, is_terminal, print_json, set_up_logging
from streamsplit.errors import ConfigError

KEY_VARIABLE = "STREAMSPLIT_SIGNING_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own commands."""
    commands = parser.add_subparsers(dest="weights_command", metavar="COMMAND", required=True)
    chunk = commands.add_parser("chunk", help="a model's folder -> chunks and manifest")
    chunk.add_argument("model", help="folder with config.json and safetensors files, or a hub name")
    chunk.add_argument("--output-dir", type=Path, required=True, help="folder for the chunks")
    chunk.add_argument("--dtype", default="fp32", help="as sent: fp32 (exact, default), fp16, bf16, int8")
    chunk.add_argument("--compress", action="store_true", help="zstd for chunks that it makes smaller")
    chunk.add_argument("--encoder", action="store_true", help="MODEL is a published StreamSplit encoder: name or file")
    chunk.add_argument("--architecture", default="", help="class of transformers, where config.json names another")
    chunk.add_argument(
        "--signing-key", default="", metavar="HEX",
        help=f"Ed25519 seed, 64 hex digits, that the manifest is signed with (or {KEY_VARIABLE})",
    )  # fmt: skip
    _signer_arguments(chunk)
    publish = commands.add_parser("publish", help="make a served folder serve a new revision, with deltas")
    publish.add_argument("new", type=Path, help="folder of chunks of the new revision")
    publish.add_argument("--chunks-dir", type=Path, required=True, help="folder that is served")
    publish.add_argument("--delta", default="exact", help="exact (default), or int8: smaller, and the weights rounded")
    publish.add_argument("--signing-key", default="", metavar="HEX", help=f"as for chunk (or {KEY_VARIABLE})")
    _signer_arguments(publish)
    prune = commands.add_parser("prune", help="throw away chunks that only older revisions need")
    prune.add_argument("--chunks-dir", required=True, help="folder of chunks, or s3://bucket/prefix")
    prune.add_argument("--keep", type=int, default=1, metavar="N", help="revisions before the present one (default: 1)")
    prune.add_argument(
        "--grace-s", type=float, default=3600.0, metavar="S",
        help="younger files stay: they may belong to a revision that is being published (default: 3600)",
    )  # fmt: skip
    serve = commands.add_parser("serve", help="serve a folder of chunks")
    serve.add_argument("--chunks-dir", required=True, help="folder of chunks, or s3://bucket/prefix")
    serve.add_argument("--redis-url", default="", help="cache in front of it, as redis://host:port")
    serve.add_argument(
        "--memory-mb", type=float, default=64.0, metavar="MB",
        help="of chunks held in memory, in front of a bucket or a Redis (default: 64)",
    )  # fmt: skip
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; others than this machine need a token"
    )
    serve.add_argument("--port", type=int, default=8765, help="(default: 8765; 0: any free port)")
    serve.add_argument("--device-mb-per-s", type=float, default=0.0, metavar="MB", help="of one device; 0: no limit")
    serve.add_argument("--total-mb-per-s", type=float, default=0.0, metavar="MB", help="of all together; 0: no limit")
    for command in (chunk, publish, prune, serve):
        command.add_argument("--verbose", action="store_true", help="tell what is done")
        command.add_argument("--json", action="store_true", help="the result as a line of JSON")


def _signer_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--unsigned", action="store_true", help="drop the signature that the folder has")
    command.add_argument("--new-key", action="store_true", help="sign with another key than the folder was signed with")


def run(args: argparse.Namespace) -> int:
    """Chunks or serves."""
    set_up_logging("INFO" if args.verbose else "WARNING")
    return {"chunk": _chunk, "publish": _publish, "prune": _prune, "serve": _serve}[args.weights_command](args)


def _chunk(args: argparse.Namespace) -> int:
    key = _key(args)
    if args.encoder:
        return _chunk_encoder(args, key)
    from streamsplit.weights.streaming.chunker import ModelChunker

    with _Progress(verbose=args.verbose) as progress:
        chunker = ModelChunker(
            args.model, args.output_dir, args.compress, dtype=args.dtype, architecture=args.architecture,
            signing_key=key, replace_signer=args.unsigned or args.new_key, progress=progress.show,
        )  # fmt: skip
        result = chunker.chunk_model()
    return _report(args, result)


def _chunk_encoder(args: argparse.Namespace, key: bytes) -> int:
    from streamsplit.weights.pretrained import pretrained_encoder, read_pretrained
    from streamsplit.weights.streaming.encoder import chunk_encoder

    found = read_pretrained(args.model)
    manifest = chunk_encoder(
        pretrained_encoder(found), found.settings, args.output_dir, dtype=args.dtype, signing_key=key,
        replace_signer=args.unsigned or args.new_key,
    )  # fmt: skip
    return _report(args, {
        "model_name": manifest.model, "chunks": [chunk.name for chunk in manifest.chunks],
        "revision": manifest.revision, "stored_bytes": sum(chunk.stored_bytes for chunk in manifest.chunks),
    })  # fmt: skip


def _report(args: argparse.Namespace, result: dict[str, Any]) -> int:
    if args.json:
        print_json(result)
    else:
        print(
            f"{result['model_name']}: {len(result['chunks'])} chunks, {result['stored_bytes'] / 1e6:.1f} MB in "
            f"{args.output_dir}, revision {result['revision'][:12]}; serve them with: "
            f"streamsplit weights serve --chunks-dir {args.output_dir}"
        )
    return 0


def _publish(args: argparse.Namespace) -> int:
    key = _key(args)
    from streamsplit.weights.streaming.publish import publish

    result = publish(
        args.chunks_dir, args.new, kind=args.delta, signing_key=key, replace_signer=args.unsigned or args.new_key
    )
    if args.json:
        print_json(result)
    else:
        print(
            f"revision {result['revision'][:12]}: {len(result['changed'])} chunks changed, "
            f"{result['delta_bytes'] / 1e6:.2f} MB for who holds the last one, "
            f"{result['chunk_bytes'] / 1e6:.2f} MB for others"
        )
    return 0


def _prune(args: argparse.Namespace) -> int:
    from streamsplit.server.chunk_pruning import prune
    from streamsplit.server.chunk_storage import bare_storage

    storage = bare_storage(args.chunks_dir)
    pruned = asyncio.run(prune(storage, keep=args.keep, now_s=time.time(), grace_s=args.grace_s))
    if args.json:
        print_json(pruned._asdict())
    else:
        print(
            f"{args.chunks_dir}: {pruned.files} files deleted, {pruned.bytes / 1e6:.1f} MB freed; {pruned.kept_files} "
            f"stay, for this revision and {pruned.kept_revisions - 1} before it"
        )
    return 0


def _serve(args: argparse.Namespace) -> int:
    from streamsplit.server.chunk_storage import open_storage
    from streamsplit.server.settings import WeightStreamSettings
    from streamsplit.server.weight_app import serve_weights

    settings = WeightStreamSettings(
        memory_mb=args.memory_mb, device_mb_per_s=args.device_mb_per_s, total_mb_per_s=args.total_mb_per_s
    )

    def ready(address: str, port: int) -> None:
        url = f"ws://[{address}]:{port}" if ":" in address else f"ws://{address}:{port}"
        if args.json:
            print_json({"event": "ready", "address": address, "port": port, "url": url})
        else:
            print(f"weights at {url}", flush=True)

    if not 0 <= args.port <= 65535:
        raise ConfigError(f"'--port': got {args.port}, allowed 0..65535")
    storage = open_storage(args.chunks_dir, args.redis_url, settings.memory_mb)
    asyncio.run(serve_weights(storage, address=args.host, port=args.port, settings=settings, on_ready=ready))
    return 0


def _key(args: argparse.Namespace) -> bytes:
    if args.unsigned and (args.signing_key or args.new_key):
        raise ConfigError("got --unsigned and a key to sign with, expected one of them")
    text = "" if args.unsigned else args.signing_key or os.environ.get(KEY_VARIABLE, "")
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b"?"
    if len(key) not in (0, 32):
        raise ConfigError("'--signing-key': got something else, expected 64 hex digits (an Ed25519 seed)")
    return key


class _Progress:
    """A bar on a terminal, lines with --verbose elsewhere."""

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> _Progress:
        if is_terminal():
            from rich.progress import Progress

            self._bar = Progress(console=console(), transient=True)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, total: int, name: str) -> None:
        """Called before every chunk."""
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task("chunks", total=total)
            self._bar.update(self._task, completed=done, description=name)
        elif self._verbose and name:
            console().print(f"{done + 1}/{total} {name}")
