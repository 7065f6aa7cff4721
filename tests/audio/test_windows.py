"""Windows of a stream: the same whatever the chunking, indices and times, ends of clips, changes of resolution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.audio.logmel import log_mel
from streamsplit.audio.windows import Window, WindowSettings, WindowStream, cut_windows
from streamsplit.errors import AudioError, ConfigError
from streamsplit.wire.media import Resolution

SPAN = 99 * 160 + 400


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(samples).astype(np.float32) * np.float32(0.1)


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 60_000), max_size=12),
    resolution=st.sampled_from(list(Resolution)),
    shape=st.sampled_from([(100, 50), (100, 100), (40, 14), (20, 2)]),
)
def test_windows_are_pieces_of_the_offline_features_whatever_the_chunking(cuts, resolution, shape):
    audio = noise(60_000)
    length, stride = shape
    stream = WindowStream(length_frames=length, stride_frames=stride)
    windows: list[Window] = []
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 60_000], strict=True):
        windows += stream.push(audio[start:stop], resolution)
    step = 1 if resolution == Resolution.FULL else 2
    offline = log_mel(audio, resolution=resolution)
    span = (length - 1) * 160 + 400
    assert len(windows) == 1 + (60_000 - span) // (160 * stride)
    for number, window in enumerate(windows):
        assert window.index == number
        start = number * stride
        np.testing.assert_array_equal(window.features, offline[:, start // step : (start + length) // step])
        np.testing.assert_array_equal(window.audio, audio[160 * start : 160 * start + span])
        assert window.end_ms == (160 * start + span) / 16
        assert window.new_frames == (stride if number else length)


def test_shapes_at_both_resolutions():
    for resolution, shape in ((Resolution.FULL, (128, 100)), (Resolution.REDUCED, (64, 50))):
        (window,) = WindowStream().push(noise(SPAN), resolution)
        assert window.features.shape == shape and window.features.dtype == np.float32
        assert window.resolution is resolution
        assert window.audio.shape == (SPAN,)


def test_a_change_of_resolution_gives_whole_windows_of_the_new_one():
    audio = noise(5 * 16_000)
    stream = WindowStream()
    order = [Resolution.FULL, Resolution.FULL, Resolution.REDUCED, Resolution.REDUCED, Resolution.FULL]
    windows = stream.push(audio[:SPAN], order[0])
    for number, resolution in enumerate(order[1:], start=1):
        windows += stream.push(audio[SPAN + 8_000 * (number - 1) : SPAN + 8_000 * number], resolution)
    assert [window.resolution for window in windows] == order
    for window in windows:  # in pieces of other lengths, where some processors' matrix products differ in the last bit
        np.testing.assert_allclose(
            window.features, log_mel(window.audio, resolution=window.resolution), rtol=0, atol=2e-6
        )


@pytest.mark.parametrize(
    ("frames", "windows"),
    [(1, 1), (40, 1), (99, 1), (100, 1), (101, 2), (149, 2), (150, 2), (151, 3)],
)
def test_a_clip_ends_with_the_window_that_is_at_least_half_full_and_holds_something_new(frames: int, windows: int):
    assert len(cut_windows(noise(400 + 160 * (frames - 1)))) == windows


def test_a_clip_shorter_than_a_frame_still_gives_one_window_and_no_samples_give_none():
    (window,) = cut_windows(noise(100))
    np.testing.assert_array_equal(window.audio[:100], noise(100))
    assert not window.audio[100:].any()
    assert cut_windows(noise(0)) == []


def test_after_a_clip_indices_and_time_go_on_and_the_next_window_is_all_new():
    stream = WindowStream()
    first = stream.push(noise(20_000)) + stream.flush()
    second = stream.push(noise(SPAN, 1))
    assert [w.index for w in first + second] == list(range(len(first) + 1))
    assert second[0].new_frames == 100
    assert second[0].end_ms == (20_000 + SPAN) / 16
    np.testing.assert_array_equal(second[0].features, log_mel(noise(SPAN, 1)))


def test_a_reset_after_a_gap_takes_the_stream_time_given():
    stream = WindowStream()
    stream.push(noise(10_000))
    stream.reset(start_ms=60_000.0)
    (window,) = stream.push(noise(SPAN))
    assert window.end_ms == 60_000.0 + SPAN / 16


def test_refused_samples_leave_the_stream_as_it_was():
    stream = WindowStream()
    stream.push(noise(SPAN)[:10_000])
    with pytest.raises(AudioError, match="NaN"):
        stream.push(np.full(10, np.nan, np.float32))
    (window,) = stream.push(noise(SPAN)[10_000:])
    np.testing.assert_array_equal(window.features, log_mel(noise(SPAN)))


def test_windows_do_not_change_when_the_stream_goes_on():
    stream = WindowStream()
    (window,) = stream.push(noise(SPAN))
    kept = window.features.copy(), window.audio.copy()
    stream.push(noise(50_000, 3))
    np.testing.assert_array_equal(window.features, kept[0])
    np.testing.assert_array_equal(window.audio, kept[1])


@pytest.mark.parametrize(("length", "stride"), [(100, 102), (99, 50), (100, 25), (0, 0)])
def test_windows_that_skip_audio_or_split_reduced_frames_are_refused(length: int, stride: int):
    with pytest.raises(ConfigError, match="frames"):
        WindowSettings(length_frames=length, stride_frames=stride)
