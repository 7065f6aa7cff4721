"""Parts of a self-contained HTML page: sections, tables, pictures and the page around them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from streamsplit.evaluation import plots


def write_page(path: str | Path, title: str, parts: Sequence[str]) -> Path:
    """Writes the page and returns its path; pictures are inside, nothing is loaded from anywhere."""
    path = Path(path)
    style = resources.files("streamsplit.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{style}</style><main>" + "\n".join(parts) + "</main></html>",
        encoding="utf-8",
    )
    return path


def heading(title: str, sub: str, tiles: Sequence[tuple[str, str]] = ()) -> str:
    """The top of the page: title, one line under it, and figures with what they are."""
    cells = "".join(f'<div class="tile"><b>{html.escape(a)}</b><span>{html.escape(b)}</span></div>' for a, b in tiles)
    return f'<h1>{html.escape(title)}</h1><p class="sub">{html.escape(sub)}</p><div class="tiles">{cells}</div>'


def section(title: str, *parts: str) -> str:
    """A titled part of the page."""
    return f"<h2>{html.escape(title)}</h2>" + "".join(parts)


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{html.escape(text)}</p>"


def picture(figure: Any, caption: str) -> str:
    """A matplotlib figure with its caption, embedded."""
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="{plots.as_data_uri(figure)}"><figcaption>{text}</figcaption></figure>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], kinds: Sequence[str] = ()) -> str:
    """A table of text; `kinds` are CSS classes of the rows."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        f'<tr class="{html.escape(kinds[index]) if kinds else ""}">'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        + "</tr>"
        for index, row in enumerate(rows)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
