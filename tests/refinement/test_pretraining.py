"""Pretraining: the target takes the voice out, batches are what they should be, learning learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamsplit.encoders.base import SplitEncoder
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.encoders.fixed import course
from streamsplit.encoders.projection import collect_readouts, fit_projection_to
from streamsplit.errors import EncoderError
from streamsplit.refinement.pretraining import CLIPS, Pretraining, PretrainingSettings, Recordings, VoicelessTarget

SMALL = PretrainingSettings(steps=12, batch_windows=16, start_windows=96, warm_up_steps=2, learning_rate=1e-3)


def small() -> SplitEncoder:
    return make_encoder(EncoderSettings(width=0.25, embedding_dim=32, bottlenecks=()))


def words(voices: int = 6, each: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows of the same four 'words' said by voices that colour them; (windows, voice, word)."""
    rng = np.random.default_rng(seed)
    shapes = rng.normal(0, 1.5, (4, 8, 128)).repeat(12, axis=1)[:, :96]  # eight steps in time
    colours = np.cumsum(rng.normal(0, 0.5, (voices, 128)), axis=1)
    windows, voice, word = [], [], []
    for number in range(voices * each):
        who, what = number // each, number % 4
        window = shapes[what] + colours[who] - 6 + rng.normal(0, 0.3, (96, 128))
        windows.append(window.T)
        voice.append(who)
        word.append(what)
    return np.array(windows, np.float32), np.array(voice), np.array(word)


def speech() -> Recordings:
    windows, voice, _ = words()
    return Recordings(windows.astype(np.float16), voice * 2 + (np.arange(len(voice)) % 16 >= 8), voice)


def clips() -> Recordings:
    rng = np.random.default_rng(1)
    spectra = np.cumsum(rng.normal(0, 0.6, (20, 128)), axis=1)
    windows = (spectra.repeat(3, axis=0)[:, :, None] - 6 + rng.normal(0, 0.5, (60, 128, 96))).astype(np.float16)
    return Recordings(windows, np.arange(20).repeat(3), np.zeros(60, int))


def nearest_word(z: np.ndarray, voice: np.ndarray, word: np.ndarray) -> float:
    """Share of windows whose nearest neighbour among other voices says the same word."""
    similarity = np.where(voice[:, None] == voice[None], -np.inf, z @ z.T)
    return float((word[similarity.argmax(1)] == word).mean())


def test_the_target_finds_the_word_whoever_says_it():
    windows, voice, word = words()
    target = VoicelessTarget(small())
    target.hear(windows, voice)
    target.fit(windows, voice, 0)
    z = target(windows, voice)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1.0, rtol=1e-5)
    raw = course(windows)
    raw = raw - raw.mean(0)
    raw /= np.linalg.norm(raw, axis=1, keepdims=True)
    assert nearest_word(z, voice, word) > max(0.9, nearest_word(raw, voice, word))


def test_taking_out_a_voice_is_centring_and_scaling_each_band():
    windows, voice, _ = words(voices=2)
    encoder = small()
    target = VoicelessTarget(encoder)
    target.hear(windows, voice)
    got = target._vectors(windows, voice)
    own = course(windows[voice == 1]).reshape(-1, 6, 32)
    expected = (own - own.mean((0, 1))) / (own.std((0, 1)) + 0.1)
    expected = expected.reshape(len(own), -1)
    expected = (expected - expected.mean(1, keepdims=True)) / expected.std(1, keepdims=True) * 1.5 / np.sqrt(192)
    np.testing.assert_allclose(got[voice == 1, 640:832], expected, atol=1e-4)
    readouts = collect_readouts(encoder, windows)
    norms = [
        np.linalg.norm(part, axis=1) for part in (got[:, :640], got[:, 832:], got[:, -encoder.sites[-1].features :])
    ]
    np.testing.assert_allclose(norms[0], 2.0, rtol=1e-3)
    np.testing.assert_allclose(norms[1], 0.15 * np.sqrt(5), rtol=1e-3)
    np.testing.assert_allclose(norms[2], 0.15, rtol=1e-3)
    np.testing.assert_allclose(np.corrcoef(got[0, :640], readouts[0, :640])[0, 1], 1.0, atol=1e-5)


def test_of_clips_the_order_in_time_counts_less_and_the_network_more():
    windows = clips().windows.astype(np.float32)
    target = VoicelessTarget(small())
    target.hear(windows, np.full(len(windows), CLIPS))
    got = target._vectors(windows, np.full(len(windows), CLIPS))
    np.testing.assert_allclose(np.linalg.norm(got[:, 640:832], axis=1), 0.5, rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(got[:, 832:], axis=1), 0.7 * np.sqrt(5), rtol=1e-3)


