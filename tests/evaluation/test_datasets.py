from collections import Counter

import numpy as np
import pytest

from streamsplit.errors import AudioError, ConfigError
from streamsplit.evaluation.datasets import (
    clip_vectors,
    data_folder,
    load_labelled_folder,
    split_clips,
)


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_labels_come_from_folders_and_folds_from_esc_names(tmp_path):
    make(tmp_path, "dog/1-100032-A.ogg", "dog/2-5-B.wav", "rain/1-17367-A.ogg", "rain/notes.txt", ".hidden/x.wav")
    clips = load_labelled_folder(tmp_path)
    assert [(clip.label, clip.path.name, clip.fold, clip.source) for clip in clips] == [
        ("dog", "1-100032-A.ogg", 1, "1-100032"),
        ("dog", "2-5-B.wav", 2, "2-5"),
        ("rain", "1-17367-A.ogg", 1, "1-17367"),
    ]


def test_the_original_esc50_names_with_a_class_at_the_end_have_folds_too(tmp_path):
    make(tmp_path, "a/1-100032-A-0.wav", "b/5-9-A-41.wav")
    assert [clip.fold for clip in load_labelled_folder(tmp_path)] == [1, 5]


def test_takes_of_one_recording_share_a_source_and_numbered_recordings_do_not(tmp_path):
    make(
        tmp_path,
        "street/north_12-1.wav",
        "street/north_12-2.wav",
        "street/south-1.wav",
        "dog/dog_1.wav",
        "dog/dog_2.wav",
    )
    make(tmp_path, "talk/meeting/a.wav", "talk/meeting/b.wav", "talk/lunch/a.wav")
    sources = {str(clip.path.relative_to(tmp_path)): clip.source for clip in load_labelled_folder(tmp_path)}
    assert sources["street/north_12-1.wav"] == sources["street/north_12-2.wav"] != sources["street/south-1.wav"]
    assert sources["dog/dog_1.wav"] != sources["dog/dog_2.wav"]
    assert sources["talk/meeting/a.wav"] == sources["talk/meeting/b.wav"] != sources["talk/lunch/a.wav"]


def test_a_limit_is_per_label_and_takes_from_every_fold(tmp_path):
    make(tmp_path, *[f"{label}/{fold}-{n}-A.wav" for label in "ab" for fold in (1, 2, 3) for n in range(5)])
    clips = load_labelled_folder(tmp_path, limit=6)
    assert Counter((clip.label, clip.fold) for clip in clips) == {(x, fold): 2 for x in "ab" for fold in (1, 2, 3)}


def test_missing_empty_and_single_label_folders_say_what_is_wrong(tmp_path):
    with pytest.raises(AudioError, match="no such folder"):
        load_labelled_folder(tmp_path / "nowhere")
    with pytest.raises(AudioError, match="no audio under <label>"):
        load_labelled_folder(tmp_path)
    make(tmp_path, "flat.wav")
    with pytest.raises(AudioError, match="no audio under <label>"):
        load_labelled_folder(tmp_path)
    make(tmp_path, "dog/a.wav")
    with pytest.raises(AudioError, match="one label"):
        load_labelled_folder(tmp_path)


def test_a_fold_is_held_out_where_there_are_folds(tmp_path):
    make(tmp_path, *[f"{label}/{fold}-{n}-A.wav" for label in "ab" for fold in (1, 2, 3, 4) for n in range(2)])
    clips = load_labelled_folder(tmp_path)
    split = split_clips(clips)
    assert {clip.fold for clip in split.test} == {4} and {clip.fold for clip in split.train} == {1, 2, 3}
    assert "fold 4" in split.held_out
    assert {clip.fold for clip in split_clips(clips, test_fold=2).test} == {2}
    with pytest.raises(ConfigError, match="expected one of"):
        split_clips(clips, test_fold=9)


@pytest.mark.parametrize("seed", range(5))
def test_otherwise_no_source_is_on_both_sides_and_every_label_is(tmp_path, seed):
    rng = np.random.default_rng(seed)
    for label in "abcde":
        make(tmp_path, *[f"{label}/rec{r}-{take}.wav" for r in range(8) for take in range(rng.integers(1, 5))])
    clips = load_labelled_folder(tmp_path)
    split = split_clips(clips, test_share=0.25, seed=seed)
    assert not {clip.source for clip in split.train} & {clip.source for clip in split.test}
    assert {clip.label for clip in split.train} == {clip.label for clip in split.test} == set("abcde")
    assert sorted(split.train + split.test) == sorted(clips)
    assert 0.15 < len(split.test) / len(clips) < 0.45
    assert split_clips(clips, seed=seed) == split_clips(clips, seed=seed)


def test_a_label_with_a_single_source_cannot_be_split(tmp_path):
    make(tmp_path, "a/x.wav", "a/y.wav", "b/one/1.wav", "b/one/2.wav")
    with pytest.raises(AudioError, match="'b' has one source"):
        split_clips(load_labelled_folder(tmp_path))


def test_the_data_folder_is_the_one_that_the_environment_names(tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMSPLIT_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    monkeypatch.setenv("STREAMSPLIT_DATA", str(tmp_path / "none"))  # a wrong name does not fall back to another folder
    assert data_folder() is None


def test_clip_vectors_are_means_and_deviations_over_windows():
    vectors = np.array([[1.0, 2.0], [3.0, 2.0], [5.0, 5.0]])
    assert clip_vectors(vectors, np.array([0, 0, 1])).tolist() == [[2, 2], [5, 5]]
    assert clip_vectors(vectors, np.array([0, 0, 1]), deviation=True).tolist() == [[2, 2, 1, 0], [5, 5, 0, 0]]


def test_the_real_esc10_has_four_folds_of_eighty_clips(data_dir):
    clips = load_labelled_folder(data_dir / "esc10")
    assert Counter(clip.fold for clip in clips) == {1: 80, 2: 80, 3: 80, 4: 80}
    split = split_clips(clips)
    assert len(split.test) == 80 and not {clip.source for clip in split.train} & {clip.source for clip in split.test}
