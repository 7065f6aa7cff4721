"""Error codes: one list, and every code that the source raises or sends is in it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from streamsplit.wire.codes import ERROR_CODES, may_retry
from streamsplit.wire.events import Closed

SOURCE = Path(__file__).parents[2] / "src" / "streamsplit"


def codes_in(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Literal codes in ProtocolError("..."), reject("..."), fail("..."), Error(code="...") and Refusal("...")."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name in ("ProtocolError", "reject", "fail", "Refusal") and node.args:
            candidates = [node.args[0]]
        elif name in ("Error", "Refusal"):
            candidates = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
        else:
            continue
        for candidate in candidates:
            if isinstance(candidate, ast.Constant) and isinstance(candidate.value, str):
                yield candidate.value, node.lineno


def test_every_code_in_the_source_is_listed():
    seen = set()
    for path in sorted(SOURCE.rglob("*.py")):
        for code, line in codes_in(ast.parse(path.read_text(encoding="utf-8"))):
            assert code in ERROR_CODES, f"{path.relative_to(SOURCE)}:{line}: '{code}' is not in wire/codes.py"
            seen.add(code)
    assert len(seen) > 20  # the search finds them


def test_codes_are_names_and_meanings_are_sentences():
    for code, entry in ERROR_CODES.items():
        assert re.fullmatch(r"[a-z0-9_]{1,64}", code)
        assert len(entry.meaning) > 10


def test_a_device_gives_up_only_where_trying_again_is_pointless():
    assert not may_retry("bad_token") and not may_retry("bad_version") and may_retry("internal")
    assert may_retry("a_code_of_the_future")
    assert Closed("the peer said goodbye", False, "bye").retry and not Closed("who?", True, "bad_token").retry
    assert Closed("silence", False, "timeout").retry
