"""The tables of docs/protocol.md, made from the code: `python tests/wire/protocol_tables.py` writes them into the page.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; everything else on the page is written by hand.
"""

from __future__ import annotations

import inspect
import re
import struct
from collections.abc import Callable
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import msgspec

from streamsplit.wire import frame, gradient, limits, media, messages, outbox, types
from streamsplit.wire.codes import ERROR_CODES
from streamsplit.wire.media import Encoding, MediaHeader
from streamsplit.wire.messages import MESSAGES
from streamsplit.wire.states import CLIENT_TABLE, SERVER_TABLE, ClientState, ServerState
from streamsplit.wire.talk_states import TALK_TABLE, TalkState
from streamsplit.wire.types import FrameFlag, FrameType

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
_PLAIN = {"bool": "bool", "float": "float", "bytes": "bytes"}
_SIZES = {"b": "i8", "B": "u8", "H": "u16", "I": "u32", "e": "f16"}


def table(head: str, rows: list[tuple[Any, ...]]) -> str:
    """A Markdown table; `head` is 'a | b | c'."""
    columns = [column.strip() for column in head.split("|")]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines)


def comments(kind: type) -> dict[str, str]:
    """Name to trailing comment for the fields or members of a class."""
    found = re.findall(r"^    (\w+)(?::| =)[^#\n]*?(?:  # (.*))?$", inspect.getsource(kind), re.MULTILINE)
    return {name: comment.strip() for name, comment in found}


def layout(format_: str, names: list[str]) -> list[tuple[int, str, str]]:
    """(offset, size, name) of a packed little-endian struct."""
    rows, offset = [], 0
    for letter, name in zip(format_.lstrip("<"), names, strict=True):
        rows.append((offset, _SIZES[letter], f"`{name}`"))
        offset += struct.calcsize("<" + letter)
    return rows


def header_table() -> str:
    meaning = {
        "version": f"{types.PROTOCOL_VERSION}; checked first",
        "type": "see Frame types",
        "flags": "see Flags; unknown bits are refused",
        "reserved": "0",
        "sequence": "numbered frames: 1, 2, 3, ...; DIALOGUE: its own counter; otherwise 0",
        "timestamp_ms": "windows: capture time of the window's end; otherwise the sender's clock; modulo 2^32",
        "payload_length": "bytes that follow; checked against the type's limit before anything is allocated",
    }
    rows = layout(frame._HEADER.format, list(meaning))
    return table("offset | size | field | meaning", [(*row, meaning[row[2].strip("`")]) for row in rows])


def type_table() -> str:
    rows = []
    for kind in FrameType:
        up, down = kind in types.UPLINK_TYPES, kind in types.DOWNLINK_TYPES
        way = "both" if up and down else "up" if up else "down"
        marks = [
            word
            for word, group in (
                ("numbered", types.NUMBERED_TYPES),
                ("latest wins", types.LATEST_WINS_TYPES),
                ("optional", types.OPTIONAL_TYPES),
            )
            if kind in group
        ]
        payload = "media" if kind in types.MEDIA_TYPES else f"message {MESSAGES[kind].__name__}"
        limit = types.PAYLOAD_LIMITS[kind]
        rows.append((int(kind), kind.name, way, types.PRIORITY[kind].name.lower(), limit, payload, ", ".join(marks)))
    return table("value | type | way | priority | payload limit | payload | remarks", rows)


def flag_table() -> str:
    notes = comments(FrameFlag)
    return table("bit | flag | meaning", [(f.value, f.name, notes[f.name or ""]) for f in FrameFlag if f.value])


def media_table() -> str:
    return fields_table(media._LAYOUT.format, MediaHeader)


def gradient_table() -> str:
    return fields_table(gradient._LAYOUT.format, gradient.GradientHeader)


def fields_table(form: str, header: type[MediaHeader] | type[gradient.GradientHeader]) -> str:
    notes = comments(header)
    rows = layout(form, list(header._fields))
    return table(
        "offset | size | field | meaning", [(*row, notes[row[2].strip("`")].partition(", ")[2]) for row in rows]
    )


def encoding_table() -> str:
    return table("value | encoding", [(int(e), f"`{e.label}`") for e in Encoding])


def value_table() -> str:
    rows = []
    for name, alias in vars(messages).items():
        meta = next((m for m in get_args(alias) if isinstance(m, msgspec.Meta)), None)
        if meta is None:
            continue
        kind = get_args(alias)[0].__name__
        bounds = []
        if meta.ge is not None:
            bounds.append(f"{meta.ge} to {meta.le}")
        if meta.max_length is not None:
            bounds.append(f"at most {meta.max_length} {'bytes' if kind == 'bytes' else 'characters'}")
        if meta.pattern is not None:
            bounds.append(f"matches `{meta.pattern}`")
        rows.append((name, kind, ", ".join(bounds)))
    return table("name | MessagePack type | allowed", rows)


