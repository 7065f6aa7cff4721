"""Synthetic soundscapes: fixed by the seed, true to their labels, neither trivial nor impossible to tell apart."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from streamsplit.audio.logmel import log_mel
from streamsplit.audio.synth import LABELS, Soundscape, render, render_scene
from streamsplit.errors import AudioError

RATE = 16_000


def labelled_windows(seed: int, seconds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-mel mean and standard deviation, level in dB, and label of 1 s windows."""
    soundscape = Soundscape(seed)
    audio = soundscape.read(seconds * RATE)
    features, levels, labels = [], [], []
    for second in range(seconds):
        label = soundscape.label_at(second, second + 1)
        if label is not None:
            window = audio[second * RATE : (second + 1) * RATE]
            mel = log_mel(window)
            features.append(np.concatenate((mel.mean(axis=1), mel.std(axis=1))))
            levels.append([10.0 * np.log10(np.mean(window**2) + 1e-12)])
            labels.append(label)
    return np.array(features), np.array(levels), np.array(labels)


@pytest.fixture(scope="module")
def learned() -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    return labelled_windows(11, 400), labelled_windows(12, 250)


def test_there_are_nine_kinds_of_sound():
    assert len(LABELS) == 9
    assert {"conversation", "music", "footsteps", "typing", "appliance", "traffic", "alarm", "rain", "silence"} == set(
        LABELS
    )


@pytest.mark.parametrize("label", LABELS)
def test_every_kind_sounds_stays_in_range_and_differs_from_draw_to_draw(label: str):
    first, second = (render_scene(label, 2.5, np.random.default_rng(seed)) for seed in (1, 2))
    for audio in (first, second, render(label, 2.5, np.random.default_rng(3))):
        assert audio.dtype == np.float32 and audio.shape == (40_000,)
        assert np.isfinite(audio).all() and np.abs(audio).max() <= 0.96
        assert np.sqrt(np.mean(audio**2)) > 1e-3
    assert abs(float(np.corrcoef(first, second)[0, 1])) < 0.5
    np.testing.assert_array_equal(first, render_scene(label, 2.5, np.random.default_rng(1)))


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("seconds", [0.0001, 0.02, 0.3])
def test_every_kind_can_be_short(label: str, seconds: float):
    audio = render_scene(label, seconds, np.random.default_rng(0))
    assert len(audio) == max(1, round(seconds * RATE)) and np.isfinite(audio).all()


def test_the_seed_fixes_the_samples_whatever_the_block_size():
    whole = Soundscape(5).read(30 * RATE)
    for size in (1_600, 77_777):
        blocks = [audio for audio, _ in itertools.islice(Soundscape(5).blocks(size), 30 * RATE // size)]
        np.testing.assert_array_equal(np.concatenate(blocks), whole[: len(blocks) * size])
    assert not np.array_equal(Soundscape(6).read(RATE), whole[:RATE])


def test_the_truth_covers_the_stream_without_gaps_and_changes_kind_at_every_border():
    soundscape = Soundscape(1)
    soundscape.read(120 * RATE)
    truth = soundscape.truth
    assert truth[0].start_s == 0.0 and truth[-1].end_s >= 120.0
    for before, after in itertools.pairwise(truth):
        assert before.end_s == after.start_s and before.label != after.label
    assert all(segment.end_s - segment.start_s >= 1.99 for segment in truth)
    assert 4.0 < truth[-1].end_s / len(truth) < 9.0  # mean_segment_s is 6


def test_labels_are_those_of_more_than_half_of_the_stretch():
    soundscape = Soundscape(1)
    soundscape.read(60 * RATE)
    first, second = soundscape.truth[:2]
    border = first.end_s
    assert soundscape.label_at(border - 0.6, border + 0.4) == first.label
    assert soundscape.label_at(border - 0.4, border + 0.6) == second.label
    assert soundscape.label_at(border - 0.5, border + 0.5) is None
    assert soundscape.label_at(9_000.0, 9_001.0) is None
    replay = Soundscape(1)
    for position, (audio, label) in enumerate(itertools.islice(replay.blocks(RATE), 50)):
        assert label == replay.label_at(position, position + 1) and len(audio) == RATE


def test_segments_fade_into_each_other_without_a_jump_or_a_hole():
    soundscape = Soundscape(2, classes=("rain", "traffic"), level_dbfs=(-30.0, -30.0))
    audio = soundscape.read(60 * RATE)
    for segment in soundscape.truth[:-2]:
        border = round(segment.end_s * RATE)
        around = audio[border - 800 : border + 800]
        assert 10.0 * np.log10(np.mean(around**2)) > -37.0
    assert np.abs(np.diff(audio)).max() < 0.5


def test_the_mix_of_kinds_drifts():
    soundscape = Soundscape(4)
    early, late = ([soundscape._draw_label(t, np.random.default_rng(i)) for i in range(300)] for t in (0.0, 150.0))
    counts = np.array([[draws.count(label) for label in LABELS] for draws in (early, late)])
    assert np.abs(counts[0] - counts[1]).sum() > 100  # independent draws of one mix differ by about 60


def test_only_the_classes_asked_for_are_heard():
    soundscape = Soundscape(0, classes=("rain", "music"))
    soundscape.read(20 * RATE)
    assert {segment.label for segment in soundscape.truth} == {"rain", "music"}
    alone = Soundscape(0, classes=("rain",))
    alone.read(20 * RATE)
    assert {segment.label for segment in alone.truth} == {"rain"}


def test_loudness_tells_nothing_about_the_kind(learned):
    (_, train_levels, train_labels), (_, test_levels, test_labels) = learned
    accuracy = KNeighborsClassifier(25).fit(train_levels, train_labels).score(test_levels, test_labels)
    chance = max(np.mean(test_labels == label) for label in LABELS)
    assert accuracy < chance + 0.08


def test_spectrum_and_its_movement_tell_much_but_not_all(learned):
    (train, _, train_labels), (test, _, test_labels) = learned
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1_000)).fit(train, train_labels)
    both = model.score(test, test_labels)
    assert 0.5 < both < 0.92
    means = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1_000)).fit(train[:, :128], train_labels)
    assert means.score(test[:, :128], test_labels) < both - 0.03  # the mean spectrum alone is not enough


def test_a_soundscape_is_made_at_least_50_times_faster_than_it_plays():
    soundscape = Soundscape(3)
    soundscape.read(10 * RATE)
    started = time.process_time()
    soundscape.read(60 * RATE)
    assert 60.0 / (time.process_time() - started) > 50.0


def test_unknown_kinds_and_empty_choices_are_refused():
    with pytest.raises(AudioError, match="did you mean 'rain'"):
        render("rian", 1.0, np.random.default_rng(0))
    with pytest.raises(AudioError, match="did you mean 'music'"):
        Soundscape(classes=("musik",))
    for arguments in ({"classes": ()}, {"mean_segment_s": 1.0}, {"sample_rate_hz": 8_000}):
        with pytest.raises(AudioError):
            Soundscape(**arguments)
    with pytest.raises(AudioError):
        render("rain", 0.0, np.random.default_rng(0))
