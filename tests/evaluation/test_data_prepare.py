"""`prepare` on folders of every kind: what is found, what is left out with which reason, what is refused."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
from sound_files import write_tone

from streamsplit.audio.files import read_audio
from streamsplit.errors import AudioError, ConfigError
from streamsplit.evaluation.data.manifest import COLUMNS, MANIFEST, is_prepared, load_card, load_prepared, read_clip
from streamsplit.evaluation.data.prepare import find_kind, prepare
from streamsplit.evaluation.data.settings import PrepareSettings
from streamsplit.evaluation.datasets import split_clips


def settings(source: Path, **options) -> PrepareSettings:
    return PrepareSettings(source=str(source), **options)


def reasons(card) -> dict[str, int]:
    return {reason: held["count"] for reason, held in card["left_out"].items()}


@pytest.fixture
def esc(tmp_path: Path) -> Path:
    for label in ("dog", "rain", "sea"):
        for fold in (1, 2, 3):
            for take in "AB":
                write_tone(tmp_path / "esc" / label / f"{fold}-{fold}0{len(label)}-{take}.wav")
    return tmp_path / "esc"


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    for label in ("dog", "rain"):
        for place in range(5):
            for take in (1, 2):
                write_tone(tmp_path / "own" / label / f"{label}-yard{place}_{take}.wav", hz=200 + 50 * place)
    return tmp_path / "own"


def test_esc_folders_keep_their_folds_and_takes_share_a_source(esc, tmp_path):
    card = prepare(settings(esc), tmp_path / "out", command="streamsplit data prepare")
    clips = load_prepared(tmp_path / "out")
    assert card["kind"] == "esc" and card["clips"] == len(clips) == 18 and is_prepared(tmp_path / "out")
    assert Counter(clip.fold for clip in clips) == {1: 6, 2: 6, 3: 6}
    assert card["classes"]["dog"] == {"clips": 6, "hours": 0.002, "sources": 3, "sessions": 3}
    assert card["parts"]["fold 2"]["classes"] == {"dog": 2, "rain": 2, "sea": 2}
    assert split_clips(clips).held_out == "fold 3 of 1, 2, 3"
    assert card["licence"] == {"found": False, "files": [], "readme": ""} and card["sample_rates_hz"] == {"8000": 18}
    assert "missing: no licence" in (tmp_path / "out" / "card.md").read_text()


def test_a_source_in_two_folds_is_refused(esc, tmp_path):
    write_tone(esc / "dog" / "2-103-C.wav")
    with pytest.raises(AudioError, match="source '103' in fold 1 and in fold 2"):
        prepare(settings(esc), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_original_layout_of_esc50_is_read_and_its_subset_found(tmp_path):
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in (1, 2):
        for target, (label, subset) in enumerate([("dog", True), ("rain", True), ("owl", False)]):
            name = f"{fold}-{fold}{target}-A-{target}.wav"
            rows.append(f"{name},{fold},{target},{label},{subset},{fold}{target},A")
            write_tone(tmp_path / "ESC-50" / "audio" / name)
    rows.append("2-99-A-0.wav,2,0,dog,True,99,A")
    (tmp_path / "ESC-50" / "meta").mkdir()
    (tmp_path / "ESC-50" / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")
    card = prepare(settings(tmp_path / "ESC-50"), tmp_path / "all")
    assert set(card["classes"]) == {"dog", "rain", "owl"} and card["parts"]["fold 1"]["clips"] == 3
    assert reasons(card) == {"listed, but there is no such file": 1}
    ten = prepare(settings(tmp_path / "ESC-50", classes=("esc10",)), tmp_path / "ten")
    assert set(ten["classes"]) == {"dog", "rain"} and reasons(ten)["not in the ESC-10 subset"] == 2
    named = prepare(settings(tmp_path / "ESC-50", classes=("dog", "owl")), tmp_path / "named")
    assert set(named["classes"]) == {"dog", "owl"} and reasons(named)["class not chosen"] == 2


def test_any_labelled_folder_is_dealt_out_by_source(labelled, tmp_path):
    card = prepare(settings(labelled), tmp_path / "out")
    clips = load_prepared(tmp_path / "out")
    sides = defaultdict(set)
    for clip in clips:
        sides[clip.source].add(clip.part)
    assert card["kind"] == "folder" and len(sides) == 10 and all(len(side) == 1 for side in sides.values())
    assert [(part, row["clips"]) for part, row in card["parts"].items()] == [
        ("train", 12), ("validation", 4), ("test", 4),
    ]  # fmt: skip
    assert np.array_equal(read_clip(clips[0]), read_audio(clips[0].path))


def test_folders_in_class_folders_are_sources_and_the_card_says_so(labelled, tmp_path):
    label = sorted(path for path in labelled.iterdir() if path.is_dir())[0]
    inner = label / "garden"
    inner.mkdir()
    for path in sorted(label.glob("*.*"))[:2]:
        path.rename(inner / path.name)
    assert label.name in str(prepare(settings(labelled), tmp_path / "set")["facts"])


def test_digits_have_the_speaker_as_source_and_are_kept_though_short(tmp_path):
    for digit in range(3):
        for speaker in ("ann", "bob", "cy"):
            write_tone(tmp_path / "fsdd" / f"{digit}_{speaker}_{digit}.wav", 0.4)
    card = prepare(settings(tmp_path / "fsdd"), tmp_path / "out")
    clips = load_prepared(tmp_path / "out")
    assert card["kind"] == "digits" and card["clips"] == 9 and not card["left_out"]
    assert {(clip.source, clip.fold) for clip in clips} == {("ann", 1), ("bob", 2), ("cy", 3)}
    assert {clip.source for clip in split_clips(clips, test_fold=2).test} == {"bob"}
    assert "fold 1 = ann" in card["facts"]["speakers"] and "zero-padded" in card["facts"]["short clips"]


def test_unfit_clips_are_left_out_with_counts_and_names(labelled, tmp_path):
    write_tone(labelled / "dog" / "quiet-1.wav", level=5e-5)
    write_tone(labelled / "dog" / "short-1.wav", 0.5)
    (labelled / "rain" / "broken-1.wav").write_bytes(b"RIFF, but no more")
    (labelled / "rain" / "nothing-1.wav").write_bytes(b"")
    soundfile.write(labelled / "rain" / "nan-1.wav", np.full(9000, np.nan, np.float32), 8000, subtype="FLOAT")
    (labelled / "empty").mkdir()
    card = prepare(settings(labelled), tmp_path / "out")
    assert reasons(card) == {
        "unreadable, or not finite (NaN)": 3, "silent (peak below 0.0001)": 1, "shorter than a window of 1 s": 1,
        "class folder without audio": 1,
    }  # fmt: skip
    with (tmp_path / "out" / "left_out.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert "NaN" in rows["nan-1.wav"]["detail"] and "cannot read it" in rows["nothing-1.wav"]["detail"]
    assert set(rows) == {"quiet-1.wav", "short-1.wav", "broken-1.wav", "nothing-1.wav", "nan-1.wav", "empty/"}
    kept = prepare(settings(labelled, keep_short=True), tmp_path / "short")
    assert kept["clips"] == card["clips"] + 1


def test_mixed_rates_are_stated_and_resampled_on_reading(labelled, tmp_path):
    write_tone(labelled / "dog" / "other-1.wav", rate_hz=22050)
    card = prepare(settings(labelled), tmp_path / "out")
    assert card["sample_rates_hz"] == {"8000": 20, "22050": 1} and "mixed sample rates" in card["warnings"][0]
    odd = next(clip for clip in load_prepared(tmp_path / "out") if clip.rate_hz == 22050)
    assert abs(len(read_clip(odd)) - 1.2 * 16000) <= 1


def test_balanced_means_equal_clips_a_class(labelled, tmp_path):
    for number in range(6):
        write_tone(labelled / "dog" / f"more{number}-1.wav")
    card = prepare(settings(labelled, balanced=True), tmp_path / "out")
    assert [row["clips"] for row in card["classes"].values()] == [10, 10]
    assert reasons(card) == {"beyond the smallest class's count": 6}


def test_the_licence_is_found_or_stated_missing(labelled, tmp_path):
    (labelled / "LICENSE.txt").write_text("MIT")
    (labelled / "README.md").write_text("# Sounds\nRecorded in yards.\n\nLicence: CC BY 4.0\n")
    card = prepare(settings(labelled), tmp_path / "out")
    assert card["licence"] == {"found": True, "files": ["LICENSE.txt"], "readme": "Licence: CC BY 4.0"}


def test_one_usable_class_is_too_few(tmp_path):
    for number in range(4):
        write_tone(tmp_path / "own" / "dog" / f"{number}-x.wav")
        write_tone(tmp_path / "own" / "rain" / f"{number}-x.wav", level=0.0)
    with pytest.raises(AudioError, match=r"got 1 class with usable clips, expected at least 2 \(4 left out"):
        prepare(settings(tmp_path / "own"), tmp_path / "out")
    with pytest.raises(AudioError, match="no usable clip of class 'rain'"):
        prepare(settings(tmp_path / "own", classes=("dog", "rain")), tmp_path / "out")


def test_an_unknown_class_names_the_nearest(labelled, tmp_path):
    with pytest.raises(ConfigError, match="class 'dogs', which has no clip; did you mean 'dog'"):
        prepare(settings(labelled, classes=("dogs", "rain")), tmp_path / "out")


def test_the_same_settings_write_the_same_again_and_others_are_refused(labelled, tmp_path):
    prepare(settings(labelled, seed=1), tmp_path / "out")
    before = (tmp_path / "out" / MANIFEST).read_bytes()
    prepare(settings(labelled, seed=1), tmp_path / "out")
    assert (tmp_path / "out" / MANIFEST).read_bytes() == before
    with pytest.raises(ConfigError, match=r"other settings \(seed differ\)"):
        prepare(settings(labelled, seed=2), tmp_path / "out")
    with pytest.raises(ConfigError, match="no prepared data set"):
        prepare(settings(labelled), labelled)


def test_options_of_another_kind_are_refused(labelled):
    with pytest.raises(ConfigError, match="--seconds for kind 'folder'"):
        settings(labelled, kind="folder", seconds=5.0)
    with pytest.raises(ConfigError, match="class 'a' twice"):
        settings(labelled, classes=("a", "a"))


def test_options_of_another_kind_are_refused_where_the_kind_is_found_by_looking(labelled, tmp_path):
    with pytest.raises(ConfigError, match="--seconds for kind 'folder'"):
        prepare(settings(labelled, seconds=5.0), tmp_path / "out")


def test_a_folder_that_looks_like_nothing_says_what_is_there(tmp_path):
    with pytest.raises(ConfigError, match="got no audio"):
        find_kind(settings(tmp_path))
    write_tone(tmp_path / "a.wav")
    with pytest.raises(ConfigError, match="1 audio files without class folders"):
        find_kind(settings(tmp_path))
    with pytest.raises(AudioError, match="no such folder"):
        prepare(settings(tmp_path / "nowhere"), tmp_path / "out")


def test_reading_checks_the_list_again(labelled, tmp_path):
    prepare(settings(labelled), tmp_path / "out")
    path = tmp_path / "out" / MANIFEST
    rows = path.read_text().splitlines()
    assert rows[0] == ",".join(COLUMNS)
    path.write_text("\n".join(rows[:-1]) + "\n")
    with pytest.raises(ConfigError, match="19 clips, expected 20"):
        load_prepared(tmp_path / "out")
    other = "test" if ",train," in rows[1] else "train"
    leaked = rows[1].replace(rows[1].split(",")[5], other)
    path.write_text("\n".join([rows[0], leaked, *rows[2:]]) + "\n")
    with pytest.raises(AudioError, match="expected every source on one side"):
        load_prepared(tmp_path / "out")
    path.write_text("\n".join([rows[0], "x.wav,dog", *rows[2:]]) + "\n")
    with pytest.raises(ConfigError, match=r"manifest.csv:2: got 2 values, expected 9"):
        load_prepared(tmp_path / "out")
    with pytest.raises(ConfigError, match="no prepared data set"):
        load_prepared(tmp_path)
    (tmp_path / "out" / "card.json").write_text("{}")
    with pytest.raises(ConfigError, match="no data card"):
        load_card(tmp_path / "out")


def test_audio_that_has_moved_is_found_by_its_new_root(labelled, tmp_path):
    prepare(settings(labelled), tmp_path / "out")
    moved = labelled.rename(tmp_path / "moved")
    assert all(clip.path.is_file() for clip in load_prepared(tmp_path / "out", root=moved))


def test_real_recordings_have_no_source_in_two_folds(data_dir, tmp_path):
    card = prepare(settings(data_dir / "esc10", classes=("rain", "dog_bark")), tmp_path / "out")
    assert card["clips"] == 64 and card["licence"]["files"] == ["ATTRIBUTION.csv"] and not card["warnings"]
    assert reasons(card) == {"class not chosen": 256}
    assert json.loads((tmp_path / "out" / "card.json").read_text())["hours"] == pytest.approx(64 * 5 / 3600, rel=0.01)