def _type_text(annotation: str) -> str:
    if annotation in _PLAIN or hasattr(messages, annotation):
        return annotation
    bounded = re.fullmatch(r"Annotated\[(\w+), Meta\(max_length=(\d+)\)\]", annotation)
    if bounded is None:
        raise ValueError(f"no description of {annotation}")
    return f"{bounded[1]}, at most {bounded[2]} characters"


def _default(value: Any) -> str:
    if isinstance(value, bytes):
        return "empty"
    if isinstance(value, float) and value != value:
        return "NaN"
    return f"`{value!r}`".replace("'", '"')


def message_tables() -> str:
    parts = []
    for kind, cls in MESSAGES.items():
        notes = comments(cls)
        rows = []
        for field in msgspec.structs.fields(cls):
            default = "required" if field.required else _default(field.default)
            annotation = cls.__annotations__[field.name]
            rows.append((f"`{field.encode_name}`", _type_text(annotation), default, notes[field.name]))
        parts.append(f"#### {kind.name}\n\n{inspect.getdoc(cls)}\n\n" + table("field | type | default | meaning", rows))
    return "\n\n".join(parts)


def _state_table(states: type[Enum], moves: dict[Any, Any]) -> str:
    names = table("state | meaning", [(s.name, s.value) for s in states])
    kinds = {type(happened) for _, happened in moves}
    used = [i for kind in kinds for i in kind if any(happened is i for _, happened in moves)]
    rows = []
    for happened in used:
        cells = [moves[s, happened].name if (s, happened) in moves else "" for s in states]
        rows.append((f"{happened.name}: {happened.value}", *cells))
    return names + "\n\n" + table(" | ".join(["input", *(s.name for s in states)]), rows)


def client_table() -> str:
    return _state_table(ClientState, CLIENT_TABLE)


def server_table() -> str:
    return _state_table(ServerState, SERVER_TABLE)


def talk_table() -> str:
    return _state_table(TalkState, TALK_TABLE)


def code_table() -> str:
    def yes(flag: bool) -> str:
        return "yes" if flag else "no"

    return table(
        "code | fatal | try again | meaning",
        [(f"`{code}`", yes(e.fatal), yes(e.retry) if e.fatal else "", e.meaning) for code, e in ERROR_CODES.items()],
    )


def limit_table() -> str:
    rows = [
        (types.MAX_FRAME_BYTES, "payload of any frame"),
        (types.MAX_MESSAGE_BYTES, "payload of any frame before WELCOME, and of a control message"),
        (types.MAX_CHUNK_BYTES, "payload of one WEIGHTS chunk"),
        (types.MAX_GMM_BYTES, "payload of one GMM or PROTOTYPES"),
        (types.MAX_POLICY_FILE_BYTES, "payload of one POLICY_FILE"),
        (types.MAX_SEQUENCE, "sequence; then a new epoch begins"),
        (outbox.MAX_CONTROL_FRAMES, "control frames waiting to be read by the peer; then `slow_peer`"),
        (outbox.MAX_BULK_BYTES, "bulk bytes waiting; more is not taken"),
        (outbox.MAX_OTHER_BYTES, "bytes waiting at each other priority; more is not taken"),
    ]
    return table("limit | of", rows)


def setting_table() -> str:
    notes, client = comments(limits.SessionSettings), limits.CLIENT_SETTINGS
    rows = []
    for item in fields(limits.SessionSettings):
        own = getattr(client, item.name)
        rows.append((f"`{item.name}`", item.default, own if own != item.default else "", notes[item.name]))
    return table("setting | default | device's default | meaning", rows)


TABLES: dict[str, Callable[[], str]] = {
    "header": header_table,
    "types": type_table,
    "flags": flag_table,
    "media": media_table,
    "encodings": encoding_table,
    "gradient": gradient_table,
    "values": value_table,
    "messages": message_tables,
    "device states": client_table,
    "server states": server_table,
    "dialogue states": talk_table,
    "codes": code_table,
    "limits": limit_table,
    "settings": setting_table,
}


def filled(page: str) -> str:
    """The page with every table as the code has it; raises KeyError on an unknown name."""

    def fill(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table: ([\w ]+) -->\n.*?<!-- end -->", fill, page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE}: {len(TABLES)} tables written")
