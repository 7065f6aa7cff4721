import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from streamsplit.config import ConfigError
from streamsplit.errors import EncoderError
from streamsplit.refinement.buffer import NearbyFrames
from streamsplit.refinement.divergences import (
    gaussian_kl,
    kl_between,
    kl_to_uniform,
    mmd_squared,
    mmd_to_uniform,
    neighbour_mean_error,
)
from streamsplit.refinement.hybrid import HybridSettings, hybrid_loss
from streamsplit.refinement.laplacian import Graph, temporal_graph
from streamsplit.refinement.wasserstein import random_directions

TERMS = ("none", "mse", "kl", "mmd", "sw")
NO_LAPLACIAN = HybridSettings(laplacian_weight=0.0)


def draw(n, d, seed=0, shift=0.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, 1.0, (n, d)))


def sphere(n, d, seed=0):
    return random_directions(n, d, torch.Generator().manual_seed(seed)).double()


def slow_mmd(x, y, s):
    def mean(a, b, same):
        values = [
            np.exp(-((p - q) ** 2).sum() / (2 * s**2)) for i, p in enumerate(a) for j, q in enumerate(b)
            if not (same and i == j)
        ]  # fmt: skip
        return np.mean(values)

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def slow_neighbour_error(rows, edges, count):
    errors = []
    for i in range(count):
        near = [b if a == i else a for a, b in edges if i in (a, b)]
        if near:
            errors.append(((rows[i] - np.mean([rows[j] for j in near], axis=0)) ** 2).sum())
    return np.mean(errors)


def test_gaussian_kl_equals_torch_distributions():
    means, spreads = draw(2, 7), draw(2, 7, seed=1).exp()
    first, second = (Independent(Normal(m, s.sqrt()), 1) for m, s in zip(means, spreads, strict=True))
    expected = float(kl_divergence(first, second)) / 7
    assert float(gaussian_kl(means[0], spreads[0], means[1], spreads[1])) == pytest.approx(expected, rel=1e-12)


def test_kl_to_uniform_compares_the_fit_with_mean_zero_and_variance_one_over_d():
    x = draw(200, 5, shift=0.2)
    law = Independent(Normal(x.mean(0), x.var(0, unbiased=False).sqrt()), 1)
    uniform = Independent(Normal(torch.zeros(5).double(), torch.full((5,), 0.2**0.5).double()), 1)
    assert float(kl_to_uniform(x)) == pytest.approx(float(kl_divergence(law, uniform)) / 5, rel=2e-3)
    assert float(kl_to_uniform(sphere(100_000, 5))) == pytest.approx(0.0, abs=1e-4)


def test_kl_between_samples_is_zero_for_one_sample_and_known_for_a_shift():
    x = draw(40, 6)
    assert float(kl_between(x, x.flip(0))) == pytest.approx(0.0, abs=1e-12)
    shifted = float(kl_between(x + 0.3, x))
    assert shifted == pytest.approx(float((0.045 / (x.var(0, unbiased=False) + 1e-3 / 6)).mean()), rel=1e-9)


def test_a_collapsed_batch_has_a_finite_kl_and_gradient():
    x = sphere(1, 128).repeat(16, 1).requires_grad_(True)
    value = kl_to_uniform(x)
    value.backward()
    assert 2.0 < float(value.detach()) < 5.0 and bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize(("n", "m"), [(5, 5), (4, 9), (2, 3)])
