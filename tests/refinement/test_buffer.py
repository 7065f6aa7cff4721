import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.errors import EncoderError
from streamsplit.refinement.buffer import BufferSettings, TemporalBuffer


def mark(frame):
    return np.full(4, frame, dtype=np.float32)


def filled(frames, /, **options):
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
    assert buffer.nearest("a", 6, k=5) == [5, 7, 1, 0, 20]
    assert buffer.nearest("a", 3, k=2) == [1, 5]
    assert buffer.nearest("nobody", 3, k=5) == []


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


def test_the_graph_joins_a_batch_to_the_nearest_frames_held_or_in_the_batch():
    buffer = filled([10, 11, 13, 20, 90])
    buffer.add("b", 12, mark(7))
    nearby = buffer.graph(np.array([12, 13, 500]), ["a", "a", "a"], k=2)
    assert nearby.embeddings[:, 0].tolist() == [11]  # 13 is taken from the batch, b's frame and far ones from nowhere
    assert nearby.graph.edges.tolist() == [[0, 1], [0, 3], [1, 3]]  # 12-13, 12-11, 13-11
    assert nearby.graph.weights.tolist() == pytest.approx(np.exp(-np.array([1.0, 1.0, 4.0]) / 2).tolist())


def test_the_graph_of_a_batch_far_from_what_is_held_has_only_the_batchs_own_edges():
    nearby = filled([10], frames=20).graph(np.array([100, 101, 101, 121, 300]), ["a", "a", "z", "a", "a"], k=5)
    assert nearby.graph.edges.tolist() == [[0, 1], [1, 3]] and not len(nearby.embeddings)
    assert not len(filled([]).graph(np.array([3]), ["a"]).graph.edges)


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 80), max_size=20), st.lists(st.integers(0, 80), min_size=1, max_size=8, unique=True))
def test_every_row_has_its_nearest_frames_by_a_slow_search(held, batch):
    buffer = filled(sorted(held), frames=30)
    nearby = buffer.graph(np.array(batch), ["a"] * len(batch), k=3)
    frame_of = batch + [int(value) for value in nearby.embeddings[:, 0]] if len(nearby.embeddings) else batch
    found = {tuple(sorted((frame_of[i], frame_of[j]))) for i, j in nearby.graph.edges.tolist()}
    available = set(buffer.window("a").frames.tolist()) | set(batch)
    expected = set()
    for frame in batch:
        near = [other for other in available if other != frame and abs(other - frame) <= 30]
        expected |= {tuple(sorted((frame, o))) for o in sorted(near, key=lambda o: (abs(o - frame), o))[:3]}
    assert found == expected


def test_nan_and_wrong_shapes_are_refused():
    buffer = TemporalBuffer()
    for bad in (np.full(4, np.nan), np.zeros((2, 2))):
        with pytest.raises(EncoderError, match="expected"):
            buffer.add("a", 0, bad)
    assert len(buffer) == 0
