import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.errors import EncoderError
from streamsplit.refinement.buffer import BufferSettings, TemporalBuffer


def mark(frame):
    return np.full(4, frame, dtype=np.float32)


def filled(frames, **options):
    buffer = TemporalBuffer(BufferSettings(**options))
    for frame in frames:
        buffer.add("a", frame, mark(frame))
    return buffer


def test_keeps_the_last_hundred_frames_by_index():
    buffer = filled(range(250))
    assert buffer.window("a").frames.tolist() == list(range(150, 250))
    assert buffer.window("a").embeddings[:, 0].tolist() == list(range(150, 250))


def test_gaps_count_as_frames():
    assert filled([0, 50, 100, 140]).window("a").frames.tolist() == [50, 100, 140]


def test_late_and_reordered_frames_find_their_place():
    assert filled([10, 12, 11, 9]).window("a").frames.tolist() == [9, 10, 11, 12]


def test_a_frame_older_than_the_window_is_refused():
    buffer = filled([500])
    assert not buffer.add("a", 400, mark(400))
    assert buffer.add("a", 401, mark(401))


def test_a_repeated_frame_replaces_the_earlier_one():
    buffer = filled([3, 4])
    buffer.add("a", 3, mark(99))
    assert buffer.window("a").embeddings[0, 0] == 99 and len(buffer) == 2


@settings(max_examples=60, deadline=None)
@given(st.permutations(list(range(0, 60, 3))), st.integers(2, 40))
def test_any_order_within_the_window_ends_in_the_same_state(order, width):
    buffer = TemporalBuffer(BufferSettings(frames=width, restart_after=1000))
    for frame in order:
        buffer.add("a", frame, mark(frame))
    assert buffer.window("a").frames.tolist() == [f for f in range(0, 60, 3) if f > 57 - width]


def test_the_five_nearest_in_time_are_those_that_are_there():
    buffer = filled([0, 1, 5, 6, 7, 20, 21])
    assert buffer.nearest("a", 6) == [5, 7, 1, 0, 20]
    assert buffer.nearest("a", 3, k=2) == [1, 5]
    assert buffer.nearest("nobody", 3) == []


def test_a_count_that_starts_anew_is_accepted_after_a_few_frames():
    buffer = filled([*range(1000, 1010)], restart_after=5)
    taken = [buffer.add("a", frame, mark(frame)) for frame in range(8)]
    assert taken == [False] * 4 + [True] * 4
    assert buffer.window("a").frames.tolist() == list(range(8))


def test_stragglers_in_any_order_do_not_restart_the_count():
    buffer = filled([1000], restart_after=3)
    assert not any(buffer.add("a", frame, mark(frame)) for frame in (30, 20, 10, 25, 5))
    assert buffer.window("a").frames.tolist() == [1000]


def test_devices_are_separate_and_their_number_is_bounded():
    buffer = TemporalBuffer(BufferSettings(max_devices=2))
    for device in ("a", "b", "a", "c"):
        buffer.add(device, 1, mark(1))
    assert buffer.devices() == ["a", "c"]


def test_the_graph_joins_neighbours_in_time():
    graph = filled([0, 1, 2, 90], neighbours=1).graph("a")
    assert graph.edges.tolist() == [[0, 1], [1, 2], [2, 3]]


def test_nan_and_wrong_shapes_are_refused():
    buffer = TemporalBuffer()
    for bad in (np.full(4, np.nan), np.zeros((2, 2))):
        with pytest.raises(EncoderError, match="expected"):
            buffer.add("a", 0, bad)
    assert len(buffer) == 0
