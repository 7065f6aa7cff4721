"""The shuffle buffer: bounded, spread over the past, batches of distinct times with close partners."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplit.errors import ConfigError, EncoderError
from streamsplit.learning.shuffle import ShuffleBuffer


def window(value: float, shape: tuple[int, int] = (4, 6)) -> np.ndarray:
    return np.full(shape, value, np.float32)


def filled(windows: int, capacity: int = 60, run: int = 5, clip: int = 9) -> ShuffleBuffer:
    buffer, rng = ShuffleBuffer(capacity, run, (4, 6)), np.random.default_rng(0)
    for i in range(windows):
        buffer.add(window(i), i, rng, continuous=i % clip != 0)
    return buffer


def test_it_never_holds_more_than_its_capacity_and_keeps_the_newest() -> None:
    for windows in (1, 59, 60, 61, 500):
        buffer = filled(windows)
        assert min(windows, 55) <= len(buffer) <= 60
        assert buffer.times()[-1] == windows - 1
    assert buffer.state_bytes() == filled(1).state_bytes()


def test_what_it_holds_is_spread_over_the_past() -> None:
    times = filled(600).times()
    assert np.ptp(times) > 100  # a plain queue would span 60
    assert len(np.unique(times)) == len(times)


def test_batches_hold_different_runs_and_partners_close_in_time_from_the_same_clip() -> None:
    buffer, rng = filled(300), np.random.default_rng(1)
    distances = []
    for _ in range(300):
        batch = buffer.draw(8, rng, decay=0.5, reach=4, gap=9)
        assert batch is not None
        anchors, partners = batch.anchor_features[:, 0, 0], batch.partner_features[:, 0, 0]
        assert np.array_equal(batch.times, anchors.astype(int))
        assert len(np.unique(anchors)) == 8
        assert (anchors // 9 == partners // 9).all()  # never across a clip's border
        distance = np.abs(anchors - partners)
        assert distance.max() <= 4
        distances.append(distance)
        close = (np.abs(anchors[:, None] - anchors) < 9) & (anchors[:, None] // 9 == anchors // 9)
        assert np.array_equal(batch.excluded, close)
    counts = np.bincount(np.concatenate(distances).astype(int), minlength=5)
    assert counts[1] > counts[2] > counts[3] > counts[4] > 0
    assert counts[0] < 0.2 * counts.sum()  # alone in its run: its own partner


def test_resolutions_do_not_mix_within_a_batch() -> None:
    buffer, rng = ShuffleBuffer(40, 5, (4, 6)), np.random.default_rng(0)
    for i in range(40):
        buffer.add(window(i, (4, 6) if i % 10 < 5 else (2, 3)), i, rng)
    shapes = {buffer.draw(6, rng, decay=0.5, reach=4, gap=2).anchor_features.shape[1:] for _ in range(40)}
    assert shapes == {(4, 6), (2, 3)}
    chunks = list(buffer.in_order(3))
    assert np.array_equal(np.concatenate([indices for indices, _ in chunks]), buffer.times())
    assert all((features[:, 0, 0] == indices).all() for indices, features in chunks)


def test_too_few_windows_give_no_batch() -> None:
    assert filled(1).draw(4, np.random.default_rng(0), decay=0.5, reach=4, gap=2) is None
    assert filled(1).pairs(4, np.random.default_rng(0), decay=0.5, reach=4) is None


def test_a_snapshot_continues_exactly() -> None:
    buffer, other = filled(130), ShuffleBuffer(60, 5, (4, 6))
    other.load_state(buffer.state())
    draws = []
    for each in (buffer, other):
        rng = np.random.default_rng(7)
        for i in range(130, 200):
            each.add(window(i), i, rng)
        draws.append(each.draw(8, rng, decay=0.5, reach=4, gap=2))
    assert all(np.array_equal(a, b) for a, b in zip(*draws, strict=True))
    with pytest.raises(ConfigError, match="settings differ"):
        ShuffleBuffer(50, 5, (4, 6)).load_state(buffer.state())


@pytest.mark.parametrize("features", [np.zeros((5, 6)), np.zeros(4), np.full((4, 6), np.nan), np.zeros((0, 6))])
def test_bad_features_are_refused(features: np.ndarray) -> None:
    with pytest.raises(EncoderError, match="expected"):
        ShuffleBuffer(40, 5, (4, 6)).add(features, 0, np.random.default_rng(0))