def test_mmd_equals_a_slow_double_loop(n, m):
    x, y = draw(n, 3), draw(m, 3, seed=1, shift=0.5)
    assert float(mmd_squared(x, y, 0.8)) == pytest.approx(slow_mmd(x.numpy(), y.numpy(), 0.8), rel=1e-10)
    pooled = np.concatenate([x, y])
    gaps = sorted(((a - b) ** 2).sum() for i, a in enumerate(pooled) for b in pooled[i + 1 :])
    median = np.sqrt(gaps[(len(gaps) - 1) // 2])
    assert float(mmd_squared(x, y)) == pytest.approx(slow_mmd(x.numpy(), y.numpy(), median), rel=1e-10)


def test_mmd_of_equal_laws_is_zero_on_average_and_of_others_is_not():
    equal = np.array([float(mmd_squared(draw(20, 4, seed), draw(30, 4, 1000 + seed))) for seed in range(400)])
    assert abs(equal.mean()) < 3 * equal.std() / np.sqrt(len(equal)) and equal.min() < 0 < equal.max()
    assert float(mmd_squared(draw(20, 4), draw(30, 4, 1, shift=1.0))) > 5 * equal.std()


def test_mmd_to_uniform_is_near_zero_on_the_sphere_and_far_for_a_point():
    generator = torch.Generator().manual_seed(5)
    on_sphere = np.mean([float(mmd_to_uniform(sphere(64, 16, seed), generator)) for seed in range(100)])
    point = float(mmd_to_uniform(sphere(1, 16).repeat(64, 1), generator))
    assert abs(on_sphere) < 1e-3 and point > 0.3


def test_neighbour_error_equals_a_slow_loop_and_pulls_only_the_batch():
    rows, edges = draw(7, 4), np.array([[0, 1], [0, 5], [1, 2], [2, 6], [4, 5]])
    graph = Graph(edges, np.ones(5, np.float32))
    for count in (4, 7):  # row 3 has no neighbour
        expected = slow_neighbour_error(rows.numpy(), edges.tolist(), count)
        assert float(neighbour_mean_error(rows, graph, count)) == pytest.approx(expected, rel=1e-12)
    assert float(neighbour_mean_error(rows, Graph(np.empty((0, 2), np.int64), np.empty(0, np.float32)), 7)) == 0.0


def test_gradients_agree_with_finite_differences():
    x, y = draw(5, 3).requires_grad_(True), draw(4, 3, seed=1).requires_grad_(True)
    graph = temporal_graph(np.array([0, 1, 3, 4, 9]), None, 2)
    assert torch.autograd.gradcheck(lambda a, b: mmd_squared(a, b, 0.9), (x, y))
    assert torch.autograd.gradcheck(kl_between, (x, y))
    assert torch.autograd.gradcheck(kl_to_uniform, (x,))
    assert torch.autograd.gradcheck(lambda a: neighbour_mean_error(a, graph, 5), (x,))


def test_each_choice_puts_its_term_into_the_hybrid_loss():
    z, frames, devices = sphere(12, 6), np.arange(12), ["a"] * 5 + ["b"] * 7
    task = torch.tensor(0.5, dtype=torch.float64)
    expected = {
        "none": 0.0, "kl": float(kl_to_uniform(z)), "mmd": float(mmd_to_uniform(z, torch.Generator().manual_seed(3))),
        "mse": float(neighbour_mean_error(z, temporal_graph(frames, devices, 5, 100), 12)),
    }  # fmt: skip
    for name, value in expected.items():
        settings = NO_LAPLACIAN.replace(distribution=name)
        loss = hybrid_loss(task, z, frames, devices, settings, torch.Generator().manual_seed(3))
        assert float(loss.wasserstein) == value, name
        assert float(loss.total) == pytest.approx(0.5 + 0.1 * value), name
        assert float(loss.laplacian) > 0.0


def test_version_one_compares_devices_and_has_nothing_to_compare_with_one():
    z, frames, devices = sphere(12, 6), np.arange(12), ["a"] * 5 + ["b"] * 7
    for name, distance in (("kl", kl_between), ("mmd", mmd_squared)):
        settings = NO_LAPLACIAN.replace(version="v1", distribution=name)
        both = (float(distance(z[:5], z[5:])) + float(distance(z[5:], z[:5]))) / 2
        assert float(hybrid_loss(torch.zeros(()), z, frames, devices, settings).wasserstein) == pytest.approx(both)
        assert float(hybrid_loss(torch.zeros(()), z, frames, ["a"] * 12, settings).wasserstein) == 0.0


def test_mse_pulls_rows_to_the_held_frames_around_them():
    z = sphere(2, 4).requires_grad_(True)
    held = sphere(1, 4, seed=1)[0].numpy()
    nearby = NearbyFrames(Graph(np.array([[1, 2]]), np.array([0.5], np.float32)), held[None])
    settings = NO_LAPLACIAN.replace(distribution="mse", wasserstein_weight=1.0)
    loss = hybrid_loss(torch.zeros(()), z, np.array([0, 90]), ["a", "b"], settings, None, nearby)
    loss.total.backward()
    assert float(loss.wasserstein.detach()) == pytest.approx(((z.detach()[1].numpy() - held) ** 2).sum())
    assert np.allclose(z.grad[1], 2 * (z.detach()[1].numpy() - held)) and not z.grad[0].any()


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_every_choice_has_finite_gradients_on_a_collapsed_batch(name, version):
    z = sphere(1, 8).repeat(6, 1).requires_grad_(True)
    settings = HybridSettings(version=version, distribution=name)
    loss = hybrid_loss(torch.zeros(()), z, np.arange(6), ["a", "a", "a", "b", "b", "b"], settings)
    loss.total.backward()
    assert bool(torch.isfinite(loss.total)) and bool(torch.isfinite(z.grad).all())


def test_what_does_not_fit_is_refused():
    with pytest.raises(EncoderError, match="n >= 2"):
        mmd_squared(draw(1, 3), draw(4, 3))
    with pytest.raises(EncoderError, match="the same width"):
        mmd_squared(draw(3, 3), draw(4, 2))
    with pytest.raises(EncoderError, match="n >= 2"):
        kl_to_uniform(draw(1, 3))
    with pytest.raises(ConfigError, match="distribution"):
        HybridSettings(distribution="js")
