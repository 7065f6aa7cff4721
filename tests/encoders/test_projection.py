"""The starting projection, the exits and the resolution correction, against their definitions and held-out windows."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from streamsplit.encoders.factory import make_encoder
from streamsplit.encoders.projection import collect_readouts, fit_exits, fit_projection, fit_reduced
from streamsplit.errors import EncoderError


def embed(encoder, windows):
    with torch.no_grad():
        return np.concatenate([encoder(torch.from_numpy(part)).numpy() for part in np.array_split(windows, 4)])


def readout_sums(encoder, windows):
    """The head's input, by the definition of the readouts."""
    groups, offset, total = collect_readouts(encoder, windows), 0, 0.0
    for project in encoder.readout_projections():
        part = torch.from_numpy(groups[:, offset : offset + project.in_features])
        total, offset = total + project(part).detach().numpy(), offset + project.in_features
    return total


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


def test_the_resolution_correction_is_the_ridge_solution(encoder, windows, reduced_windows):
    encoder, windows, reduced_windows = copy.deepcopy(encoder), windows[::2], reduced_windows[::2]
    before = embed(encoder, reduced_windows)
    reported = fit_reduced(encoder, windows, ridge=0.5)
    after = embed(encoder, reduced_windows)
    full = embed(encoder, windows)
    assert reported == pytest.approx((after * full).sum(1).mean(), abs=0.01)
    sums = readout_sums(encoder, reduced_windows)
    x, y = sums - sums.mean(0), full - full.mean(0)
    multiple = (x * y).sum() / (x * x).sum()  # the penalty draws towards the best multiple of the identity
    oracle = Ridge(alpha=0.5 * sums.var(0).sum() * len(sums) / sums.shape[1]).fit(x, y - multiple * x)
    expected = multiple * x + oracle.predict(x) + full.mean(0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert (expected * after).sum(1).min() > 0.999
    assert 1 - (after * full).sum(1).mean() < 0.5 * (1 - (before * full).sum(1).mean())


def test_correction_brings_reduced_embeddings_closer_on_held_out_windows(encoder, windows, reduced_windows):
    encoder = copy.deepcopy(encoder)
    full, before = embed(encoder, windows[1::2]), embed(encoder, reduced_windows[1::2])
    fit_reduced(encoder, windows[::2])
    after = embed(encoder, reduced_windows[1::2])
    assert 1 - (after * full).sum(1).mean() < 0.6 * (1 - (before * full).sum(1).mean())
    assert np.array_equal(embed(encoder, windows[1::2]), full), "full resolution is not touched"


def test_too_few_windows_leave_the_correction_as_it_is(encoder, windows):
    encoder = copy.deepcopy(encoder)
    fit_reduced(encoder, windows[:20])
    assert torch.equal(encoder.from_reduced.weight, torch.eye(128))


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
    with pytest.raises(EncoderError, match="128"):
        fit_reduced(encoder, np.zeros((3, 64, 50), np.float32))


def test_exits_of_identical_windows_stay_finite(mobilenet, windows):
    encoder = copy.deepcopy(mobilenet)
    fit_exits(encoder, np.repeat(windows[:1], 3, 0))
    z = encoder.exit_embedding(encoder.forward_to(torch.from_numpy(windows[:1]), 2), 2)
    torch.testing.assert_close(z, encoder(torch.from_numpy(windows[:1])), atol=1e-4, rtol=0)
