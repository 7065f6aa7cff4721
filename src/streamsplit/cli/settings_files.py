"""Settings files as the commands read them: one that was meant for the other end says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from streamsplit.config import Settings, load_settings
from streamsplit.edge.settings import EdgeSettings
from streamsplit.errors import ConfigError

if TYPE_CHECKING:
    from streamsplit.server.settings import ServerSettings

S = TypeVar("S", bound=Settings)


def load_server_settings(path: Path) -> ServerSettings:
    """The server's settings; raises ConfigError."""
    from streamsplit.server.settings import ServerSettings

    return _load(
        path, ServerSettings, EdgeSettings, "a device's file", "a server's", f"streamsplit edge --config {path}"
    )


def load_device_settings(path: Path) -> EdgeSettings:
    """A device's settings; raises ConfigError."""
    try:
        return load_settings(path, EdgeSettings)
    except ConfigError:
        from streamsplit.server.settings import ServerSettings

        command = f"streamsplit server --config {path}"
        return _load(path, EdgeSettings, ServerSettings, "a server's file", "a device's", command)


def _load(path: Path, kind: type[S], other: type[Settings], found: str, expected: str, command: str) -> S:
    try:
        return load_settings(path, kind)
    except ConfigError:
        sections = _sections_of(path, other, kind)
        if not sections or _sections_of(path, kind, other):
            raise
        raise ConfigError(
            f"{path}: looks like {found} (it has '{sections[0]}'), expected {expected}; use it with `{command}`"
        ) from None


def _sections_of(path: Path, kind: type[Settings], other: type[Settings]) -> list[str]:
    """The file's top-level keys that only `kind` has, or has as a section where `other` has a single value."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return []
    names, known = _names(kind), _names(other)
    items = values.items() if isinstance(values, dict) else ()
    return [
        key for key, value in items
        if key in names and (key not in known or (known[key] != names[key] and names[key] == isinstance(value, dict)))
    ]  # fmt: skip


def _names(kind: type[Settings]) -> dict[str, bool]:
    """Top-level keys, and whether each is a section."""
    made = kind()
    return {item.name: isinstance(getattr(made, item.name), Settings) for item in dataclasses.fields(made)}
