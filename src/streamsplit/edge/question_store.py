"""A device's questions on disk: what the server has not answered yet survives the process.

One file a question, written beside its place and moved there, deleted when the question is answered. One that cannot
be deleted is marked as answered in its place, and tried again.
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
_MAGIC, _ANSWERED = b"SSQ1", b"SSQ0"


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
        self._over: set[Path] = set()  # to be deleted

    def load(self) -> list[KeptQuestion]:
        """Those that another run left, oldest first. One that is damaged is set aside, and said; raises CheckpointError
        for a folder that cannot be read."""
        found = []
        for path in self._paths():
            data = load_snapshot(path) or b""
            if data[:4] == _ANSWERED:
                self._over.add(path)
                continue
            question = _read(data)
            if question is None:
                aside = path.with_suffix(".damaged")
                _log.warning("%s: not a whole question; it is kept as %s and does not go up", path, aside.name)
                _moved(path, aside)
                continue
            found.append(question)
            self._files[question.number] = path
        for old in found[: max(0, len(found) - self._most)]:
            _log.warning("question %d of an earlier run gives way: %d are kept", old.number, self._most)
            self._over.add(self._files.pop(old.number))
        failure = self._clear()
        if failure is not None:
            _log.warning("%s", failure)
        return found[-self._most :]

    @property
    def numbers(self) -> frozenset[int]:
        """Of the questions on disk that wait."""
        return frozenset(self._files)

    @property
    def behind(self) -> bool:
        """Whether files of answered questions are still there: `mirror` tries to delete them."""
        return bool(self._over)

    def mirror(self, waiting: Sequence[int], fresh: Iterable[KeptQuestion]) -> None:
        """Deletes what is not `waiting` any more, and writes `fresh`; raises CheckpointError where either fails, and
        the next call tries again."""
        for number in self.numbers.difference(waiting):
            self._over.add(self._files.pop(number))
        failure = self._clear()
        for question in fresh:
            path = self.folder / f"{question.ended_ms:015d}-{question.number:010d}{_SUFFIX}"
            body = msgspec.msgpack.encode(question)
            save_snapshot(path, _MAGIC + zlib.crc32(body).to_bytes(4, "little") + body)
            self._files[question.number] = path
        if failure is not None:
            raise failure

    def _paths(self) -> list[Path]:
        try:
            return sorted(self.folder.glob(f"*{_SUFFIX}"))
        except OSError as error:
            raise CheckpointError(f"{self.folder}: cannot be read ({error.strerror or error})") from error

    def _clear(self) -> CheckpointError | None:
        """Deletes files of questions that are over; what became of the last one that cannot be."""
        failure = None
        for path in sorted(self._over):
            try:
                path.unlink(missing_ok=True)
                self._over.discard(path)
            except OSError as error:
                said = "marked as answered" if _marked(path) else "it would be asked again at the next start"
                failure = CheckpointError(f"{path}: not deleted ({error.strerror or error}); {said}")
        return failure


def _marked(path: Path) -> bool:
    """Whether an answered question's file could be made to say so."""
    try:
        with path.open("r+b") as file:
            file.write(_ANSWERED)
    except OSError:
        return False
    return True


def _read(data: bytes) -> KeptQuestion | None:
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
