"""Questions on disk: as they were, oldest first, bounded, gone with their answers; damaged ones set aside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamsplit.edge.question_store import KeptQuestion, QuestionStore
from streamsplit.edge.questions import Questions
from streamsplit.edge.talk_settings import TalkSettings
from streamsplit.errors import CheckpointError
from streamsplit.wire.dialogue import Kind, unpack_utterance


def question(number: int, ended_ms: int = 1_000, packets: int = 4) -> KeptQuestion:
    return KeptQuestion(number, Kind.OPUS, 20.0, ended_ms, tuple(bytes([number, place]) for place in range(packets)))


def test_what_waits_is_there_for_the_next_run_oldest_first_and_what_was_answered_is_not(tmp_path: Path) -> None:
    store = QuestionStore(tmp_path, most=10)
    store.mirror([7, 3, 5], [question(7, 2_000), question(3, 1_000), question(5, 3_000)])
    store.mirror([3, 5], [])
    again = QuestionStore(tmp_path, most=10)
    assert again.load() == [question(3, 1_000), question(5, 3_000)]
    assert again.numbers == {3, 5}


def test_more_than_are_kept_give_way_from_the_oldest_on(tmp_path: Path) -> None:
    QuestionStore(tmp_path, most=10).mirror([1, 2, 3], [question(n, 1_000 * n) for n in (1, 2, 3)])
    store = QuestionStore(tmp_path, most=2)
    assert [found.number for found in store.load()] == [2, 3]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("cut", [0, 3, 7, 12, -1])
def test_a_damaged_file_is_set_aside_and_the_others_go_on(tmp_path: Path, cut: int) -> None:
    QuestionStore(tmp_path, most=10).mirror([1, 2], [question(1, 1_000), question(2, 2_000)])
    first = sorted(tmp_path.iterdir())[0]
    data = first.read_bytes()
    first.write_bytes(data[:cut] if cut >= 0 else data[:-1] + bytes([data[-1] ^ 1]))
    assert QuestionStore(tmp_path, most=10).load() == [question(2, 2_000)]
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".damaged", ".question"]


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError, match="not written"):
        QuestionStore(tmp_path / "file" / "questions", most=3).mirror([1], [question(1)])


def test_an_answered_question_that_cannot_be_deleted_is_said_tried_again_and_never_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = QuestionStore(tmp_path, most=10)
    store.mirror([1, 2], [question(1, 1_000), question(2, 2_000)])
    first = sorted(tmp_path.iterdir())[0]
    with monkeypatch.context() as patched:

        def locked(path: Path, missing_ok: bool = False) -> None:
            raise PermissionError(13, "Permission denied")

        patched.setattr(Path, "unlink", locked)
        for waiting, fresh in (([2], []), ([2, 3], [question(3, 3_000)])):  # said each time, and disturbs no other
            with pytest.raises(CheckpointError, match=r"not deleted \(Permission denied\); marked as answered"):
                store.mirror(waiting, fresh)
        assert store.numbers == {2, 3} and store.behind and first.exists()
        again = QuestionStore(tmp_path, most=1)
        assert again.load() == [question(3, 3_000)] and again.behind  # no error at the start
    again.mirror([3], [])
    assert not again.behind and [path.name for path in tmp_path.iterdir()] == ["000000000003000-0000000003.question"]


def test_one_that_cannot_even_be_marked_says_what_that_means_until_it_can_be_deleted(tmp_path: Path) -> None:
    store = QuestionStore(tmp_path, most=10)
    store.mirror([1], [question(1)])
    (path,) = tmp_path.iterdir()
    path.unlink()
    (path / "inside").mkdir(parents=True)  # deleting a folder as a file fails for anybody, and writing into it, too
    with pytest.raises(CheckpointError, match="would be asked again at the next start"):
        store.mirror([], [])
    (path / "inside").rmdir()
    path.rmdir()
    path.write_bytes(b"")
    store.mirror([], [])
    assert list(tmp_path.iterdir()) == [] and not store.behind


def test_questions_of_an_earlier_run_go_up_as_they_were_before_new_ones() -> None:
    settings = TalkSettings(codec="pcm16")
    first = Questions(settings)
    number = first.begin()
    for place in range(4):
        first.record(np.full(320, 0.1 * place, np.float32), 20.0 * place)
    first.end()
    kept = first.kept(frozenset(), now_ms=100.0, unix_ms=5_100.0)
    assert [each.ended_ms for each in kept] == [5_060] and first.kept(frozenset({number}), 100.0, 5_100.0) == []

    second = Questions(settings)
    second.restore(kept, now_ms=30.0, unix_ms=9_030.0)
    second.begin()
    for place in range(3):
        second.record(np.full(320, -0.1, np.float32), 20.0 * place)
    sent = second.outgoing(100.0)
    pieces = [unpack_utterance(out.payload) for out in sent]
    assert [piece.utterance == number for piece in pieces] == [True, True, False]
    old = b"".join(frame for piece in pieces[:2] for frame in piece.frames)
    assert np.allclose(np.frombuffer(old, "<i2") / 32_768, np.repeat([0.0, 0.1, 0.2, 0.3], 320), atol=1e-4)
    assert [out.captured_ms for out in sent[:2]] == [30.0 - 3_970.0 - 20.0, 30.0 - 3_970.0] and sent[1].final
