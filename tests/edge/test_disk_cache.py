"""The folder of chunks on a device: its budget, what leaves first, damage, restarts, several processes at once."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from streamsplit.edge.disk_cache import LEFT_OVER_S, DiskCache
from streamsplit.errors import ConfigError
from streamsplit.weights.streaming.manifest import NAME, file_name

SIZE = 1000


def chunk(number: int, size: int = SIZE) -> tuple[str, np.ndarray]:
    data = np.random.default_rng(number).integers(0, 256, size, np.uint8)
    return hashlib.sha256(data).hexdigest(), data


def here(cache: DiskCache) -> list[int]:
    """Numbers of the chunks that can be read, the others having left no file."""
    return [number for number in range(12) if cache.size(chunk(number)[0])]


def used_at(folder: Path, number: int, second: int) -> None:
    """Sets a file's last use, in the past."""
    os.utime(folder / file_name(chunk(number)[0]), (second, second))


@pytest.fixture
def filled(tmp_path: Path) -> DiskCache:
    """Room for four, and four, used in the order 0, 1, 2, 3."""
    cache = DiskCache(tmp_path, 4 * SIZE)
    for number in range(4):
        assert cache.keep(*chunk(number))
        used_at(tmp_path, number, 100 + number)
    return cache


def test_what_was_used_longest_ago_leaves_first_and_the_budget_holds(filled: DiskCache):
    assert np.array_equal(filled.read(chunk(0)[0], SIZE), chunk(0)[1])  # so 1 is the oldest now
    assert filled.keep(*chunk(4)) and here(filled) == [0, 2, 3, 4]
    assert filled.keep(*chunk(5, SIZE + 1)) and filled.used_bytes <= 4 * SIZE
    assert here(filled) == [0, 4]  # one byte more takes two
    assert not filled.keep(*chunk(6, 4 * SIZE + 1)) and here(filled) == [0, 4]  # larger than all of it
    assert filled.keep(*chunk(0)) and filled.hits == 1
    assert sorted(path.name for path in filled._folder.iterdir()) == sorted(
        [".lock", *(file_name(digest) for digest in (chunk(0)[0], chunk(4)[0], chunk(5, SIZE + 1)[0]))]
    )


def test_the_order_of_use_survives_a_restart_and_a_smaller_budget_is_made_room_for(filled: DiskCache, tmp_path: Path):
    left_over = tmp_path / f".{file_name(chunk(9)[0])}.4242.0"
    left_over.write_bytes(b"half")
    DiskCache(tmp_path, 4 * SIZE)
    assert left_over.exists()  # somebody may be writing it
    os.utime(left_over, (left_over.stat().st_mtime - LEFT_OVER_S - 1,) * 2)
    again = DiskCache(tmp_path, 2 * SIZE)
    assert here(again) == [2, 3] and not left_over.exists()


def test_a_file_that_is_being_read_stays(filled: DiskCache, tmp_path: Path):
    with (tmp_path / file_name(chunk(0)[0])).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as any process that reads does
        assert filled.keep(*chunk(4)) and here(filled) == [0, 2, 3, 4]
        assert not filled.keep(*chunk(5, 4 * SIZE))  # only without that one
        assert here(filled) == [0] and not list(tmp_path.glob(".*.chunk.*"))
    assert filled.keep(*chunk(5, 4 * SIZE)) and here(filled) == []


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b"x" + data[1:]])
def test_a_damaged_file_is_dropped(filled: DiskCache, tmp_path: Path, damage):
    digest, data = chunk(1)
    (tmp_path / file_name(digest)).write_bytes(damage(data.tobytes()))
    assert filled.read(digest, SIZE) is None and here(filled) == [0, 2, 3]
    assert filled.read(chunk(7)[0], SIZE) is None and filled.hits == 0


def test_a_folder_to_serve_from_and_one_that_cannot_be_made_are_refused(tmp_path: Path):
    (tmp_path / NAME).write_text("{}")
    with pytest.raises(ConfigError, match=r"'disk_cache_dir': got .* to serve; expected a folder of its own"):
        DiskCache(tmp_path)
    with pytest.raises(ConfigError, match=r"'disk_cache_dir': .* cannot be used \("):
        DiskCache(tmp_path / NAME / "cache")


PROCESS = """
import hashlib, sys
import numpy as np
from streamsplit.edge.disk_cache import DiskCache
folder, seed = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(seed)
cache = DiskCache(folder, 10_000)
found = 0
for _ in range(300):
    data = np.random.default_rng(int(rng.integers(24))).integers(0, 256, 1000, np.uint8)
    digest = hashlib.sha256(data).hexdigest()
    got = cache.read(digest, 1000)
    if got is None:
        cache.keep(digest, data)
    else:
        assert np.array_equal(got, data)
        found += 1
    with cache._locked():
        assert cache.used_bytes <= 10_000, cache.used_bytes
print(found)
"""


def test_processes_that_share_a_folder_keep_its_budget_and_never_read_a_wrong_byte(tmp_path: Path):
    runs = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path), str(seed)], stdout=subprocess.PIPE, text=True)
        for seed in range(2)
    ]
    found = [int(run.communicate(timeout=120)[0]) for run in runs]
    assert [run.returncode for run in runs] == [0, 0] and min(found) > 0
    assert not list(tmp_path.glob(".*.chunk.*"))
