"""`streamsplit data prepare`: a folder of sound becomes a data set with fair splits and a card."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

from streamsplit.cli.console import LOG_LEVELS, print_json, set_up_logging
from streamsplit.errors import ConfigError
from streamsplit.evaluation.data.settings import KINDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions")
    prepare = actions.add_parser("prepare", help="find, check and split the clips of a folder, and describe them")
    prepare.add_argument("source", metavar="SOURCE", type=Path, help="folder with the audio, which stays as it is")
    prepare.add_argument("--output", type=Path, required=True, help="folder for the list of clips and the card")
    prepare.add_argument(
        "--kind", choices=KINDS, default="",
        help="esc: ESC-10/50; audioset: clips beside its list of segments; ondevice: long recordings with annotators' "
        "labels; folder: <label>/*; digits: <digit>_<speaker>_<index> (default: found by looking)",
    )  # fmt: skip
    prepare.add_argument(
        "--classes", default="",
        help="only these, by commas ('esc10' for that subset of ESC-50; quote a name that holds a comma)",
    )  # fmt: skip
    prepare.add_argument("--segments", default="", help="AudioSet's CSV of segments (default: the one in SOURCE)")
    prepare.add_argument(
        "--labels", default="",
        help="recording,start_s,annotator_1,... of long recordings, or AudioSet's class_labels_indices.csv "
        "(default: the one in SOURCE)",
    )  # fmt: skip
    prepare.add_argument("--seconds", type=float, help="length of a long recording's segments (default: 10)")
    prepare.add_argument("--seed", type=int, default=0, help="of what is drawn: parts, balanced clips (default: 0)")
    prepare.add_argument("--balanced", action="store_true", help="as many clips of every class as the smallest has")
    prepare.add_argument("--keep-short", action="store_true", help="keep clips shorter than a window of 1 s")
    prepare.add_argument("--json", action="store_true", help="print the card as one JSON object")
    prepare.add_argument("--log-level", default="WARNING", choices=LOG_LEVELS)


def run(args: argparse.Namespace) -> int:
    """Prepares the data and prints its card."""
    if args.action is None:
        raise ConfigError("got no action, expected `streamsplit data prepare SOURCE --output DIR`")
    from streamsplit.cli.evaluate_policy import Ticker, command_line
    from streamsplit.evaluation.data.card import card_text
    from streamsplit.evaluation.data.prepare import prepare
    from streamsplit.evaluation.data.settings import PrepareSettings

    set_up_logging(args.log_level)
    classes = tuple(
        name.strip() for name in next(csv.reader([args.classes], skipinitialspace=True), []) if name.strip()
    )
    settings = PrepareSettings(
        source=str(args.source), kind=args.kind, classes=classes, segments=_absolute(args.segments),
        labels=_absolute(args.labels), seconds=args.seconds, seed=args.seed, balanced=args.balanced,
        keep_short=args.keep_short,
    )  # fmt: skip
    with Ticker("inspecting") as tick:
        card: dict[str, Any] = prepare(settings, args.output, command=command_line("data"), progress=tick.show)
    if args.json:
        print_json(card | {"output": str(args.output)})
    else:
        print(card_text(card))
        print(f"data set: {args.output}")
    return 0


def _absolute(path: str) -> str:
    """The same file wherever the command is typed; "" stays."""
    return str(Path(path).resolve()) if path else ""
