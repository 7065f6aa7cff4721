"""The compared methods: split gradients are the uncut network's, averages are averages, bytes are counted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from streamsplit.codec.pcm import pack_pcm
from streamsplit.encoders.fixed import five_statistics
from streamsplit.errors import CheckpointError, ConfigError
from streamsplit.evaluation.baselines import streamsplit as ours
from streamsplit.evaluation.baselines.base import Budget, Outcome, encoder_of, heard_by
from streamsplit.evaluation.baselines.catalogue import METHODS, NAMES, method
from streamsplit.evaluation.baselines.checkpoint import GivenEncoder
from streamsplit.evaluation.baselines.fedcl import Update, federated_average
from streamsplit.evaluation.baselines.fsl import split_step
from streamsplit.evaluation.baselines.released import ReleasedMixture
from streamsplit.evaluation.baselines.server_only import through_opus
from streamsplit.evaluation.baselines.traffic import InputTraffic
from streamsplit.evaluation.corpus import Corpus
from streamsplit.server.models import weights_file
from streamsplit.splitting.cut import Cut
from streamsplit.weights.revision import encoder_weights
from streamsplit.wire.frame import HEADER_BYTES
from streamsplit.wire.media import MEDIA_HEADER_BYTES, Encoding

BUDGET = Budget(heard=204, windows=64, updates=2, converge_updates=2, server_batch=16, devices=1)


HELD: dict[str, Outcome] = {}


def run(name: str, corpus: Corpus) -> Outcome:
    """The method's outcome, run once for all tests."""
    if name not in HELD:
        HELD[name] = method(name).run(corpus, BUDGET, 0, lambda share, text: None)
    return HELD[name]


@pytest.mark.parametrize("block", [1, 5, 12])
def test_gradients_over_the_wire_are_those_of_the_uncut_network(block: int) -> None:
    windows = np.random.default_rng(0).normal(-8, 3, (4, 128, 100)).astype(np.float32)
    goal = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))

    def loss_of(z: torch.Tensor, _: object) -> torch.Tensor:
        return -(z * goal).sum(1).mean()

    whole, split = encoder_of(3), encoder_of(3)
    loss_of(whole(torch.from_numpy(windows)), None).backward()
    exchange = split_step(split, windows, Cut(block, Encoding.FP32), loss_of)
    assert len(exchange.up) == len(exchange.down) == 4
    compared = 0
    for (name, expected), got in zip(whole.named_parameters(), split.parameters(), strict=True):
        assert (expected.grad is None) == (got.grad is None), name
        if expected.grad is not None:
            assert torch.allclose(expected.grad, got.grad, rtol=1e-4, atol=1e-7), name
            compared += 1
    assert compared > 50


def test_a_coarser_encoding_changes_the_gradients_a_little_and_the_bytes_a_lot() -> None:
    windows = np.random.default_rng(0).normal(-8, 3, (2, 128, 100)).astype(np.float32)

    def step(encoding: Encoding) -> tuple[np.ndarray, int]:
        encoder = encoder_of(1)
        exchange = split_step(encoder, windows, Cut(5, encoding), lambda z, _: z[:, 0].sum())
        gradient = torch.cat([p.grad.flatten() for p in encoder.blocks.parameters() if p.grad is not None])
        return gradient.numpy(), len(exchange.up[0])

    (exact, full), (rough, small) = step(Encoding.FP32), step(Encoding.INT8)
    assert 0 < np.linalg.norm(exact - rough) < 0.1 * np.linalg.norm(exact) and small < 0.3 * full


def test_the_federated_average_weighs_devices_by_their_windows() -> None:
    rng = np.random.default_rng(0)
    base, *devices = ({"a": rng.normal(size=(3, 2)).astype(np.float32)} for _ in range(4))
    average = federated_average(base, [Update(w, n) for w, n in zip(devices, (10, 30, 0), strict=True)])
    expected = (10 * devices[0]["a"] + 30 * devices[1]["a"]) / 40
    assert np.allclose(average["a"], expected, atol=1e-6)


def test_the_released_mixture_merges_all_its_means_and_loses_its_variance() -> None:
    mixture, rng = ReleasedMixture(16, 0), np.random.default_rng(0)
    for _ in range(1500):
        z = rng.standard_normal(16)
        mixture.observe(z / np.linalg.norm(z))
    assert np.ptp(mixture.means, axis=0).max() < 1e-5 and mixture.variances.max() < 1e-5
    assert np.linalg.norm(mixture.negatives(mixture.means[0], 5), axis=1) == pytest.approx(np.ones(5), abs=1e-5)


