"""Bottlenecks: fitted close to the whole network, carried through the wire, kept apart from plain crossings."""

from __future__ import annotations

import copy
import struct

import numpy as np
import pytest
import torch

from streamsplit.encoders.bottleneck import Bottleneck, fit_bottleneck, fit_bottlenecks
from streamsplit.encoders.crossing import Crossing, pack_crossing, unpack_crossing
from streamsplit.encoders.factory import DEFAULT_BOTTLENECKS, NUM_BLOCKS, EncoderSettings, make_encoder
from streamsplit.errors import ConfigError, CutError, RevisionError
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
        plain, narrow = pack_crossing(sent, Encoding.INT8), pack_crossing(sent, Encoding.BOTTLENECK_INT8, through)
        assert len(plain) - len(narrow) == 32 * 8 * 7 * 3 // 4
        got = unpack_crossing(narrow, through)
        assert got.h.shape == sent.h.shape
        z = fitted.forward_from(got, CUT)
        assert float((z * fitted(x)).sum()) > 0.85
        wide = through.compress(sent.h)
        scale = wide.abs().max() / 127
        torch.testing.assert_close(got.h, through.expand((wide / scale).round() * scale))


def test_the_bytes_of_a_small_narrowed_map_are_these():
    through = Bottleneck(2, 1)
    with torch.no_grad():
        for layer, weight, bias in ((through.down, [[1.0, -1.0]], [0.5]), (through.up, [[2.0], [4.0]], [0.0, 1.0])):
            layer.weight.copy_(torch.tensor(weight)[:, :, None, None])
            layer.bias.copy_(torch.tensor(bias))
    sent = Crossing(torch.tensor([3.0, 0.0, 1.5, 0.5]).reshape(1, 2, 1, 2), torch.tensor([[3.0]]))  # narrow: 2, 0
    data = pack_crossing(sent, Encoding.BOTTLENECK_INT8, through)
    scale = float(np.float32(2 / 127))
    assert data == struct.pack("<BBHHHHf2be", 19, 1, 1, 1, 2, 1, scale, 127, 0, 3)
    torch.testing.assert_close(unpack_crossing(data, through).h.flatten(), torch.tensor([4.0, 0.0, 9.0, 1.0]))


def test_both_ends_must_agree_on_the_bottleneck(fitted, windows):
    sent = fitted.forward_to(torch.from_numpy(windows[:1]), CUT)
    through = fitted.bottlenecks[CUT]
    narrowed = pack_crossing(sent, Encoding.BOTTLENECK_INT8, through)
    with pytest.raises(CutError, match="no bottleneck is registered"):
        unpack_crossing(narrowed)
    with pytest.raises(CutError, match="a bottleneck is registered"):
        unpack_crossing(pack_crossing(sent, Encoding.INT8), through)
    with pytest.raises(CutError, match=r"expected \[b, 8, f, t\]"):
        unpack_crossing(pack_crossing(sent, Encoding.BOTTLENECK_INT8, Bottleneck(32, 5)), through)
    for flags, encoding in ((0, Encoding.BOTTLENECK_INT8), (2, Encoding.BOTTLENECK_INT8), (1, Encoding.INT8)):
        with pytest.raises(CutError, match="flags"):
            unpack_crossing(bytes([encoding, flags]) + narrowed[2:], through)
    for encoding, other in ((Encoding.BOTTLENECK_INT8, None), (Encoding.INT8, through)):
        with pytest.raises(CutError, match="bottleneck-int8 and only there"):
            pack_crossing(sent, encoding, other)


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
    for k in DEFAULT_BOTTLENECKS["mobilenet"]:
        del bottlenecks[k]
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


@pytest.mark.parametrize("name", list(NUM_BLOCKS))
def test_a_new_encoder_carries_its_default_bottlenecks_not_fitted_and_otherwise_the_same_weights(name):
    made, bare = make_encoder(EncoderSettings(name=name)), make_encoder(EncoderSettings(name=name, bottlenecks=()))
    assert made.num_blocks == NUM_BLOCKS[name]
    assert tuple(made.bottlenecks) == DEFAULT_BOTTLENECKS[name] and tuple(bare.bottlenecks) == ()
    assert not any(made.bottlenecks[k].fitted for k in made.bottlenecks)
    weights, without = encoder_weights(made), encoder_weights(bare)
    assert {key for key in weights if not key.startswith("bottlenecks.")} == set(without)
    assert all(np.array_equal(weights[key], without[key]) for key in without)


def test_fitting_all_of_them_is_the_least_squares_start_of_each(mobilenet, windows):
    encoder = copy.deepcopy(mobilenet)
    fit_bottlenecks(encoder, windows[:40])
    for k in encoder.bottlenecks:
        assert encoder.bottlenecks[k].fitted
        alone = fit_bottleneck(copy.deepcopy(mobilenet), k, windows[:40], steps=0)
        assert torch.equal(alone.down.weight, encoder.bottlenecks[k].down.weight)
        assert torch.equal(alone.up.bias, encoder.bottlenecks[k].up.bias)
    with pytest.raises(CutError, match="no windows"):
        fit_bottlenecks(encoder, windows[:0])


def test_settings_refuse_a_bottleneck_where_there_is_no_map():
    with pytest.raises(ConfigError, match=r"got block 9, expected 1\.\.8 for resnet18"):
        EncoderSettings(name="resnet18", bottlenecks=(9,))
    assert EncoderSettings(bottlenecks=(7, 2, 7)).bottleneck_blocks == (2, 7)
