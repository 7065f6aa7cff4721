"""Where the commands write: logs and live tables to stderr, results to stdout."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_console: Console | None = None


def console() -> Console:
    """The one console on stderr: log lines and a live table on it do not overwrite each other."""
    global _console
    if _console is None or _console.file is not sys.stderr:
        _console = Console(stderr=True, highlight=False)
        _console.file = sys.stderr
    return _console


def set_up_logging(level: str) -> None:
    """Sends every log record to stderr, once: above a live table on a terminal, as plain lines otherwise."""
    root = logging.getLogger()
    root.setLevel(level)
    for old in [handler for handler in root.handlers if getattr(handler, "streamsplit", False)]:
        root.removeHandler(old)
    handler: logging.Handler
    if is_terminal():
        from rich.logging import RichHandler

        handler = RichHandler(console=console(), show_path=False, rich_tracebacks=False, omit_repeated_times=False)
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.streamsplit = True  # type: ignore[union-attr]
    root.addHandler(handler)


def is_terminal() -> bool:
    """True where a live table can be drawn."""
    return console().is_terminal and not console().is_dumb_terminal


def print_json(values: Mapping[str, Any]) -> None:
    """One JSON object on stdout, a line; numbers that JSON does not have become null."""
    json.dump(_finite(values), sys.stdout, separators=(",", ":"))
    sys.stdout.write("\n")
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value


def on_enter(loop: asyncio.AbstractEventLoop, pressed: Callable[[], None]) -> None:
    """Has Enter at the terminal call `pressed`; without a terminal nothing does."""

    def read() -> None:
        if sys.stdin.readline():
            pressed()
        else:  # the terminal is gone
            loop.remove_reader(sys.stdin)

    if sys.stdin.isatty():
        loop.add_reader(sys.stdin, read)
