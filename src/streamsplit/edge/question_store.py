"""A device's questions on disk: what the server has not answered yet survives the process.

One file a question, written beside its place and moved there, deleted when the question is answered.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from streamsplit.edge.snapshot import load_snapshot, save_snapshot
from streamsplit.errors import CheckpointError
from streamsplit.wire.dialogue import Kind

_log = logging.getLogger(__name__)
_SUFFIX = ".question"
_MAGIC = b"SSQ1"


class KeptQuestion(msgspec.Struct, frozen=True, array_like=True):
    """A whole question as it goes up."""

    number: int
    kind: Kind
    frame_ms: float
    ended_ms: int  # Unix time
    packets: tuple[bytes, ...]


class QuestionStore:
    """Mirrors the questions that wait, in a folder of their own. Not for two processes at a time."""

    def __init__(self, folder: Path, *, most: int) -> None:
        self.folder = folder
        self._most = most
        self._files: dict[int, Path] = {}

    def load(self) -> list[KeptQuestion]:
        """Those that another run left, oldest first. One that is damaged is set aside, and said; raises CheckpointError
        for a folder that cannot be read."""
        found = []
        for path in self._paths():
            question = _read(path)
            if question is None:
                aside = path.with_suffix(".damaged")
                _log.warning("%s: not a whole question; it is kept as %s and does not go up", path, aside.name)
                _moved(path, aside)
                continue
            found.append(question)
            self._files[question.number] = path
        for old in found[: max(0, len(found) - self._most)]:
            _log.warning("question %d of an earlier run gives way: %d are kept", old.number, self._most)
            self._forget(old.number)
        return found[-self._most :]

    @property
    def numbers(self) -> frozenset[int]:
        """Of the questions on disk."""
        return frozenset(self._files)

    def mirror(self, waiting: Sequence[int], fresh: Iterable[KeptQuestion]) -> None:
        """Writes `fresh`, and deletes what is not `waiting` any more; raises CheckpointError where that fails."""
        for question in fresh:
            path = self.folder / f"{question.ended_ms:015d}-{question.number:010d}{_SUFFIX}"
            body = msgspec.msgpack.encode(question)
            save_snapshot(path, _MAGIC + zlib.crc32(body).to_bytes(4, "little") + body)
            self._files[question.number] = path
        for number in self.numbers.difference(waiting):
            self._forget(number)

    def _paths(self) -> list[Path]:
        try:
            return sorted(self.folder.glob(f"*{_SUFFIX}"))
        except OSError as error:
            raise CheckpointError(f"{self.folder}: cannot be read ({error.strerror or error})") from error

    def _forget(self, number: int) -> None:
        path = self._files.pop(number)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(f"{path}: not deleted ({error.strerror or error})") from error


def _read(path: Path) -> KeptQuestion | None:
    data = load_snapshot(path) or b""
    body = data[8:]
    if data[:4] != _MAGIC or data[4:8] != zlib.crc32(body).to_bytes(4, "little"):
        return None
    try:
        return msgspec.msgpack.decode(body, type=KeptQuestion)
    except msgspec.DecodeError:
        return None


def _moved(path: Path, aside: Path) -> None:
    try:
        path.replace(aside)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be set aside ({error.strerror or error})") from error
