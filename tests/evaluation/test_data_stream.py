"""The stream view: every clip once, runs of one class, mixes that shift, devices that differ; by known answers."""

from __future__ import annotations

from collections import Counter
from itertools import chain, groupby, islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from scipy import stats

from streamsplit.errors import ConfigError
from streamsplit.evaluation.data.allocation import allocate
from streamsplit.evaluation.data.stream import SHIFTS, Stream, StreamSettings, directly_follows
from streamsplit.evaluation.datasets import Clip

LABELS = [f"class{number % 10}" for number in range(2000)]


def heard(stream: Stream) -> list[list[int]]:
    return [[step.clip for step in stream.device(device)] for device in range(stream.devices)]


def shares(stream: Stream, clips: list[int]) -> np.ndarray:
    counts = Counter(LABELS[clip] for clip in clips)
    return np.array([counts[name] / len(clips) for name in stream.classes])


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("alpha", [None, 0.05, 0.5, 1e6])
def test_one_pass_brings_every_clip_exactly_once_over_all_devices(shift, alpha):
    stream = Stream(LABELS, 7, StreamSettings(shift=shift, dirichlet_alpha=alpha, seed=3))
    devices = heard(stream)
    assert sorted(chain(*devices)) == list(range(len(LABELS)))
    assert max(map(len, devices)) - min(map(len, devices)) <= 1


def test_three_passes_bring_every_clip_three_times_and_an_endless_stream_once_a_pass():
    labels = LABELS[:100]
    thrice = heard(Stream(labels, 3, StreamSettings(passes=3)))
    assert Counter(chain(*thrice)) == dict.fromkeys(range(100), 3)
    endless = Stream(labels, 4, StreamSettings(passes=0, shift="gradual"))
    first = [[step.clip for step in islice(endless.device(device), 50)] for device in range(4)]
    assert Counter(chain(*first)) == dict.fromkeys(range(100), 2)


def test_the_same_seed_gives_the_same_streams_and_another_seed_others():
    def of(seed):
        return heard(Stream(LABELS, 3, StreamSettings(seed=seed, shift="gradual")))

    assert of(1) == of(1) != of(2)


def test_devices_may_be_read_at_any_pace():
    stream = Stream(LABELS[:40], 2, StreamSettings(passes=0, shift="abrupt"))
    apart = list(islice(stream.device(0), 200))
    other = list(islice(stream.device(1), 200))
    both = list(islice(zip(stream.device(0), stream.device(1), strict=True), 200))
    assert [pair[0] for pair in both] == apart and [pair[1] for pair in both] == other


def test_a_large_alpha_is_iid_and_a_small_one_concentrates():
    def entropies(alpha):
        streams = [Stream(LABELS, 5, StreamSettings(dirichlet_alpha=alpha, seed=seed)) for seed in range(8)]
        return [stats.entropy(shares(stream, clips)) for stream in streams for clips in heard(stream)]

    assert min(entropies(1e6)) > np.log(10) - 0.01 and min(entropies(None)) > np.log(10) - 0.001
    assert np.log(2) - 1e-6 < np.mean(entropies(0.02)) < np.log(4)  # five devices for ten classes: two each at best
    assert np.mean(entropies(0.02)) < np.mean(entropies(0.5)) < np.mean(entropies(10.0))


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_drawn_mixes_have_the_moments_of_a_dirichlet(alpha):
    labels = ["a"] * 50 + ["b"] * 30 + ["c"] * 20
    drawn = np.array([
        Stream(labels, 4, StreamSettings(dirichlet_alpha=alpha, seed=seed)).wished_mix(device, 0.0)
        for seed in range(500) for device in range(4)
    ])  # fmt: skip
    expected = stats.dirichlet(alpha * 3 * np.array([0.5, 0.3, 0.2]))
    assert np.allclose(drawn.mean(axis=0), expected.mean(), atol=0.03)
    assert np.allclose(drawn.var(axis=0), expected.var(), rtol=0.12)
    beta = stats.beta(alpha * 3 * 0.5, alpha * 3 * 0.5)  # the first class's margin
    assert stats.kstest(drawn[:, 0], beta.cdf).pvalue > 0.001


def test_class_counts_are_those_wished_for_where_the_supply_allows():
    """Two devices whose mixes add up to the supply get them to within one clip."""
    mix = np.array([0.5, 0.3, 0.2])
    mixes = np.stack([mix, 2 / 3 - mix])
    counts = allocate(mixes, np.array([301, 302]), np.full(3, 201), np.random.default_rng(0))
    assert np.abs(counts - np.array([[301], [302]]) * mixes).max() <= 1


