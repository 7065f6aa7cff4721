"""Bottlenecks: fitted close to the whole network, carried through the wire, kept apart from plain crossings."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from streamsplit.encoders.bottleneck import Bottleneck, fit_bottleneck
from streamsplit.encoders.crossing import pack_crossing, unpack_crossing
from streamsplit.errors import CutError, RevisionError
from streamsplit.weights.revision import encoder_weights, load_weights, revision_of
from streamsplit.wire.media import Encoding

CUT = 7


def agreement(encoder, windows, k=CUT):
    with torch.no_grad():
        whole = encoder.forward_to(torch.from_numpy(windows), k)
        z = encoder.forward_from(whole, k)
        narrow = whole._replace(h=encoder.bottlenecks[k](whole.h))
        return float((encoder.forward_from(narrow, k) * z).sum(1).mean())


@pytest.fixture(scope="module")
def fitted(mobilenet, windows):
    encoder = copy.deepcopy(mobilenet)
    fit_bottleneck(encoder, CUT, windows[::2], steps=40)
    return encoder


def test_fitting_brings_held_out_embeddings_closer_than_the_least_squares_start(mobilenet, fitted, windows):
    start = copy.deepcopy(mobilenet)
    fit_bottleneck(start, CUT, windows[::2], steps=0)
    untrained, trained = agreement(start, windows[1::2]), agreement(fitted, windows[1::2])
    assert untrained > 0.85
    assert 1 - trained < 0.75 * (1 - untrained)


def test_the_start_is_the_best_linear_narrowing_of_the_channels(mobilenet, windows):
    encoder = copy.deepcopy(mobilenet)
    bottleneck = fit_bottleneck(encoder, CUT, windows[::2], steps=0)
    h = encoder.forward_to(torch.from_numpy(windows[::2]), CUT).h
    pixels = h.permute(0, 2, 3, 1).reshape(-1, h.shape[1]).double().numpy()
    singular = np.linalg.svd(pixels - pixels.mean(0), compute_uv=False)
    best = (singular[bottleneck.narrow :] ** 2).sum() / pixels.size
    with torch.no_grad():
        error = (bottleneck(h) - h).double().square().mean().item()
    assert error == pytest.approx(best, rel=1e-3)


def test_a_quarter_of_the_channels_crosses_the_wire_and_comes_back(fitted, windows):
    x = torch.from_numpy(windows[1:2])
    with torch.no_grad():
        sent = fitted.forward_to(x, CUT)
        through = fitted.bottlenecks.get(CUT)
        plain, narrow = (pack_crossing(sent, Encoding.INT8, t) for t in (None, through))
        assert len(plain) - len(narrow) == 32 * 8 * 7 * 3 // 4
        got = unpack_crossing(narrow, through)
        assert got.h.shape == sent.h.shape
        z = fitted.forward_from(got, CUT)
        assert float((z * fitted(x)).sum()) > 0.85
        exact = unpack_crossing(pack_crossing(sent, Encoding.FP32, through), through)
        assert torch.equal(exact.h, through(sent.h))


def test_both_ends_must_agree_on_the_bottleneck(fitted, windows):
    sent = fitted.forward_to(torch.from_numpy(windows[:1]), CUT)
    through = fitted.bottlenecks[CUT]
    with pytest.raises(CutError, match="no bottleneck is registered"):
        unpack_crossing(pack_crossing(sent, Encoding.INT8, through))
    with pytest.raises(CutError, match="a bottleneck is registered"):
        unpack_crossing(pack_crossing(sent, Encoding.INT8), through)
    with pytest.raises(CutError, match=r"expected \[b, 8, f, t\]"):
        unpack_crossing(pack_crossing(sent, Encoding.INT8, Bottleneck(32, 5)), through)


def test_the_whole_forward_and_the_encoder_stay_as_they_were(mobilenet, fitted, windows):
    x = torch.from_numpy(windows[:2])
    assert torch.equal(fitted(x), mobilenet(x))
    before = encoder_weights(mobilenet)
    after = encoder_weights(fitted)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in fitted.parameters())


def test_a_bottleneck_is_part_of_the_revision(mobilenet, fitted):
    assert revision_of(encoder_weights(fitted)) != revision_of(encoder_weights(mobilenet))
    with pytest.raises(RevisionError, match=r"bottlenecks\.7"):
        load_weights(copy.deepcopy(mobilenet), encoder_weights(fitted))


def test_they_are_kept_by_block(mobilenet):
    bottlenecks = copy.deepcopy(mobilenet).bottlenecks
    assert len(bottlenecks) == 0 and bottlenecks.get(3) is None and 3 not in bottlenecks
    bottlenecks[12], bottlenecks[3] = Bottleneck(72), Bottleneck(24)
    assert list(bottlenecks) == [3, 12] and 3 in bottlenecks and bottlenecks[3].narrow == 6
    del bottlenecks[3]
    assert list(bottlenecks) == [12]
    with pytest.raises(CutError, match=r"there are ones at \[12\]"):
        bottlenecks[3]
    with pytest.raises(CutError, match="no bottleneck at block 3"):
        del bottlenecks[3]


@pytest.mark.parametrize("k", [0, 13, -1])
def test_only_maps_between_blocks_are_narrowed(mobilenet, windows, k):
    with pytest.raises(CutError, match=r"expected 1\.\.12"):
        fit_bottleneck(mobilenet, k, windows[:2], 1)


def test_the_same_seed_fits_the_same_bottleneck(mobilenet, windows):
    made = [fit_bottleneck(copy.deepcopy(mobilenet), 12, windows[:8], 3).down.weight for _ in range(2)]
    assert torch.equal(*made)
