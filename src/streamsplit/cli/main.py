"""The command `streamsplit`: picks the subcommand, loads only its module, turns errors into one line and a code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from streamsplit import __version__
from streamsplit.errors import MissingExtraError, StreamSplitError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
COMMANDS = {
    "demo": "one server and three devices on this machine, from first sound to report",
    "server": "take in devices, complete their windows, learn, send back",
    "edge": "listen, learn and stream as one device",
    "talk": "speak with a server that answers",
    "measure-latency": "how late an echo is heard, stage by stage",
    "opus-test": "what lost packets cost a recording, with and without forward error correction",
    "devices": "the microphones and loudspeakers of this machine",
    "profile": "measure what every cut costs on this machine",
    "data": "make folders of sound into data sets: fair splits, a card, nothing copied",
    "codec": "train TinyStream, a codec for microcontrollers, and code files with it",
    "weights": "stream a transformer model's weights to devices that do not store it: chunk, serve",
    "export-onnx": "write an encoder as ONNX, whole or cut in two, and check it against torch",
    "pretrain": "learn an encoder from folders of sound, without labels, to start from",
    "train-policy": "train the policy that chooses cuts, by PPO in simulation",
    "evaluate": "compare ways to learn an embedding, baselines included, on labelled sound",
    "evaluate-policy": "compare policies on links that none of them has seen",
    "simulate-network": "a mobile link over time: its figures, files, and live traffic shaped by it",
}
EXTRAS = {
    "torch": "learn", "starlette": "server", "uvicorn": "server", "prometheus_client": "server", "sklearn": "server",
    "matplotlib": "server", "sounddevice": "mic", "av": "media", "gymnasium": "train", "stable_baselines3": "train",
    "scipy": "server", "pystoi": "codec", "pesq": "codec", "onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx",
    "transformers": "weights", "zstandard": "weights", "cryptography": "weights",
    "obstore": "storage", "redis": "storage",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; gives the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(_chosen(arguments))
    try:
        parsed = parser.parse_args(arguments)
        if parsed.command is None:
            parser.print_help()
            return 2
        code = _command(parsed.command).run(parsed)
        sys.stdout.flush()
    except StreamSplitError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        missing = MissingExtraError(f"'{parsed.command}'", extra, str(error))
        return _fail(str(missing), missing.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 1)
    return int(code or 0)


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """The whole parser, with only the chosen command's options filled in: the others' modules stay unloaded."""
    parser = argparse.ArgumentParser(
        prog="streamsplit", description="Audio devices that listen, learn and stream together with a server.",
        epilog="streamsplit COMMAND --help shows a command's options.",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"streamsplit {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name == chosen:
            _command(name).add_arguments(command)
    return parser


def _chosen(arguments: Sequence[str]) -> str | None:
    """The first word that is not an option: the top level has no option that takes a value."""
    return next((word for word in arguments if not word.startswith("-")), None)


def _command(name: str) -> ModuleType:
    return importlib.import_module(f"streamsplit.cli.{name.replace('-', '_')}")


def _fail(text: str, code: int) -> int:
    print(f"streamsplit: error: {' '.join(text.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
