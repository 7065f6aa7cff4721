"""Files are the old ones or the new ones, never half."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from streamsplit.errors import CheckpointError
from streamsplit.server import checkpoint
from streamsplit.server.checkpoint import read_json, write_atomic, write_json


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.bin"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["state.bin"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_when_the_disk_is_full_the_old_file_stays_and_nothing_is_left_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "state.bin"
    write_atomic(path, b"old")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(CheckpointError, match=r"No space left on device.*the old file is unchanged"):
        write_atomic(path, b"new")
    with pytest.raises(CheckpointError, match="there is no older file"):
        write_atomic(tmp_path / "first.bin", b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["state.bin"]


def test_a_folder_that_cannot_be_synced_does_not_claim_that_the_old_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "_sync_folder", refuse)
    with pytest.raises(CheckpointError, match="the new file is in place"):
        write_atomic(tmp_path / "state.bin", b"new")
    assert (tmp_path / "state.bin").read_bytes() == b"new"


def test_json_comes_back_and_a_missing_file_is_none(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none.json") is None
    write_json(tmp_path / "a.json", {"steps": 3})
    assert read_json(tmp_path / "a.json") == {"steps": 3}


@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
def test_a_damaged_description_says_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CheckpointError, match="delete it to start anew"):
        read_json(tmp_path / "a.json")
