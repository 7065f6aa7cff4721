"""Corpora: windows and the samples under them agree, streams are correlated, and no recording is on both sides."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from sound_files import write_tone

from streamsplit.audio.logmel import StreamingLogMel
from streamsplit.errors import AudioError, ConfigError
from streamsplit.evaluation import corpus as corpora
from streamsplit.evaluation.corpus import (
    Corpus,
    Part,
    digits_corpus,
    esc10_corpus,
    folder_corpus,
    piece_vectors,
    prepared_corpus,
    synthetic_corpus,
)
from streamsplit.evaluation.data.prepare import prepare
from streamsplit.evaluation.data.settings import PrepareSettings
from streamsplit.evaluation.datasets import data_folder
from streamsplit.evaluation.hearing import HearingSettings


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return synthetic_corpus(20, 60.0)


def test_a_windows_samples_give_its_features(corpus: Corpus) -> None:
    for row in (0, 3, len(corpus.learn.windows) - 1):
        window = corpus.learn.window(row)
        features = StreamingLogMel().frames(window.audio, 100)
        assert np.allclose(features, window.features, atol=0.02)


def test_every_piece_is_heard_once_a_pass_whatever_the_number_of_devices(corpus: Corpus) -> None:
    alone = corpus.order(4)[0]
    fleet = corpus.order(4, devices=3)
    assert sorted(alone) == list(range(len(corpus.learn.labels))) == sorted(piece for own in fleet for piece in own)
    assert corpus.order(4) == corpus.order(4) != corpus.order(5)


def test_a_stream_goes_on_in_another_order_and_marks_where_pieces_begin(corpus: Corpus) -> None:
    count = len(corpus.learn.windows)
    heard = list(islice(corpus.stream(0), 2 * count))
    first, second = heard[:count], heard[count:]
    assert sorted(row for row, _ in first) == sorted(row for row, _ in second) == list(range(count))
    assert [row for row, _ in first] != [row for row, _ in second]
    assert all(follows == (corpus.learn.places[row] > 0) for row, follows in heard)


def labelled(pieces: int, classes: int = 6) -> Part:
    """Short pieces of noise in as many classes."""
    rng = np.random.default_rng(3)
    return corpora.pieces_part(
        [(rng.normal(0, 0.1, 1600).astype(np.float32), f"c{n % classes}", f"s{n}") for n in range(pieces)]
    )


def test_neighbouring_pieces_share_a_class_more_often_than_by_chance() -> None:
    part = labelled(240)
    corpus = Corpus("many", part, part, part, "")
    for order in (corpus.order(0)[0], *corpus.order(0, devices=3)):
        labels = [part.labels[piece] for piece in order]
        chance = sum((n / len(labels)) ** 2 for n in Counter(labels).values())
        assert np.mean([a == b for a, b in pairwise(labels)]) > chance + 0.2


def test_one_device_hears_the_runs_of_the_whole_fleet() -> None:
    part = labelled(60)
    corpus = Corpus("many", part, part, part, "", hearing=HearingSettings(shift="none", dirichlet_alpha=0.3))
    for number in (0, 1, 5):
        fleet, (alone,) = corpus.order(2, 3, number), corpus.order(2, 1, number)
        assert sorted(alone) == list(range(60)) == sorted(piece for own in fleet for piece in own)
        for own in fleet:
            assert [piece for piece in alone if piece in set(own)] == own  # a device's order is kept
        half = Counter(next(d for d, own in enumerate(fleet) if piece in own) for piece in alone[:30])
        assert max(half.values()) - min(half.values()) <= 12  # none is heard much ahead of the others


def test_devices_hear_unlike_classes_the_more_so_the_smaller_alpha_is() -> None:
    part = labelled(60)

    def apart(alpha: float | None) -> float:
        corpus = Corpus("many", part, part, part, "", hearing=HearingSettings(dirichlet_alpha=alpha, shift="none"))
        mixes = [Counter(part.labels[piece] for piece in own) for own in corpus.order(0, 3)]
        return sum(abs(mixes[0][name] - mixes[1][name]) for name in corpus.classes)

    assert apart(None) < apart(0.05)


def test_silent_short_and_unreadable_clips_are_left_out_and_counted(tmp_path: Path) -> None:
    for label, hz in (("low", 200.0), ("high", 2000.0)):
        for number in range(4):
            write_tone(tmp_path / label / f"{label}{number}.wav", hz=hz)
    write_tone(tmp_path / "low" / "still.wav", level=0.0)
    write_tone(tmp_path / "low" / "blip.wav", 0.4)
    (tmp_path / "high" / "broken.wav").write_bytes(b"RIFF")
    corpus = folder_corpus(tmp_path)
    assert len(corpus.train.labels) + len(corpus.test.labels) == 8
    (note,) = corpus.notes
    assert note.startswith("3 left out of 11: ") and all(
        word in note for word in ("1 silent", "1 shorter", "1 unreadable")
    )
    for path in (tmp_path / "high").glob("high*.wav"):
        write_tone(path, level=0.0)
    with pytest.raises(AudioError, match=r"got 1 class|'high'|one label"):
        folder_corpus(tmp_path)


def test_segments_of_long_recordings_follow_each_other_in_the_streams(tmp_path: Path) -> None:
    rows = ["recording,start_s,annotator_1"]
    for number in range(6):
        write_tone(tmp_path / "long" / f"r{number}.wav", 8.0, hz=200.0 + 100 * number)
        rows += [f"r{number},{start},{'early' if start < 4 else 'late'}" for start in (0, 2, 4, 6)]
    (tmp_path / "long" / "labels.csv").write_text("\n".join(rows))
    prepare(PrepareSettings(source=str(tmp_path / "long"), kind="ondevice", seconds=2.0), tmp_path / "set")
    corpus = prepared_corpus(tmp_path / "set")
    assert not set(corpus.train.sources) & set(corpus.test.sources)
    assert all(len(sound) == 32_000 for sound in corpus.learn.sounds) and "test part" in corpus.held_out
    first, second = corpus.follows.index(0), 0  # the piece that goes on from the first one
    assert corpus.learn.sources[first] == corpus.learn.sources[second]
    joined = 0
    before = -1
    for row, follows in islice(corpus.stream(0, devices=2, device=1), 60):
        place, piece = int(corpus.learn.places[row]), int(corpus.learn.owners[row])
        assert follows == (place > 0 or corpus.follows[piece] == before)
        joined += place == 0 and follows
        before = piece
    assert joined > 0


def test_a_prepared_folder_keeps_its_folds_and_says_what_was_left_out(tmp_path: Path) -> None:
    for label, hz in (("low", 200.0), ("high", 2000.0)):
        for fold in (1, 2):
            for source in (10, 11):
                write_tone(tmp_path / "esc" / label / f"{fold}-{source}{label[0] == 'l':d}{fold}-A.wav", hz=hz)
    write_tone(tmp_path / "esc" / "low" / "1-999-A.wav", level=0.0)
    prepare(PrepareSettings(source=str(tmp_path / "esc")), tmp_path / "set")
    corpus = prepared_corpus(tmp_path / "set")
    assert corpus.held_out.startswith("fold 2") and all(source.endswith("2") for source in corpus.test.sources)
    assert corpus.notes[0].startswith("1 left out when it was prepared: 1 silent")


def test_a_pieces_vector_is_the_mean_of_its_windows(corpus: Corpus) -> None:
    vectors = np.random.default_rng(0).standard_normal((len(corpus.train.windows), 5))
    slow = [vectors[corpus.train.owners == piece].mean(0) for piece in range(len(corpus.train.labels))]
    assert np.allclose(piece_vectors(vectors, corpus.train), slow)


def test_the_fingerprint_tells_corpora_apart(corpus: Corpus) -> None:
    other = Corpus("x", corpus.learn, corpus.train, corpus.train, "")
    assert corpus.fingerprint == synthetic_corpus(20, 60.0).fingerprint != other.fingerprint


def test_a_short_clip_is_heard_twice_and_all_of_it_both_times() -> None:
    audio = np.random.default_rng(1).normal(0, 0.1, 6400).astype(np.float32)  # 0.4 s
    part = corpora.pieces_part([(corpora._heard_twice(audio), "a", "a")], corpora.SHORT_STRIDE_FRAMES)
    assert len(part.windows) == 2 and part.places.tolist() == [0, 1]
    silent, loud = part.windows[0, :, :15].max(), part.windows[:, :, 25:35].min()
    assert silent < -13.0 < loud


def test_no_recording_is_on_both_sides_of_the_real_data() -> None:
    root = data_folder()
    if root is None or not (root / "esc10").is_dir():
        pytest.skip("no ESC-10: there is no data folder (set STREAMSPLIT_DATA)")
    with pytest.raises(ConfigError, match="expected different ones of"):
        esc10_corpus(root / "esc10", (1, 2), 2)


def test_a_raw_folder_says_which_classes_are_empty_and_which_rates_are_mixed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label, rate in (("low", 16_000), ("high", 44_100)):
        (tmp_path / label).mkdir()
        for number in range(6):
            soundfile.write(tmp_path / label / f"{label}{number}_a.wav", rng.normal(0, 0.1, 2 * rate), rate)
    (tmp_path / "nobody").mkdir()
    assert folder_corpus(tmp_path).notes == (
        "1 left out as they are: 1 class folder without audio",
        "mixed sample rates, resampled when they are read: 6 of 16000 Hz, 6 of 44100 Hz",
    )


def test_folders_without_digits_and_unknown_speakers_are_refused(tmp_path) -> None:
    with pytest.raises(AudioError, match="got no <digit>_<speaker>_<take>"):
        digits_corpus(tmp_path)
    import soundfile

    for speaker in ("ann", "bob"):
        for digit in (0, 1):
            soundfile.write(tmp_path / f"{digit}_{speaker}_0.wav", np.full(4000, 0.1 * digit + 0.1), 8000)
    made = digits_corpus(tmp_path, "ann")
    assert set(made.train.sources) == {"bob"} and set(made.test.sources) == {"ann"}
    assert len(made.learn.windows) == 2 * len(made.train.windows) == 4
    with pytest.raises(ConfigError, match="speaker 'cid'"):
        digits_corpus(tmp_path, "cid")


def test_a_prepared_set_of_esc_names_gives_the_probe_of_the_folder_itself(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label, hz in (("low", 300.0), ("high", 900.0)):
        for fold in (1, 2, 3, 4):
            for number in range(4):
                name = f"{fold}-{1000 + int(rng.integers(9000))}-A-{number}.wav"
                write_tone(tmp_path / "raw" / label / name, hz=hz * (1 + 0.4 * rng.random()), level=rng.random())
    prepare(PrepareSettings(source=str(tmp_path / "raw")), tmp_path / "set")
    raw, prepared = corpora.esc10_corpus(tmp_path / "raw"), prepared_corpus(tmp_path / "set")
    assert raw.train.sources == prepared.train.sources and raw.test.sources == prepared.test.sources
    assert np.array_equal(raw.test.windows, prepared.test.windows)


def test_one_test_clip_a_class_is_refused_before_anything_is_learned(tmp_path: Path) -> None:
    for label, hz in (("low", 200.0), ("high", 2000.0)):
        for number in range(3):
            write_tone(tmp_path / label / f"{label}{number}.wav", hz=hz)
    with pytest.raises(AudioError, match="got 2 test clips of 2 classes, expected two or more of some class"):
        folder_corpus(tmp_path)


def test_eight_recordings_of_a_class_are_enough_for_a_prepared_set(tmp_path: Path) -> None:
    for label, hz in (("low", 200.0), ("high", 2000.0)):
        for number in range(8):
            write_tone(tmp_path / "raw" / label / f"{label}{number}.wav", hz=hz)
    card = prepare(PrepareSettings(source=str(tmp_path / "raw")), tmp_path / "set")
    assert Counter(prepared_corpus(tmp_path / "set").test.labels) == {"low": 2, "high": 2}
    assert not any("pieces of one recording" in fact for fact in card["facts"])
    for name in ("rain_0", "rain_1", "other"):
        write_tone(tmp_path / "raw" / "low" / f"{name}.wav")
    card = prepare(PrepareSettings(source=str(tmp_path / "raw")), tmp_path / "again")
    assert "low/rain (2 files)" in card["facts"]["pieces of one recording, by their names"]