def test_a_windows_bytes_are_its_new_samples_and_two_headers(corpus: Corpus) -> None:
    traffic = InputTraffic(corpus.learn, Encoding.PCM16)
    first = corpus.learn.window(0)
    assert traffic.bytes_of(0) == HEADER_BYTES + MEDIA_HEADER_BYTES + len(pack_pcm(first.audio))
    assert traffic.bytes_of(1) == HEADER_BYTES + MEDIA_HEADER_BYTES + 2 * 50 * 160
    assert traffic.bytes_of(1, follows=False) == traffic.bytes_of(0)


def test_opus_changes_the_windows_but_not_what_they_are(corpus: Corpus) -> None:
    coded = through_opus(corpus.learn)
    assert coded.windows.shape == corpus.learn.windows.shape
    apart = np.abs(five_statistics(coded.windows) - five_statistics(corpus.learn.windows)).mean()
    assert 0.01 < apart < 2.0


@pytest.mark.parametrize("name", NAMES)
def test_every_method_gives_finite_vectors_within_its_budget(name: str, corpus: Corpus) -> None:
    outcome = run(name, corpus)
    vectors = outcome.embed(corpus.test.batch(slice(0, 6)))
    assert len(vectors) == 6 and np.isfinite(vectors).all() and vectors.shape[1] in (128, 256, 320)
    effort = outcome.effort
    assert effort.updates <= BUDGET.updates and (effort.updates == 0) == (effort.windows == 0)
    if "server" not in name:
        assert effort.windows <= BUDGET.windows
    learns = name not in NAMES[:7]
    assert (effort.updates > 0) == learns and effort.heard == (BUDGET.heard if learns else 0)
    sends = name.startswith(("fedcl", "fsl", "heuristic_split", "streamsplit", "server_only"))
    assert (effort.uplink_bytes > 0) == sends
    assert math.isnan(outcome.peak_rank) or 1.0 <= outcome.peak_rank <= 128.0


def test_all_methods_hear_the_same_windows(corpus: Corpus) -> None:
    alone = [row for _, row, _ in heard_by(corpus, BUDGET, 7)]
    assert alone == [row for _, row, _ in heard_by(corpus, BUDGET, 7)] and len(alone) == BUDGET.heard
    assert {m.name for m in METHODS} == set(NAMES) and len(NAMES) == len(set(NAMES))


def test_streamsplit_stays_below_a_quarter_of_the_windows(corpus: Corpus) -> None:
    effort = run("streamsplit", corpus).effort
    assert 0.1 < effort.sent / effort.heard < 0.25 and effort.server_updates > 0
    assert effort.as_dict()["share_sent"] <= ours.SHARE_SENT


def test_devices_that_merge_send_their_differences_too(corpus: Corpus) -> None:
    plain, merging = run("streamsplit", corpus), run("streamsplit_merge", corpus)
    assert merging.effort.uplink_bytes > plain.effort.uplink_bytes + 500_000  # an int8 delta of a million weights
    windows = corpus.test.batch(slice(0, 6))
    assert not np.array_equal(merging.embed(windows), plain.embed(windows))


def test_opus_costs_a_tenth_of_pcm(corpus: Corpus) -> None:
    pcm, opus = (run(name, corpus).effort.uplink_bytes for name in ("server_only", "server_only_opus"))
    assert 0.05 < opus / pcm < 0.25


def test_a_given_checkpoint_is_judged_as_it_is(tmp_path, corpus: Corpus) -> None:
    encoder = encoder_of(5, "leo")
    path = tmp_path / "mine.safetensors"
    path.write_bytes(weights_file(encoder_weights(encoder)))
    given = GivenEncoder(path)
    windows = corpus.test.batch(slice(0, 3))
    got = given.run(corpus, BUDGET, 0, lambda share, text: None).embed(windows)
    assert given.about == "given leo" and np.array_equal(got, encoder(torch.from_numpy(windows)).detach().numpy())


def test_a_file_that_is_no_known_encoder_is_refused(tmp_path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(weights_file({"layer.weight": np.zeros((2, 2), np.float32)}))
    with pytest.raises(CheckpointError, match="another architecture"):
        GivenEncoder(path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        GivenEncoder(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        GivenEncoder(tmp_path / "missing.safetensors")


def test_an_unknown_method_names_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'streamsplit'"):
        method("streamsplt")