def test_a_target_that_was_not_fitted_says_so():
    with pytest.raises(EncoderError, match="fit"):
        VoicelessTarget(small())(np.zeros((1, 128, 96), np.float32), np.zeros(1, int))


def test_the_start_is_the_ridge_regression_to_the_targets():
    from sklearn.linear_model import Ridge

    windows = words()[0][:40]
    targets = np.random.default_rng(0).normal(size=(40, 32)).astype(np.float32)
    encoder = small()
    readouts = collect_readouts(encoder, windows).astype(np.float64)
    agreement = fit_projection_to(encoder, windows, targets, ridge=0.3)
    centred = readouts - readouts.mean(0)
    oracle = Ridge(alpha=0.3 * np.square(centred).sum() / 40).fit(readouts, targets)
    expected = oracle.predict(readouts)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    with torch.no_grad():
        got = encoder(torch.from_numpy(windows)).numpy()
    assert (got * expected).sum(1).min() > 0.999
    unit = targets / np.linalg.norm(targets, axis=1, keepdims=True)
    assert agreement == pytest.approx((expected * unit).sum(1).mean(), abs=1e-3)
    with pytest.raises(EncoderError, match="targets"):
        fit_projection_to(encoder, windows, targets[:, :5])


def test_learning_from_speech_brings_windows_closer_to_what_they_say():
    encoder = small()
    run = Pretraining(encoder, None, speech(), SMALL.replace(steps=20, ridge=10.0, isolated_share=0.0), seed=0)
    windows, voice, _ = words()
    target = torch.from_numpy(run.target(windows, voice))

    def distance() -> float:
        with torch.no_grad():
            return 1 - float((encoder(torch.from_numpy(windows)) * target).sum(1).mean())

    before = distance()
    for _ in range(20):
        run.advance()
    assert distance() < 0.9 * before


def test_learning_from_both_kinds_takes_turns_and_tells_clips_apart():
    run = Pretraining(small(), clips(), speech(), SMALL.replace(steps=24), seed=0)
    seen = [run.advance().contrast for _ in range(24)]
    contrast = [value for value in seen if not np.isnan(value)]
    assert 6 < len(contrast) < 18
    assert np.mean(contrast[-3:]) < np.mean(contrast[:3])


def test_finishing_fits_the_early_exits():
    run = Pretraining(small(), clips(), None, SMALL, seed=0)
    assert not run.encoder.exit_fitted(2)
    assert run.finish().exit_fitted(2)


@pytest.mark.parametrize("kind", ["clips", "speech"])
def test_one_kind_alone_is_enough(kind):
    parts = (clips(), None) if kind == "clips" else (None, speech())
    run = Pretraining(small(), *parts, SMALL.replace(steps=2), seed=0)
    step = run.advance()
    assert np.isnan(step.contrast) == (kind == "speech") and 0 < step.target < 2 and step.effective_rank > 1


def test_the_same_seed_learns_the_same_weights():
    first, again = (Pretraining(small(), clips(), speech(), SMALL.replace(steps=3), seed=5).run() for _ in range(2))
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_pairs_are_two_windows_of_a_clip_and_stretches_do_not_overlap():
    run = Pretraining(small(), clips(), speech(), SMALL, seed=0)
    kind, talk = run._kinds
    rows = kind.pairs(np.random.default_rng(0), 15)
    owners = clips().recordings[rows]
    assert len(rows) == 30 and np.array_equal(owners[:15], owners[15:]) and (rows[:15] != rows[15:]).all()
    assert len(set(owners[:15].tolist())) == 15
    rows = np.sort(talk.stretches(np.random.default_rng(0), 3, 4))
    assert len(rows) == 12
    for recording in set(speech().recordings[rows].tolist()):
        assert (np.diff(rows[speech().recordings[rows] == recording]) >= 2).all()


def test_too_little_to_learn_from_is_refused_in_one_line():
    with pytest.raises(EncoderError, match="neither"):
        Pretraining(small(), None, None)
    few = Recordings(np.zeros((8, 128, 96), np.float16), np.zeros(8, int), np.zeros(8, int))
    with pytest.raises(EncoderError, match="at least 32"):
        Pretraining(small(), few, None)
    alone = Recordings(clips().windows, np.zeros(60, int), np.zeros(60, int))
    with pytest.raises(EncoderError, match="at least 2"):
        Pretraining(small(), alone, None)