def test_a_gradual_shift_goes_linearly_from_one_mix_to_the_other():
    settings = StreamSettings(shift="gradual", dirichlet_alpha=None, run_clips=1.0, seed=8)
    stream = Stream(LABELS, 1, settings)
    start, end = stream.wished_mix(0, 0.0), stream.wished_mix(0, 1.0)
    assert np.allclose(stream.wished_mix(0, 0.25), 0.75 * start + 0.25 * end)
    clips = heard(stream)[0]
    quarters = [shares(stream, clips[at : at + 500]) for at in range(0, 2000, 500)]
    moved = end - start
    along = [float(quarter @ moved) / float(moved @ moved) for quarter in quarters]
    assert all(earlier < later for earlier, later in pairwise(along))
    steps = np.diff(along)
    assert steps.max() < 2.5 * steps.min()  # no jump: the supply bends the line, but does not break it


def test_an_abrupt_shift_changes_the_mix_in_the_middle_and_not_before():
    stream = Stream(LABELS, 1, StreamSettings(shift="abrupt", dirichlet_alpha=0.3, run_clips=1.0, seed=2))
    assert np.array_equal(stream.wished_mix(0, 0.0), stream.wished_mix(0, 0.49))
    clips = heard(stream)[0]
    first, second, third, fourth = (shares(stream, clips[at : at + 500]) for at in range(0, 2000, 500))
    assert np.abs(second - third).sum() > 5 * max(np.abs(first - second).sum(), np.abs(third - fourth).sum())


def test_iid_devices_shift_together():
    stream = Stream(LABELS, 2, StreamSettings(shift="abrupt", dirichlet_alpha=None, seed=4))
    early = [shares(stream, clips[:500]) for clips in heard(stream)]
    late = [shares(stream, clips[500:]) for clips in heard(stream)]
    assert np.abs(early[0] - early[1]).max() < 0.01 < 0.1 < np.abs(early[0] - late[0]).max()


@pytest.mark.parametrize("run", [1.0, 4.0, 16.0])
def test_runs_of_one_class_have_the_wanted_mean_length(run):
    """With n equal classes drawn anew after each run, neighbours merge: run / (1 - 1/n) clips of one class in a row."""
    labels = [f"class{number % 50:02d}" for number in range(20_000)]
    stream = Stream(labels, 2, StreamSettings(dirichlet_alpha=None, run_clips=run))
    lengths = [len(list(held)) for clips in heard(stream) for _, held in groupby(labels[clip] for clip in clips)]
    assert np.mean(lengths) == pytest.approx(run / (1 - 1 / 50), rel=0.08)


def test_segments_of_one_recording_stay_in_order_and_only_they_are_continuous():
    clips = [
        Clip(Path(f"{label}{number}.wav"), label, None, start_s=10.0 * place, duration_s=10.0)
        for label in "ab" for number in range(10) for place in (0, 1, 2, 5)
    ]  # fmt: skip
    follows = directly_follows(clips)
    assert follows[:4] == [-1, 0, 1, -1]
    stream = Stream([clip.label for clip in clips], 2, StreamSettings(run_clips=8.0), follows=follows)
    flags = 0
    for device in range(2):
        steps = list(stream.device(device))
        assert not steps[0].continuous
        for before, step in pairwise(steps):
            assert step.continuous == (follows[step.clip] == before.clip)
            flags += step.continuous
    assert flags > 25  # of 40 possible: runs cut some


def test_whole_files_are_never_continuous():
    assert directly_follows([Clip(Path("a.wav"), "a", None), Clip(Path("a.wav"), "a", None)]) == [-1, -1]
    stream = Stream(LABELS[:50], 2)
    assert not any(step.continuous for device in range(2) for step in stream.device(device))


@limits(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(1, 30), min_size=2, max_size=8), st.integers(0, 10_000))
def test_allocation_keeps_both_sums_whatever_is_wished(rows, supply, seed):
    rng = np.random.default_rng(seed)
    sizes = np.bincount(rng.integers(rows, size=sum(supply)), minlength=rows)
    mixes = rng.dirichlet(np.full(len(supply), 0.05), size=rows)
    counts = allocate(mixes, sizes, np.array(supply), rng)
    assert counts.min() >= 0
    assert np.array_equal(counts.sum(axis=1), sizes) and np.array_equal(counts.sum(axis=0), supply)


def test_what_makes_no_stream_says_so():
    with pytest.raises(ConfigError, match="1 class"):
        Stream(["a"] * 9, 2)
    with pytest.raises(ConfigError, match="3 clips for 4 devices"):
        Stream(["a", "b", "a"], 4)
    with pytest.raises(ConfigError, match="in a circle"):
        Stream(["a", "b", "a"], 1, follows=[2, -1, 0])
    with pytest.raises(ConfigError, match="a clip or -1"):
        Stream(["a", "b"], 1, follows=[5, -1])
    with pytest.raises(ConfigError, match="device 2"):
        next(Stream(["a", "b"], 2).device(2))
    with pytest.raises(ConfigError, match="'shift'"):
        StreamSettings(shift="sudden")
