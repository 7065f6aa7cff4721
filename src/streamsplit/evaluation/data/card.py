"""The data card: what a prepared data set holds, whose it is, and what was left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamsplit.evaluation.data.settings import PARTS, Found, LeftOut, PrepareSettings
from streamsplit.evaluation.datasets import Clip

EXAMPLES = 10  # of names left out, a reason; all are in left_out.csv
_LICENCE_FILE = re.compile(r"^(licen[cs]e|copying|attribution)", re.IGNORECASE)
_LICENCE_LINE = re.compile(r"licen[cs]e|creative commons|\bCC[ -]?(BY|0)\b|public domain", re.IGNORECASE)
_README = re.compile(r"^readme", re.IGNORECASE)


def side_of(clip: Clip) -> str:
    """'fold 3' or 'train'."""
    return clip.part or f"fold {clip.fold}"


def make_card(
    clips: Sequence[Clip], found: Found, left_out: Sequence[LeftOut], kind: str, settings: PrepareSettings
) -> dict[str, Any]:
    """Everything of the card that the data says, ready for JSON; what was run is added by who ran it."""
    order = list(PARTS)
    held = sorted(
        {(clip.fold or 0, order.index(clip.part) if clip.part in order else 0, side_of(clip)) for clip in clips}
    )
    labels, sides = sorted({clip.label for clip in clips}), [side for _, _, side in held]
    rates = Counter(clip.rate_hz or 0 for clip in clips)
    return {
        "kind": kind,
        "source": settings.source,
        "settings": settings.as_dict(),
        "seed": settings.seed,
        **_summary(clips),
        "classes": {label: _summary([c for c in clips if c.label == label]) for label in labels},
        "parts": {
            side: _summary([clip for clip in clips if side_of(clip) == side])
            | {"classes": dict(sorted(Counter(clip.label for clip in clips if side_of(clip) == side).items()))}
            for side in sides
        },
        "sample_rates_hz": {str(rate): count for rate, count in sorted(rates.items())},
        "licence": find_licence(Path(settings.source)),
        "left_out": _reasons(left_out),
        "facts": found.facts,
        "warnings": _warnings(clips, labels, sides, rates),
    }


def find_licence(root: Path) -> dict[str, Any]:
    """Licence and attribution files of a folder, and the first line about a licence in its README.

    The README beside the folder counts for lines that name the folder.
    """
    files = sorted(path.name for path in root.iterdir() if path.is_file() and _LICENCE_FILE.match(path.name))
    lines = _readme_lines(root, "") or _readme_lines(root.parent, root.name)
    return {"found": bool(files or lines), "files": files, "readme": lines[0][:300] if lines else ""}


def card_text(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    licence = card["licence"]
    words = [*licence["files"], *([licence["readme"]] if licence["readme"] else [])]
    lines = [
        f"# Data card: {Path(card['source']).name}",
        "",
        f"{card['clips']} clips, {card['hours']:.2f} h, {len(card['classes'])} classes, {card['sources']} source "
        f"recordings; kind `{card['kind']}`, seed {card['seed']}.",
        "",
        f"- Licence: {'; '.join(words) if words else 'missing: no licence file or README line was found'}.",
        f"- Sample rates: {', '.join(f'{hz} Hz ({count})' for hz, count in card['sample_rates_hz'].items())}.",
        *[f"- {name[0].upper()}{name[1:]}: {value}." for name, value in card["facts"].items()],
        *[f"- Note: {text}." for text in card["warnings"]],
        "",
    ]
    lines += _table("part", card["parts"]) + _table("class", card["classes"])
    if card["left_out"]:
        lines += ["| left out because | count | such as |", "|---|---|---|"]
        lines += [
            f"| {reason} | {held['count']} | {', '.join(held['examples'][:3])} |"
            for reason, held in card["left_out"].items()
        ]
    else:
        lines += ["Nothing was left out."]
    lines += ["", f"Made by `{card['command']}` with {card['code']}.", ""]
    return "\n".join(lines)


def _summary(clips: Sequence[Clip]) -> dict[str, Any]:
    return {
        "clips": len(clips),
        "hours": round(sum(clip.duration_s or 0.0 for clip in clips) / 3600.0, 4),
        "sources": len({clip.source for clip in clips}),
        "sessions": len({clip.session or clip.source for clip in clips}),
    }


def _reasons(left_out: Sequence[LeftOut]) -> dict[str, Any]:
    counts = Counter(item.reason for item in left_out)
    return {
        reason: {"count": count, "examples": [item.name for item in left_out if item.reason == reason][:EXAMPLES]}
        for reason, count in counts.most_common()
    }


def _warnings(clips: Sequence[Clip], labels: list[str], sides: list[str], rates: Counter[int]) -> list[str]:
    found = []
    if len(rates) > 1:
        found.append("mixed sample rates: every clip is resampled when it is read")
    present = {(side_of(clip), clip.label) for clip in clips}
    for side in sides:
        missing = [label for label in labels if (side, label) not in present]
        if missing:
            found.append(f"{side} has no clip of {', '.join(missing)}")
    return found


def _readme_lines(folder: Path, naming: str) -> list[str]:
    lines = []
    for path in sorted(path for path in folder.iterdir() if path.is_file() and _README.match(path.name)):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if _LICENCE_LINE.search(line) and naming in line and not line.startswith("| folder"):
                lines.append(line.strip("#|* \t").replace("|", "-"))
    return lines


def _table(name: str, rows: dict[str, Any]) -> list[str]:
    head = [f"| {name} | clips | hours | sources | sessions |", "|---|---|---|---|---|"]
    body = [
        f"| {key} | {row['clips']} | {row['hours']:.3f} | {row['sources']} | {row['sessions']} |"
        for key, row in rows.items()
    ]
    return [*head, *body, ""]
