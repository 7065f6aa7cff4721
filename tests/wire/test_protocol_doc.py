"""docs/protocol.md says what the code does: its tables are the code's, and nothing that it names is missing."""

from __future__ import annotations

import re

import protocol_tables
import pytest

from streamsplit.wire import limits, messages, types
from streamsplit.wire.codes import ERROR_CODES
from streamsplit.wire.frame import HEADER_BYTES
from streamsplit.wire.gradient import GRADIENT_HEADER_BYTES
from streamsplit.wire.media import MEDIA_HEADER_BYTES, MediaHeader
from streamsplit.wire.messages import MESSAGES
from streamsplit.wire.types import FrameType

PAGE = protocol_tables.PAGE.read_text(encoding="utf-8")


def section(name: str) -> str:
    match = re.search(rf"<!-- table: {name} -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)
    assert match is not None, f"docs/protocol.md has no table '{name}'"
    return match[1]


def test_the_tables_on_the_page_are_made_from_the_code():
    assert protocol_tables.filled(PAGE) == PAGE, "run: python tests/wire/protocol_tables.py"


@pytest.mark.parametrize("name", protocol_tables.TABLES)
def test_every_table_is_on_the_page(name):
    assert section(name).count("\n|") >= 2


def test_every_field_of_every_message_has_a_row_with_a_meaning():
    text = section("messages")
    for kind, cls in MESSAGES.items():
        part = text.split(f"#### {kind.name}\n")[1].split("\n#### ")[0]
        for field in cls.__struct_fields__:
            assert re.search(rf"^\| `{field}` \|.*\| \S.* \|$", part, re.MULTILINE), f"{kind.name}.{field}"


def test_every_type_code_and_media_field_has_a_row():
    for kind in FrameType:
        assert f"| {int(kind)} | {kind.name} |" in section("types")
    for code in ERROR_CODES:
        assert f"| `{code}` |" in section("codes")
    for field in MediaHeader._fields:
        assert re.search(rf"\| `{field}` \| \w", section("media")), field


def test_the_offsets_on_the_page_end_where_the_headers_end():
    sizes = {"header": HEADER_BYTES, "media": MEDIA_HEADER_BYTES, "gradient": GRADIENT_HEADER_BYTES}
    for name, size in sizes.items():
        rows = re.findall(r"^\| (\d+) \| [uif](\d+) \|", section(name), re.MULTILINE)
        end = 0
        for offset, bits in rows:
            assert int(offset) == end
            end += int(bits) // 8
        assert end == size


def test_names_in_the_text_exist():
    known = {name for cls in MESSAGES.values() for name in cls.__struct_fields__}
    known |= set(ERROR_CODES) | set(MediaHeader._fields) | set(limits.SessionSettings.__dataclass_fields__)
    known |= {name for name in vars(messages) if not name.startswith("_")} | {"new_frames", "float", "fatal"}
    known |= {"hex", "message", "media", "rest", "payload", "code", "at_ms", "way", "lost"}  # of the vectors
    prose = re.sub(r"<!-- table.*?<!-- end -->|```.*?```", "", PAGE, flags=re.DOTALL)
    for name in re.findall(r"`([a-z]+(?:_[a-z]+)*)`", prose):
        assert name in known, f"`{name}` is neither a field, a setting nor a code"
    for word in re.findall(r"\b[A-Z]{2,}(?:_[A-Z]+)*\b", prose):
        states = {"LOST", "DETACHED", "CLOSED"}
        other = {"PCM16", "JSON", "TCP", "IEEE", "NUMBERED", "FINAL", "REPLAYED", "KiB", "ACKs"}
        other |= {"STARTS", "LEDBAT", "RFC", "HMAC", "API", "UTF", "QUIC", "UDP"}
        assert word in FrameType.__members__ or word in states | other or word in {"PCM", "RESULTs"}, word
    assert types.PROTOCOL_VERSION == 1 and "version 1" in PAGE
