"""Published files: what is written comes back exactly, everything else is refused, and both ends start from one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from streamsplit.config import load_settings
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.errors import CheckpointError, ConfigError, RevisionError
from streamsplit.weights import pretrained
from streamsplit.weights.pretrained import (
    StartSettings,
    is_published,
    pack_pretrained,
    pretrained_encoder,
    pretrained_file,
    read_pretrained,
    start_encoder,
)
from streamsplit.weights.revision import encoder_weights, revision_of

SETTINGS = EncoderSettings(width=0.25, seed=3)
CARD = {
    "name": "small", "licence": "CC BY 4.0", "data": "none", "hours": 0.0, "command": "none", "commit": "0" * 7,
    "metrics": {"probe": 0.5},
}  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("published") / "small.safetensors"
    path.write_bytes(pack_pretrained(encoder_weights(make_encoder(SETTINGS)), SETTINGS, CARD)[0])
    return path


def test_what_was_written_comes_back_rounded_to_half_precision(published: Path) -> None:
    found = read_pretrained(published)
    assert found.card == CARD and found.settings.width == 0.25 and found.settings.seed == 3
    given = encoder_weights(make_encoder(SETTINGS))
    for name, array in given.items():
        assert np.array_equal(found.weights[name], array.astype(np.float16).astype(np.float32))
    encoder = pretrained_encoder(found)
    assert revision_of(encoder_weights(encoder)) == found.revision and not encoder.training


def test_the_file_is_plain_safetensors_in_half_precision_with_everything_in_its_header(published: Path) -> None:
    assert {array.dtype for array in load_file(published).values()} == {np.dtype(np.float16)}
    with safe_open(str(published), "np") as file:
        record = json.loads(file.metadata()["streamsplit"])
    assert json.loads(record["card"]) == CARD and json.loads(record["settings"])["name"] == "mobilenet"
    parameters = sum(array.size for array in encoder_weights(make_encoder(SETTINGS)).values())
    assert 2 * parameters < published.stat().st_size < 2 * parameters + 40_000


def test_defaults_that_change_later_do_not_change_a_published_encoder(published: Path) -> None:
    assert read_pretrained(published).settings.bottlenecks == (2, 5, 8, 10)


def damaged(data: bytes) -> bytes:
    """One bit of a weight flipped, which safetensors alone would not notice."""
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[: len(data) // 2], "damaged"),
        (damaged, "hash to"),
        (lambda data: b"", "0 bytes"),
        (lambda data: b"RIFF" + data, "header"),
        (lambda data: data.replace(b'"width\\\\\\": 0.25', b'"width\\\\\\": 9.25'), "9.25"),
        (lambda data: data.replace(b'hours\\\\\\"', b'weeks\\\\\\"'), "hours"),
    ],
    ids=["cut short", "one bit", "empty", "foreign", "settings", "card"],
)
def test_damaged_and_foreign_files_are_one_clear_error(published: Path, tmp_path: Path, change, words: str) -> None:
    data = published.read_bytes()
    assert change(data) != data
    path = tmp_path / "bad.safetensors"
    path.write_bytes(change(data))
    with pytest.raises(CheckpointError, match=words) as caught:
        read_pretrained(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_other_safetensors_files_are_told_from_published_ones(published: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, plain)
    with pytest.raises(CheckpointError, match=r"plain\.safetensors"):
        read_pretrained(plain)
    assert is_published(published) and not is_published(plain) and not is_published(tmp_path / "none")


def test_names_and_paths_are_told_apart_and_missing_ones_say_what_there_is(
    published: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(pretrained, "PACKAGED", published.parent)
    assert pretrained_file("small") == published and read_pretrained("small").card == CARD
    assert pretrained_file("other.safetensors") == Path("other.safetensors")
    with pytest.raises(CheckpointError, match=re.escape("got 'tiny', expected a packaged encoder (here: small)")):
        read_pretrained("tiny")
    with pytest.raises(CheckpointError, match="No such file"):
        read_pretrained(tmp_path / "none.safetensors")


def test_weights_of_another_layout_are_refused_in_writing_and_in_reading(published: Path) -> None:
    weights = encoder_weights(make_encoder(SETTINGS))
    with pytest.raises(RevisionError, match="expected"):
        pack_pretrained(weights, EncoderSettings(width=0.5), CARD)
    found = read_pretrained(published)
    with pytest.raises(CheckpointError, match="another architecture than mobilenet"):
        pretrained_encoder(found._replace(settings=EncoderSettings(width=0.5)))
    first = next(iter(weights))
    for value in (np.nan, 1e6):  # the second is beyond half precision
        with pytest.raises(RevisionError, match=re.escape(first)):
            pack_pretrained(weights | {first: np.full_like(weights[first], value)}, SETTINGS, CARD)


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({name: value for name, value in CARD.items() if name != "licence"}, "licence"),
        (CARD | {"metrics": 0.9}, "card.metrics"),
        (CARD | {"extra": object()}, "JSON"),
        (CARD | {"hours": float("nan")}, "JSON"),
        ([], "list"),
    ],
)
def test_a_card_that_does_not_say_enough_is_refused(card, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        pack_pretrained(encoder_weights(make_encoder(SETTINGS)), SETTINGS, card)


def test_an_encoder_starts_from_its_seed_or_from_a_published_file(published: Path) -> None:
    from_seed = start_encoder(StartSettings(width=0.25, seed=3))
    assert revision_of(encoder_weights(from_seed)) == revision_of(encoder_weights(make_encoder(SETTINGS)))
    settings = StartSettings(seed=9).starting_from(str(published))
    assert (settings.width, settings.pretrained, settings.first_space) == (0.25, str(published), 1)
    assert revision_of(encoder_weights(start_encoder(settings))) == read_pretrained(published).revision
    assert StartSettings().first_space == 0


def test_settings_of_another_architecture_than_the_file_say_which_to_change(published: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape("'encoder.width': got 0.75, expected 0.25")):
        start_encoder(StartSettings(pretrained=str(published)))


def test_settings_files_of_both_ends_can_name_a_published_encoder(published: Path, tmp_path: Path) -> None:
    from streamsplit.edge.settings import EdgeSettings
    from streamsplit.server.settings import ServerSettings

    path = tmp_path / "both.yaml"
    path.write_text(f"encoder:\n  width: 0.25\n  pretrained: {published}\n")
    server, device = load_settings(path, ServerSettings), load_settings(path, EdgeSettings)
    ends = [start_encoder(server.encoder), start_encoder(device.encoder)]
    assert len({revision_of(encoder_weights(encoder)) for encoder in ends}) == 1


def test_a_device_alone_does_not_fit_a_published_projection_anew(published: Path) -> None:
    from streamsplit.edge.settings import EdgeSettings

    alone = EdgeSettings.from_mapping({"splitting": {"enabled": False}})
    assert alone.learner.warm_start
    started = alone.replace(encoder=alone.encoder.starting_from(str(published)))
    assert not started.learner.warm_start and started.encoder.enabled
