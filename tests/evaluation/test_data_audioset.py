"""AudioSet: its own list format, clips by any of their usual names, one of the chosen classes each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sound_files import write_tone

from streamsplit.errors import AudioError, ConfigError
from streamsplit.evaluation.data.audioset import read_segments
from streamsplit.evaluation.data.manifest import load_prepared, read_clip
from streamsplit.evaluation.data.prepare import prepare
from streamsplit.evaluation.data.settings import PrepareSettings

HEAD = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=22160, num_segs=22160, num_unique_labels=527, num_positive_labels=52882
# YTID, start_seconds, end_seconds, positive_labels
"""
NAMES = """index,mid,display_name
0,/m/09x0r,Speech
1,/m/05zppz,"Male speech, man speaking"
2,/m/0bt9lr,Dog
3,/m/06mb1,Rain
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "audioset"
    lines = [
        '--aE2O5G5WE, 0.000, 3.000, "/m/0bt9lr,/t/dd00125"',
        '-_abcdefghi, 30.000, 33.000, "/m/0bt9lr"',
        'AAAAAAAAAAA, 10.000, 13.000, "/m/06mb1"',
        'BBBBBBBBBBB, 1.500, 4.500, "/m/06mb1"',
        'CCCCCCCCCCC, 2.000, 5.000, "/m/06mb1"',
        'DDDDDDDDDDD, 0.000, 3.000, "/m/06mb1,/m/0bt9lr"',
        'EEEEEEEEEEE, 0.000, 3.000, "/m/09x0r"',
        'FFFFFFFFFFF, 0.000, 3.000, "/m/0bt9lr"',
        'GGGGGGGGGGG, 0.000, 3.000, "/m/0bt9lr"',
    ]
    root.mkdir()
    (root / "balanced_train_segments.csv").write_text(HEAD + "\n".join(lines) + "\n")
    (root / "class_labels_indices.csv").write_text(NAMES)
    for name in ("--aE2O5G5WE", "-_abcdefghi_30", "AAAAAAAAAAA_10000", "YBBBBBBBBBBB", "DDDDDDDDDDD", "EEEEEEEEEEE"):
        write_tone(root / "clips" / f"{name}.flac", 3.0)
    write_tone(root / "clips" / "FFFFFFFFFFF_0.000_3.000.wav", 3.0)
    write_tone(root / "clips" / "CCCCCCCCCCC.wav", 9.0)  # the whole soundtrack
    return root


def settings(source: Path, **options) -> PrepareSettings:
    return PrepareSettings(source=str(source), **options)


def test_clips_with_exactly_one_chosen_class_are_found_by_every_usual_name(source, tmp_path):
    card = prepare(settings(source, classes=("Dog", "/m/06mb1")), tmp_path / "out")
    clips = load_prepared(tmp_path / "out")
    assert card["kind"] == "audioset" and card["facts"]["segments listed"] == 9
    assert {clip.source: clip.label for clip in clips} == {
        "--aE2O5G5WE": "Dog", "-_abcdefghi": "Dog", "FFFFFFFFFFF": "Dog", "AAAAAAAAAAA": "Rain",
        "BBBBBBBBBBB": "Rain", "CCCCCCCCCCC": "Rain",
    }  # fmt: skip
    assert {reason: held["count"] for reason, held in card["left_out"].items()} == {
        "more than one of the chosen classes": 1, "none of the chosen classes": 1, "no clip of it in the folder": 1,
    }  # fmt: skip
    assert card["left_out"]["no clip of it in the folder"]["examples"] == ["GGGGGGGGGGG from 0 s"]
    assert {clip.part for clip in clips} == {"train", "validation", "test"}


def test_a_whole_soundtrack_is_cut_to_its_segment(source, tmp_path):
    prepare(settings(source, classes=("Dog", "Rain")), tmp_path / "out")
    clip = next(clip for clip in load_prepared(tmp_path / "out") if clip.source == "CCCCCCCCCCC")
    assert (clip.start_s, clip.duration_s) == (2.0, 3.0) and len(read_clip(clip)) == 48000


def test_a_file_is_used_for_one_segment_only(source, tmp_path):
    with (source / "balanced_train_segments.csv").open("a") as file:
        file.write('BBBBBBBBBBB, 60.000, 63.000, "/m/0bt9lr"\n')
    card = prepare(settings(source, classes=("Dog", "Rain")), tmp_path / "out")
    assert card["left_out"]["its file is that of another segment too"]["examples"] == ["BBBBBBBBBBB from 60 s"]
    assert card["clips"] == 6


def test_balanced_classes_have_equal_counts(source, tmp_path):
    (source / "clips" / "AAAAAAAAAAA_10000.flac").unlink()
    card = prepare(settings(source, classes=("Dog", "Rain"), balanced=True), tmp_path / "out")
    assert [row["clips"] for row in card["classes"].values()] == [2, 2]


def test_without_names_classes_are_machine_names(source, tmp_path):
    (source / "class_labels_indices.csv").unlink()
    card = prepare(settings(source), tmp_path / "out")
    assert "/m/06mb1" in card["classes"] and "no class_labels_indices.csv" in card["facts"]["classes by"]


def test_a_class_that_is_not_listed_and_one_without_clips_are_refused(source, tmp_path):
    with pytest.raises(ConfigError, match="no segment of class 'Cat'"):
        prepare(settings(source, classes=("Cat", "Dog")), tmp_path / "out")
    for path in (source / "clips").glob("E*"):
        path.unlink()
    with pytest.raises(AudioError, match="no usable clip of class 'Speech'"):
        prepare(settings(source, classes=("Speech", "Dog")), tmp_path / "out")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a, 0, 10", "expected YTID"), ('a, x, 10, "/m/1"', "got start 'x'"), ('a, 10, 5, "/m/1"', "its end after"),
        ('a, 0, nan, "/m/1"', "got end 'nan'"), ("a, 0, 10, ", "expected YTID"),
        ("a, 0, 10, /m/1, /m/2", "expected YTID"),
    ],
)  # fmt: skip
def test_a_line_that_is_not_a_segment_is_named(tmp_path, line, says):
    (tmp_path / "list.csv").write_text(HEAD + line + "\n")
    with pytest.raises(ConfigError, match=f"list.csv:4: .*{says}"):
        read_segments(tmp_path / "list.csv")


def test_no_list_several_and_an_empty_one_are_refused(source, tmp_path):
    with pytest.raises(ConfigError, match="no list of segments"):
        prepare(settings(source / "clips", kind="audioset"), tmp_path / "out")
    (source / "eval_segments.csv").write_text(HEAD)
    with pytest.raises(ConfigError, match="2 lists of segments"):
        prepare(settings(source), tmp_path / "out")
    with pytest.raises(ConfigError, match="no segment"):
        prepare(settings(source, segments=str(source / "eval_segments.csv")), tmp_path / "out")


def test_a_tone_comes_back_as_it_was(source, tmp_path):
    prepare(settings(source, classes=("Dog", "Rain")), tmp_path / "out")
    clip = next(clip for clip in load_prepared(tmp_path / "out") if clip.source == "AAAAAAAAAAA")
    spectrum = np.abs(np.fft.rfft(read_clip(clip)))
    assert np.argmax(spectrum) / 3.0 == pytest.approx(440.0, abs=1.0)
