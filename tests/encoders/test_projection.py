"""The starting projection, the exits and the resolution correction, against their definitions and held-out windows."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from streamsplit.encoders.factory import make_encoder
from streamsplit.encoders.projection import AffineCorrection, collect_readouts, fit_exits, fit_projection
from streamsplit.errors import EncoderError


def embed(encoder, windows):
    with torch.no_grad():
        return np.concatenate([encoder(torch.from_numpy(part)).numpy() for part in np.array_split(windows, 4)])


def exit_agreement(encoder, windows):
    z = embed(encoder, windows)
    x = torch.from_numpy(windows)
    with torch.no_grad():
        exits = [encoder.exit_embedding(encoder.forward_to(x, k), k).numpy() for k in range(encoder.num_blocks)]
    return np.array([(z * e).sum(1).mean() for e in exits])


def test_the_encoder_computes_the_fitted_map(windows):
    encoder = make_encoder()
    fitted = fit_projection(encoder, windows[::2])
    expected = fitted(collect_readouts(encoder, windows[1::2]))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(embed(encoder, windows[1::2]), expected, atol=1e-4)


def test_a_start_from_windows_spreads_embeddings_that_were_all_alike(windows):
    encoder = make_encoder()
    before = embed(encoder, windows[1::2])
    fit_projection(encoder, windows[::2])
    after = embed(encoder, windows[1::2])
    assert (before @ before.T).mean() > 0.5
    assert abs((after @ after.T).mean()) < 0.1


def test_a_new_start_resets_the_exits(mobilenet, windows):
    encoder = copy.deepcopy(mobilenet)
    assert not torch.equal(encoder.exit_heads()[0].weight, torch.eye(128))
    fit_projection(encoder, windows[:20])
    for head in encoder.exit_heads():
        assert torch.equal(head.weight, torch.eye(128)) and not head.bias.any()


def test_fitted_exits_come_closer_to_the_embedding_on_held_out_windows(windows):
    encoder = make_encoder()
    fit_projection(encoder, windows[::2])
    plain = exit_agreement(encoder, windows[1::2])
    reported = fit_exits(encoder, windows[::2])
    fitted = exit_agreement(encoder, windows[1::2])
    assert (fitted > plain + 0.002).all()
    assert fitted[0] > 0.8 and fitted[12] > 0.95
    assert (np.diff(fitted) >= 0).all(), "deeper exits know more"
    own = exit_agreement(encoder, windows[::2])
    np.testing.assert_allclose(reported, own[[0, 2, 4, 7, 9]], atol=1e-4)


def test_fitting_exits_changes_nothing_else(mobilenet, windows):
    encoder = copy.deepcopy(mobilenet)
    fit_exits(encoder, windows[:10])
    assert np.array_equal(embed(encoder, windows[:4]), embed(mobilenet, windows[:4]))


def test_correction_finds_a_known_affine_map():
    rng = np.random.default_rng(0)
    full = rng.standard_normal((500, 16))
    full /= np.linalg.norm(full, axis=1, keepdims=True)
    matrix = rng.standard_normal((16, 16))
    reduced = (full - 0.1) @ matrix
    corrected = AffineCorrection.fit(reduced, full, ridge=1e-9)(reduced)
    np.testing.assert_allclose(corrected, full, atol=1e-4)
    single = AffineCorrection.fit(reduced, full, ridge=1e-9)(reduced[3])
    np.testing.assert_allclose(single, full[3], atol=1e-4)


def test_correction_brings_reduced_embeddings_closer_on_held_out_windows(encoder, windows, reduced_windows):
    full, reduced = embed(encoder, windows), embed(encoder, reduced_windows)
    corrected = AffineCorrection.fit(reduced[::2], full[::2])(reduced[1::2])
    np.testing.assert_allclose(np.linalg.norm(corrected, axis=1), 1, atol=1e-5)
    before, after = (reduced[1::2] * full[1::2]).sum(1).mean(), (corrected * full[1::2]).sum(1).mean()
    assert 1 - after < 0.6 * (1 - before)


def test_too_few_or_misshapen_windows_are_refused(mobilenet, windows):
    encoder = copy.deepcopy(mobilenet)
    with pytest.raises(EncoderError, match="at least 2"):
        fit_projection(encoder, windows[:1])
    with pytest.raises(EncoderError, match="at least 2"):
        fit_exits(encoder, windows[:1])
    with pytest.raises(EncoderError, match="bands, frames"):
        fit_projection(encoder, windows[0])
    with pytest.raises(EncoderError, match="identical rows"):
        fit_projection(encoder, np.repeat(windows[:1], 3, 0))
    with pytest.raises(EncoderError, match="NaN"):
        fit_projection(encoder, np.full((3, 128, 100), np.nan, np.float32))
    with pytest.raises(EncoderError, match="two equal"):
        AffineCorrection.fit(np.zeros((3, 4)), np.zeros((4, 4)))


def test_exits_of_identical_windows_stay_finite(mobilenet, windows):
    encoder = copy.deepcopy(mobilenet)
    fit_exits(encoder, np.repeat(windows[:1], 3, 0))
    z = encoder.exit_embedding(encoder.forward_to(torch.from_numpy(windows[:1]), 2), 2)
    torch.testing.assert_close(z, encoder(torch.from_numpy(windows[:1])), atol=1e-4, rtol=0)
