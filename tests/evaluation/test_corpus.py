"""Corpora: windows and the samples under them agree, streams are correlated, and no recording is on both sides."""

from __future__ import annotations

from itertools import islice, pairwise

import numpy as np
import pytest

from streamsplit.audio.logmel import StreamingLogMel
from streamsplit.errors import AudioError, ConfigError
from streamsplit.evaluation import corpus as corpora
from streamsplit.evaluation.corpus import Corpus, digits_corpus, esc10_corpus, piece_vectors, synthetic_corpus
from streamsplit.evaluation.datasets import data_folder


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


def test_neighbouring_pieces_share_a_class_more_often_than_by_chance() -> None:
    part = synthetic_corpus(60, 20.0).train
    corpus = Corpus("many", part, part, part, "")
    labels = [part.labels[piece] for piece in corpus.order(0)[0]]
    same = np.mean([a == b for a, b in pairwise(labels)])
    assert same > 0.5  # runs of three: two of three neighbours


def test_a_pieces_vector_is_the_mean_of_its_windows(corpus: Corpus) -> None:
    vectors = np.random.default_rng(0).standard_normal((len(corpus.train.windows), 5))
    slow = [vectors[corpus.train.owners == piece].mean(0) for piece in range(len(corpus.train.labels))]
    assert np.allclose(piece_vectors(vectors, corpus.train), slow)


def test_the_fingerprint_tells_corpora_apart(corpus: Corpus) -> None:
    other = Corpus("x", corpus.learn, corpus.train, corpus.train, "")
    assert corpus.fingerprint == synthetic_corpus(20, 60.0).fingerprint != other.fingerprint


def test_a_short_clip_is_heard_twice_and_all_of_it_both_times() -> None:
    audio = np.random.default_rng(1).normal(0, 0.1, 6400).astype(np.float32)  # 0.4 s
    part = corpora._part([(corpora._heard_twice(audio), "a", "a")], corpora.SHORT_STRIDE_FRAMES)
    assert len(part.windows) == 2 and part.places.tolist() == [0, 1]
    silent, loud = part.windows[0, :, :15].max(), part.windows[:, :, 25:35].min()
    assert silent < -13.0 < loud


def test_no_recording_is_on_both_sides_of_the_real_data() -> None:
    root = data_folder()
    if root is None or not (root / "esc10").is_dir():
        pytest.skip("no ESC-10: there is no data folder (set STREAMSPLIT_DATA)")
    with pytest.raises(ConfigError, match="expected different ones of"):
        esc10_corpus(root / "esc10", (1, 2), 2)


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
