"""Parts never share a session, hold every label where they can, and come near the wanted shares."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from streamsplit.errors import AudioError
from streamsplit.evaluation.data.parts import balance, check_apart, deal_parts
from streamsplit.evaluation.datasets import Clip, split_clips


def clips_of(sessions: list[dict[str, int]]) -> list[Clip]:
    return [
        Clip(Path(f"{number}-{label}-{take}.wav"), label, None, f"s{number}", f"s{number}")
        for number, counts in enumerate(sessions)
        for label, count in counts.items()
        for take in range(count)
    ]


@limits(max_examples=60, deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 9), min_size=1), min_size=3, max_size=40),
    st.integers(0, 99),
)
def test_no_session_is_in_two_parts_and_labels_are_in_as_many_parts_as_they_can_be(sessions, seed):
    clips = deal_parts(clips_of(sessions), seed)
    check_apart(clips)
    parts, held = defaultdict(set), defaultdict(set)
    for clip in clips:
        held[clip.label].add(clip.session)
        parts[clip.session].add(clip.part)
    assert all(len(part) == 1 for part in parts.values())
    rarest = min(held, key=lambda label: (len(held[label]), label))
    wanted = {1: {"train"}, 2: {"train", "test"}}.get(len(held[rarest]), {"train", "test", "validation"})
    assert {clip.part for clip in clips if clip.label == rarest} == wanted


def test_with_sessions_of_one_size_the_shares_are_eighty_ten_ten():
    clips = deal_parts(clips_of([{"a": 3, "b": 3}] * 20), 0)
    assert Counter(clip.part for clip in clips) == {"train": 96, "validation": 12, "test": 12}


def test_with_uneven_sessions_the_shares_are_near():
    rng = np.random.default_rng(0)
    clips = deal_parts(clips_of([{"a": int(n), "b": int(m)} for n, m in rng.integers(1, 12, size=(60, 2))]), 0)
    for label in "ab":
        counts = Counter(clip.part for clip in clips if clip.label == label)
        assert counts["train"] / counts.total() == pytest.approx(0.8, abs=0.05)
        assert counts["test"] / counts.total() == pytest.approx(0.1, abs=0.05)


def test_the_seed_decides_which_sessions_are_held_out():
    clips = clips_of([{"a": 2, "b": 2}] * 30)
    assert deal_parts(clips, 1) == deal_parts(clips, 1) != deal_parts(clips, 2)


def test_two_sessions_cannot_be_three_parts():
    with pytest.raises(AudioError, match="2 sessions"):
        deal_parts(clips_of([{"a": 1}, {"b": 1}]), 0)


def test_balancing_keeps_equal_numbers_in_the_old_order():
    clips = clips_of([{"a": 9, "b": 4}, {"c": 5}])
    kept = balance(clips, 0)
    assert Counter(clip.label for clip in kept) == {"a": 4, "b": 4, "c": 4}
    assert kept == [clip for clip in clips if clip in set(kept)] and kept != balance(clips, 1)


@pytest.mark.parametrize("leak", [{"source": "x"}, {"session": "y"}])
def test_a_source_or_session_on_two_sides_is_refused_by_name(leak):
    clips = [Clip(Path("a.wav"), "a", 1)._replace(**leak), Clip(Path("b.wav"), "b", 2)._replace(**leak)]
    with pytest.raises(AudioError, match=f"{next(iter(leak))} '[xy]' in fold 1 and in fold 2"):
        check_apart(clips)


def test_split_clips_follows_the_parts():
    split = split_clips(deal_parts(clips_of([{"a": 3, "b": 3}] * 10), 0))
    assert {clip.part for clip in split.train} == {"train"} and {clip.part for clip in split.test} == {"test"}
    assert split.held_out == "the test part, 1 sessions"
