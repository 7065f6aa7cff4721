"""Settings: frozen keyword-only dataclasses that check themselves, and the strict YAML loader for them."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from streamsplit.errors import ConfigError

S = TypeVar("S", bound="Settings")


def setting(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """A dataclass field with an allowed range (inclusive) or a set of choices, checked on construction."""
    metadata = {"low": low, "high": high, "choices": choices}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(kind: type[S]) -> Any:
    """A nested settings field whose default is `kind()`."""
    return field(default_factory=kind)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of every settings class; subclasses are frozen, keyword-only and declare fields with `setting`."""

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            converted = _convert(value, hints[item.name], item.name)
            if converted is not value:
                object.__setattr__(self, item.name, converted)
            _check_range(item.name, converted, item.metadata)
        self.check()

    def check(self) -> None:
        """Checks across fields; raise ConfigError with what was got and what is allowed."""

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dict, as saved beside results."""
        return dataclasses.asdict(self)

    def replace(self: S, **changes: Any) -> S:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_mapping(cls: type[S], values: Mapping[str, Any]) -> S:
        """Builds from a nested mapping, refusing unknown keys with the nearest known one."""
        return _build(cls, values, "", {}, "")


def load_settings(path: str | Path, kind: type[S]) -> S:
    """Reads a YAML file into `kind`; errors name file, line, key and the nearest known key."""
    try:
        import yaml
    except ImportError as error:  # pragma: no cover - yaml is in the base install
        raise ConfigError(f"reading {path} needs PyYAML: pip install pyyaml") from error
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}); give an existing YAML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text; give a YAML file") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', None) or error})") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}:1: got a {type(values).__name__}, expected a mapping of sections")
    lines: dict[str, int] = {}
    _collect_lines(node, "", lines, str(path))
    return _build(kind, values, "", lines, str(path))


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """' (did you mean ...?)' for the closest known name, or the list of what is known."""
    options = list(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return "known: " + ", ".join(sorted(options))


def _collect_lines(node: Any, prefix: str, lines: dict[str, int], path: str, above: tuple[Any, ...] = ()) -> None:
    """The line of every key by its full name; refuses a key given twice, of which YAML would keep the last."""
    if type(node).__name__ != "MappingNode":
        return
    first: dict[tuple[str, str], int] = {}
    for key, value in node.value:
        name, line = f"{prefix}{key.value}", key.start_mark.line + 1
        identity = (key.tag, str(key.value))  # 1 and "1" are two keys
        if identity in first:
            raise ConfigError(
                f"{path}:{line}: key '{name}' is given twice, here and on line {first[identity]}; keep one of the two"
            )
        if value is node or value in above:
            raise ConfigError(f"{path}:{line}: '{name}' refers to itself; write its values out")
        first[identity] = lines[name] = line
        _collect_lines(value, f"{name}.", lines, path, (*above, node))


def _build(cls: type[S], values: Mapping[str, Any], prefix: str, lines: Mapping[str, int], source: str) -> S:
    known = {item.name: item for item in dataclasses.fields(cls)}
    hints = _hints(cls)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        full = f"{prefix}{key}"
        where = _where(source, lines, full)
        if key not in known:
            raise ConfigError(f"{where}unknown key '{full}'; {nearest(str(key), known)}")
        hint = hints[key]
        if isinstance(hint, type) and issubclass(hint, Settings) and not isinstance(value, Settings):
            if value is None:
                value = {}
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}'{full}': got {value!r}, expected a section with keys")
            arguments[key] = _build(hint, value, f"{full}.", lines, source)
            continue
        try:
            converted = _convert(value, hint, full)
            _check_range(full, converted, known[key].metadata)
        except ConfigError as error:
            raise ConfigError(f"{where}{error}") from None
        arguments[key] = converted
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{_where(source, lines, prefix.rstrip('.'))}{error}") from None


def _where(source: str, lines: Mapping[str, int], key: str) -> str:
    if not source:
        return ""
    return f"{source}:{lines[key]}: " if key in lines else f"{source}: "


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _convert(value: Any, hint: Any, name: str) -> Any:
    """Checks `value` against a simple type hint; the only conversions are int -> float and '1e-4' -> float."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        failure: ConfigError | None = None
        for option in (o for o in options if o is not type(None)):
            try:
                return _convert(value, option, name)
            except ConfigError as error:
                failure = failure or error
        raise failure or ConfigError(f"'{name}': got {value!r}")
    if origin is typing.Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            raise ConfigError(f"'{name}': got {value!r}, allowed {', '.join(map(str, allowed))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"'{name}': got {value!r}, expected a list")
        arguments = typing.get_args(hint)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_convert(v, arguments[0], f"{name}[{i}]") for i, v in enumerate(value))
        if len(value) != len(arguments):
            raise ConfigError(f"'{name}': got {len(value)} values, expected {len(arguments)}")
        return tuple(_convert(v, a, f"{name}[{i}]") for i, (v, a) in enumerate(zip(value, arguments, strict=True)))
    if origin in (dict, Mapping) or origin is not None:
        if origin is dict and not isinstance(value, dict):
            raise ConfigError(f"'{name}': got {value!r}, expected a mapping")
        return value
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ConfigError(f"'{name}': got {value!r}, expected a number")
        try:  # YAML 1.1 reads 1e-4 as a string
            number = float(value)
        except ValueError:
            raise ConfigError(f"'{name}': got {value!r}, expected a number") from None
        if not math.isfinite(number):
            raise ConfigError(f"'{name}': got {value!r}, expected a finite number")
        return number if not isinstance(value, float) else value
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"'{name}': got {value!r}, expected a whole number")
        return value
    if hint is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"'{name}': got {value!r}, expected true or false")
        return value
    if hint is str:
        if not isinstance(value, str):
            raise ConfigError(f"'{name}': got {value!r}, expected text")
        return value
    if isinstance(hint, type) and not isinstance(value, hint):
        raise ConfigError(f"'{name}': got {value!r}, expected {hint.__name__}")
    return value


def _check_range(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    if value is None:
        return
    choices = metadata.get("choices")
    if choices is not None and value not in choices:
        raise ConfigError(f"'{name}': got {value!r}, allowed {', '.join(map(str, choices))}")
    low, high = metadata.get("low"), metadata.get("high")
    if (low is not None and value < low) or (high is not None and value > high):
        allowed = f"{low}..{high}" if None not in (low, high) else f">= {low}" if high is None else f"<= {high}"
        raise ConfigError(f"'{name}': got {value}, allowed {allowed}")
