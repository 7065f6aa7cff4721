"""The firmware's device, built as a shared library and held from Python."""

from __future__ import annotations

import ctypes
import functools
import itertools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from streamsplit.export.c_model import c_files
from streamsplit.weights.codec_file import read_codec

FIRMWARE = Path(__file__).parents[2] / "firmware"


@functools.cache
def built() -> Path:
    """A folder with the packaged codec as C and the library; skips where there is no compiler."""
    missing = [tool for tool in ("make", "gcc") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    folder = Path(tempfile.mkdtemp(prefix="firmware-"))
    for file, text in c_files(read_codec("tiny_mel").integer_encoder()).items():
        (folder / file).write_text(text)
    make("library", folder)
    return folder


def make(target: str, folder: Path, *more: str) -> str:
    """What `make` printed; fails with it."""
    done = subprocess.run(
        ["make", "-C", FIRMWARE, target, f"MODEL={folder}", f"BUILD={folder}/build", "CC=gcc", *more],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Numbers(NamedTuple):
    """Of the struct."""

    state: int  # 0 offline, 1 greeting, 2 open, 3 ended
    refused: int
    oldest: int
    next: int
    heard: int
    dropped: int
    answered: int
    rejected: int


class CResult(ctypes.Structure):
    _fields_ = (
        ("window", ctypes.c_uint32), ("captured_ms", ctypes.c_uint32), ("uncertainty", ctypes.c_float),
        ("cluster", ctypes.c_int32), ("label", ctypes.c_char * 33), ("confidence", ctypes.c_float),
    )  # fmt: skip


class CDevice:
    """One device; free it by `close`."""

    def __init__(self, device_id: str = "porch", token: str = "secret", epoch: int = 77, quantizers: int = 0) -> None:
        self._library = library = ctypes.CDLL(str(built() / "build" / "libdevice.so"))
        library.shim_make.restype = library.shim_problem.restype = ctypes.c_void_p
        library.shim_size.restype = library.ss_send.restype = ctypes.c_size_t
        self._strings = device_id.encode(), token.encode()  # the device keeps no copy
        made = library.shim_make(*self._strings, ctypes.c_uint64(epoch), quantizers)
        if not made:
            raise ValueError("the device does not take this config")
        self._held = ctypes.c_void_p(made)
        self.size = int(library.shim_size())

    def close(self) -> None:
        self._library.shim_free(self._held)

    def hear(self, samples: np.ndarray, now_ms: int) -> None:
        data = np.ascontiguousarray(samples, np.int16)
        self._library.ss_hear(self._held, data.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(len(data)), now_ms)

    def gap(self) -> None:
        self._library.ss_gap(self._held)

    def connected(self, now_ms: int) -> None:
        self._library.ss_connected(self._held, now_ms)

    def disconnected(self) -> None:
        self._library.ss_disconnected(self._held)

    def finish(self) -> None:
        self._library.ss_finish(self._held)

    def receive(self, message: bytes, now_ms: int, parts: int = 1) -> None:
        """A message, in so many parts."""
        edges = [len(message) * part // parts for part in range(parts + 1)]
        for start, end in itertools.pairwise(edges):
            size = ctypes.c_size_t
            self._library.ss_receive(
                self._held, message[start:end], size(end - start), size(start), size(len(message)), now_ms
            )

    def send(self, now_ms: int) -> bytes | None:
        room = ctypes.create_string_buffer(4096)
        size = int(self._library.ss_send(self._held, room, ctypes.c_size_t(len(room)), now_ms))
        return room.raw[:size] if size else None

    def should_close(self, now_ms: int) -> bool:
        return bool(self._library.ss_should_close(self._held, now_ms))

    @property
    def numbers(self) -> Numbers:
        room = (ctypes.c_uint32 * 8)()
        self._library.shim_numbers(self._held, room)
        return Numbers(*room)

    @property
    def problem(self) -> str:
        return ctypes.string_at(self._library.shim_problem(self._held)).decode()

    @property
    def results(self) -> list[CResult]:
        room = (CResult * 4096)()
        count = self._library.shim_results(self._held, room, 4096)
        return list(room[: min(count, 4096)])
