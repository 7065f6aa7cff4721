"""Settings check themselves, and YAML errors name file, line, key and the nearest known key."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.config import Settings, load_settings, nearest, section, setting
from streamsplit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner(Settings):
    learning_rate: float = setting(1e-3, low=0.0, high=1.0)
    batch_size: int = setting(8, low=1)
    name: str = setting("a", choices=("a", "b"))


@dataclass(frozen=True, kw_only=True)
class Outer(Settings):
    enabled: bool = setting(True)
    inner: Inner = section(Inner)
    sizes: tuple[int, ...] = setting((1, 2))
    pair: tuple[float, float] = setting((0.5, 8.0))
    limit: int | None = setting(None, low=0)
    mode: Literal["x", "y"] = "x"
    tokens: dict[str, str] = setting({})

    def check(self) -> None:
        if self.limit == 13:
            raise ConfigError("'limit': got 13, expected luck")


def write(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_empty_file_gives_the_defaults(tmp_path):
    assert load_settings(write(tmp_path, "# nothing\n"), Outer) == Outer()


def test_nested_values_arrive_and_numbers_written_as_yaml_writes_them_are_read(tmp_path):
    path = write(tmp_path, "inner:\n  learning_rate: 1e-4\n  batch_size: 32\nsizes: [3]\npair: [1, 2]\nlimit: 5\n")
    read = load_settings(path, Outer)
    assert read.inner.learning_rate == 1e-4 and read.inner.batch_size == 32
    assert read.sizes == (3,) and read.pair == (1.0, 2.0) and read.limit == 5


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("enabled: true\ninner:\n  lerning_rate: 1\n", 3, ["inner.lerning_rate", "did you mean 'learning_rate'?"]),
        ("\n\nzzz: 1\n", 3, ["unknown key 'zzz'", "known: enabled, inner"]),
        ("inner:\n  batch_size: many\n", 2, ["inner.batch_size", "'many'", "whole number"]),
        ("inner:\n  batch_size: 0\n", 2, ["inner.batch_size", "got 0", ">= 1"]),
        ("inner:\n  batch_size: true\n", 2, ["inner.batch_size", "whole number"]),
        ("inner:\n  batch_size: 1.5\n", 2, ["inner.batch_size", "1.5"]),
        ("inner:\n  learning_rate: fast\n", 2, ["inner.learning_rate", "expected a number"]),
        ("inner:\n  learning_rate: .nan\n", 2, ["inner.learning_rate", "finite"]),
        ("inner:\n  learning_rate: 2\n", 2, ["got 2", "0.0..1.0"]),
        ("inner:\n  name: c\n", 2, ["got 'c'", "allowed a, b"]),
        ("inner: 3\n", 1, ["'inner'", "section"]),
        ("enabled: maybe\n", 1, ["'enabled'", "true or false"]),
        ("sizes: 3\n", 1, ["'sizes'", "list"]),
        ("sizes: [1, x]\n", 1, ["'sizes[1]'", "whole number"]),
        ("pair: [1]\n", 1, ["'pair'", "got 1 values, expected 2"]),
        ("mode: z\n", 1, ["'mode'", "allowed x, y"]),
        ("tokens: [1]\n", 1, ["'tokens'", "mapping"]),
        ("enabled: true\na: [1\n", 3, ["not valid YAML"]),
        ("enabled: true\nlimit: 1\nenabled: false\n", 3, ["'enabled'", "twice", "line 1"]),
        ("inner:\n  name: a\n  batch_size: 2\n  name: b\n", 4, ["'inner.name'", "twice", "line 2"]),
        ("inner: {name: a}\n\ninner: {batch_size: 3}\n", 3, ["'inner'", "twice", "line 1"]),
        ("tokens: {pi: a, nano: b, pi: c}\n", 1, ["'tokens.pi'", "twice", "line 1"]),
        ("inner: &x\n  name: *x\n", 2, ["'inner.name'", "refers to itself"]),
    ],
)
def test_a_mistake_names_file_line_key_and_what_is_allowed(tmp_path, text, line, words):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_settings(path, Outer)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: ")
    for word in words:
        assert word in message


def test_a_key_under_two_parents_and_a_shared_anchor_are_no_duplicates(tmp_path):
    path = write(tmp_path, "tokens: &t\n  limit: a\n  '1': b\n  1: c\nlimit: 3\n")
    assert load_settings(path, Outer).tokens == {"limit": "a", "1": "b", 1: "c"}


def test_a_check_across_fields_is_told_with_the_file(tmp_path):
    with pytest.raises(ConfigError, match=r"c\.yaml: 'limit': got 13, expected luck"):
        load_settings(write(tmp_path, "limit: 13\n"), Outer)


@pytest.mark.parametrize("text", ["[1, 2]\n", "3\n", "just words\n"])
def test_a_file_that_is_not_a_mapping_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match="mapping of sections"):
        load_settings(write(tmp_path, text), Outer)


def test_unreadable_files_are_config_errors(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(tmp_path / "none.yaml", Outer)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_settings(tmp_path / "b.yaml", Outer)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(tmp_path, Outer)


def test_settings_check_on_construction_and_on_replacement():
    with pytest.raises(ConfigError, match="batch_size"):
        Inner(batch_size=0)
    with pytest.raises(ConfigError, match="name"):
        Inner().replace(name="c")
    with pytest.raises(dataclasses.FrozenInstanceError):
        Inner().batch_size = 3  # type: ignore[misc]


def test_a_yaml_tag_cannot_make_objects(tmp_path):
    with pytest.raises(ConfigError):
        load_settings(write(tmp_path, "limit: !!python/object/apply:os.system ['true']\n"), Outer)


def test_settings_survive_a_round_trip_through_plain_values():
    made = Outer(inner=Inner(batch_size=3), sizes=(9,), limit=2)
    assert Outer.from_mapping(made.as_dict()) == made


def test_defaults_of_mappings_are_not_shared():
    assert Outer().tokens is not Outer().tokens


@settings(deadline=None)
@given(st.text(max_size=20), st.lists(st.text(max_size=10), max_size=5))
def test_the_nearest_key_is_always_one_of_the_known(name, known):
    answer = nearest(name, known)
    assert answer.startswith("known:") or any(answer == f"did you mean '{option}'?" for option in known)


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    )
)
def test_any_mapping_gives_settings_or_a_config_error(value):
    for key in ("enabled", "inner", "sizes", "pair", "limit", "mode", "tokens"):
        try:
            Outer.from_mapping({key: value})
        except ConfigError:
            continue
