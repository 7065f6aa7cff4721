"""The ring of last samples against a plain list."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsplit.audio.ring import SampleRing
from streamsplit.errors import AudioError


@given(capacity=st.integers(1, 40), chunks=st.lists(st.integers(0, 90), max_size=15))
def test_the_ring_holds_the_last_samples_of_the_stream(capacity: int, chunks: list[int]):
    ring, stream = SampleRing(capacity), np.zeros(0, np.float32)
    for count in chunks:
        piece = np.arange(len(stream), len(stream) + count, dtype=np.float32)
        stream = np.concatenate((stream, piece))
        ring.append(piece)
        assert ring.end == len(stream)
        assert ring.start == max(0, len(stream) - capacity)
        np.testing.assert_array_equal(ring.read(ring.start, ring.end), stream[ring.start :])
        middle = (ring.start + ring.end) // 2
        np.testing.assert_array_equal(ring.read(middle, ring.end), stream[middle:])


def test_samples_that_are_gone_or_to_come_are_refused():
    ring = SampleRing(10)
    ring.append(np.zeros(25, np.float32))
    for start, stop in ((14, 20), (20, 26), (20, 19)):
        with pytest.raises(AudioError, match=r"holds 15\.\.25"):
            ring.read(start, stop)


def test_a_read_is_a_copy():
    ring = SampleRing(4)
    ring.append(np.ones(4, np.float32))
    read = ring.read(0, 4)
    ring.append(np.zeros(4, np.float32))
    assert read.all()


def test_a_cleared_ring_starts_again_at_0():
    ring = SampleRing(4)
    ring.append(np.ones(9, np.float32))
    ring.clear()
    assert (ring.start, ring.end) == (0, 0)


def test_a_ring_without_room_is_refused():
    with pytest.raises(AudioError):
        SampleRing(0)
