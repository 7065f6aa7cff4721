"""Stopping after any block and going on from there, early exits, and what the encoders refuse."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from streamsplit.audio.logmel import LOGMEL_MEAN, LOGMEL_STD, reduce_resolution
from streamsplit.encoders.base import SplitEncoder
from streamsplit.encoders.crossing import Crossing, pack_crossing, stack_crossings, unpack_crossing
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.encoders.fixed import course
from streamsplit.errors import ConfigError, EncoderError
from streamsplit.weights.revision import encoder_weights, load_weights, revision_of
from streamsplit.wire.media import Encoding


def both(windows: np.ndarray, reduced: np.ndarray, count: int) -> list[torch.Tensor]:
    step = len(windows) // count
    return [torch.from_numpy(x[::step][:count]) for x in (windows, reduced)]


def test_every_cut_gives_the_bits_of_the_whole_forward(encoder, windows, reduced_windows):
    for x in both(windows, reduced_windows, 3):
        whole = encoder(x)
        for k in range(encoder.num_blocks + 1):
            assert torch.equal(encoder.forward_from(encoder.forward_to(x, k), k), whole), k


def test_every_cut_gives_the_same_bits_after_crossing_the_wire_in_fp32(encoder, windows, reduced_windows):
    for batch in both(windows, reduced_windows, 2):
        for x in batch.split(1):
            whole = encoder(x)
            for k in range(encoder.num_blocks):
                crossed = unpack_crossing(pack_crossing(encoder.forward_to(x, k), Encoding.FP32))
                assert torch.equal(encoder.forward_from(crossed, k), whole), k


def test_the_other_end_gives_the_same_bits_from_loaded_weights(mobilenet, windows):
    server = make_encoder(EncoderSettings(seed=9))
    load_weights(server, encoder_weights(mobilenet))
    x = torch.from_numpy(windows[:1])
    with torch.no_grad():
        assert torch.equal(server.forward_from(mobilenet.forward_to(x, 5), 5), mobilenet(x))


def test_a_window_alone_and_in_a_batch_embed_alike(encoder, windows, reduced_windows):
    for x in both(windows, reduced_windows, 4):
        together = encoder(x)
        for i in range(len(x)):
            torch.testing.assert_close(encoder(x[i : i + 1])[0], together[i], atol=2e-6, rtol=0)


def test_loud_company_in_the_batch_changes_nothing(mobilenet, windows):
    x = torch.from_numpy(windows[:2])
    with_noise = torch.cat([x[:1], x[1:] + 8])
    torch.testing.assert_close(mobilenet(with_noise)[0], mobilenet(x)[0], atol=2e-6, rtol=0)


def test_stacked_crossings_complete_as_each_alone(mobilenet, windows):
    x = torch.from_numpy(windows[:3])
    stacked = stack_crossings([mobilenet.forward_to(row, 6) for row in x.split(1)])
    torch.testing.assert_close(mobilenet.forward_from(stacked, 6), mobilenet(x), atol=2e-6, rtol=0)


def test_embeddings_and_exits_have_unit_norm_at_every_depth(encoder, windows, reduced_windows):
    for x in both(windows, reduced_windows, 2):
        for k in range(encoder.num_blocks + 1):
            z = encoder.exit_embedding(encoder.forward_to(x, k), k)
            assert z.shape == (2, 128)
            torch.testing.assert_close(z.norm(dim=1), torch.ones(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(encoder(x).norm(dim=1), torch.ones(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["mobilenet", "resnet18"])
def test_an_untrained_encoder_tells_windows_apart_at_every_exit(name, windows):
    encoder = make_encoder(EncoderSettings(name=name))
    x = torch.from_numpy(windows[:: len(windows) // 6][:6])
    with torch.no_grad():
        whole = encoder(x)
        for k in range(encoder.num_blocks):
            z = encoder.exit_embedding(encoder.forward_to(x, k), k)
            torch.testing.assert_close(z.norm(dim=1), torch.ones(6), atol=1e-5, rtol=0)
            own = (z * whole).sum(1).mean()
            others = (z @ whole.T - torch.diag((z * whole).sum(1))).sum() / 30
            assert own > others + 0.02, k


def test_digital_silence_gives_a_finite_unit_vector(encoder):
    z = encoder(torch.full((1, 128, 100), math.log(1e-6)))
    assert torch.isfinite(z).all()
    torch.testing.assert_close(z.norm(), torch.tensor(1.0), atol=1e-5, rtol=0)


def test_the_embedding_is_the_normalised_projection_of_the_readouts(encoder, windows):
    x = torch.from_numpy(windows[:3])
    weight = torch.cat([p.weight for p in encoder.readout_projections()], 1)
    bias = torch.stack([p.bias for p in encoder.readout_projections()]).sum(0)
    features = encoder.readout_features(x)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3), atol=1e-3, rtol=0)
    expected = torch.nn.functional.normalize(features @ weight.T + bias, dim=1)
    torch.testing.assert_close(encoder(x), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.embed_readouts(features), expected, atol=1e-5, rtol=0)


def test_readouts_of_reduced_windows_give_the_embedding_too(encoder, windows):
    x = torch.from_numpy(np.stack([reduce_resolution(window) for window in windows[:2]]))
    encoder = copy.deepcopy(encoder)
    with torch.no_grad():
        encoder.from_reduced.weight.mul_(0.5).add_(0.01)
        found = encoder.embed_readouts(encoder.readout_features(x), x.shape[1])
        torch.testing.assert_close(found, encoder(x), atol=1e-5, rtol=0)


def test_readouts_of_the_input_are_its_statistics_over_time(mobilenet, windows):
    x = windows[:1].astype(np.float64)
    scaled = (x[0] - LOGMEL_MEAN) / LOGMEL_STD
    change = np.sqrt((np.diff(scaled, axis=1) ** 2).mean(1) + 1e-5)
    deviation = np.sqrt(scaled.var(1) + 1e-5)
    rows = np.concatenate([scaled.mean(1), deviation, scaled.max(1), scaled.min(1), change])
    expected = (rows - rows.mean()) / rows.std()
    got = mobilenet.readout_features(torch.from_numpy(windows[:1]))[0, :640].numpy().astype(np.float64)
    np.testing.assert_allclose(got / got.std(), expected, atol=2e-3)


def test_the_inputs_readout_ends_with_the_windows_course(mobilenet, windows):
    expected = course(windows[0].astype(np.float64)) / LOGMEL_STD
    expected = (expected - expected.mean()) / expected.std()
    got = mobilenet.readout_features(torch.from_numpy(windows[:1]))[0, 640:832].double().numpy()
    np.testing.assert_allclose(got / got.std(), expected, atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(got) / 1.2, np.linalg.norm(_first(mobilenet, windows)) / 2.0, rtol=1e-3)


def _first(mobilenet, windows):
    return mobilenet.readout_features(torch.from_numpy(windows[:1]))[0, :640].double().numpy()


def test_readouts_of_a_map_are_mean_and_deviation_per_row_and_channel(mobilenet, windows):
    h = mobilenet.forward_to(torch.from_numpy(windows[:1]), 12).h[0].double().numpy()  # [c, f, t]
    rows = np.concatenate([h.mean(2).T.ravel(), np.sqrt(h.var(2) + 1e-5).T.ravel()])
    expected = (rows - rows.mean()) / rows.std()
    got = mobilenet.readout_features(torch.from_numpy(windows[:1]))[0, -576:].double().numpy()
    np.testing.assert_allclose(got / got.std(), expected, atol=2e-3)


def test_the_sum_at_the_start_is_zero_and_grows_by_readouts_only(mobilenet, windows):
    x = torch.from_numpy(windows[:1])
    sums = [mobilenet.forward_to(x, k).partial for k in range(14)]
    assert not sums[0].any()
    changed = [k for k in range(1, 14) if not torch.equal(sums[k], sums[k - 1])]
    assert changed == [1, 2, 4, 7, 9, 13]
    assert [mobilenet.exit_index(k) for k in range(13)] == [0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 4]


def test_gradients_reach_every_weight_of_the_path(windows):
    encoder = make_encoder()
    x = torch.from_numpy(windows[:2])
    (encoder(x) @ torch.randn(128, generator=torch.Generator().manual_seed(0))).sum().backward()
    for name, parameter in encoder.named_parameters():
        on_path = not name.startswith(("exits.", "from_reduced.", "bottlenecks."))
        assert (parameter.grad is not None and bool(parameter.grad.any())) == on_path, name


def test_gradients_through_a_cut_equal_those_of_the_whole(windows):
    encoder = make_encoder()
    x = torch.from_numpy(windows[:2])
    target = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    (encoder(x) * target).sum().backward()
    whole = {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}
    encoder.zero_grad()
    (encoder.forward_from(encoder.forward_to(x, 7), 7) * target).sum().backward()
    for name, parameter in encoder.named_parameters():
        if name in whole:
            torch.testing.assert_close(parameter.grad, whole[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("frames", [4, 33, 250])
def test_windows_of_other_lengths_are_embedded_and_split(mobilenet, frames):
    x = torch.randn(1, 128, frames, generator=torch.Generator().manual_seed(1)) * 3 - 7
    z = mobilenet(x)
    assert torch.isfinite(z).all()
    assert torch.equal(mobilenet.forward_from(mobilenet.forward_to(x, 8), 8), z)


@pytest.mark.parametrize("shape", [(128, 100), (1, 96, 100), (1, 128, 3), (1, 1, 128, 100)])
def test_wrong_shapes_are_refused_with_what_is_expected(mobilenet, shape):
    with pytest.raises(EncoderError, match=r"expected \[batch, 128 or 64, 4 or more\]"):
        mobilenet.forward_to(torch.zeros(shape), 1)


@pytest.mark.parametrize("k", [-1, 14])
def test_blocks_that_do_not_exist_are_refused(mobilenet, k):
    crossing = Crossing(torch.zeros(1, 1, 128, 100), torch.zeros(1, 128))
    for call in (
        lambda: mobilenet.forward_to(crossing.h[:, 0], k),
        lambda: mobilenet.forward_from(crossing, k),
        lambda: mobilenet.exit_embedding(crossing, k),
    ):
        with pytest.raises(EncoderError, match=r"expected 0\.\.13"):
            call()


def test_the_same_seed_gives_the_same_weights_everywhere_and_another_seed_others():
    bare = [make_encoder(EncoderSettings(seed=seed, bottlenecks=())) for seed in (0, 0, 1)]
    revisions = [revision_of(encoder_weights(encoder)) for encoder in bare]
    assert revisions[0] == revisions[1] != revisions[2]
    assert revisions[0].startswith("bd66fbceb722ff33")
    resnet = make_encoder(EncoderSettings(name="resnet18", bottlenecks=()))
    assert revision_of(encoder_weights(resnet)).startswith("5585513d5d03071e")


def test_making_an_encoder_leaves_torchs_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make_encoder()
    assert torch.equal(torch.rand(3), expected)


def test_a_copy_embeds_with_the_same_bits(mobilenet, windows):
    x = torch.from_numpy(windows[:1])
    assert torch.equal(copy.deepcopy(mobilenet)(x), mobilenet(x))


def test_narrow_encoders_with_small_embeddings_work_too(windows):
    encoder = make_encoder(EncoderSettings(width=0.35, embedding_dim=32))
    assert isinstance(encoder, SplitEncoder)
    assert encoder(torch.from_numpy(windows[:1])).shape == (1, 32)


def test_unknown_encoder_names_are_refused():
    with pytest.raises(ConfigError, match="allowed mobilenet, resnet18"):
        EncoderSettings(name="vgg")
