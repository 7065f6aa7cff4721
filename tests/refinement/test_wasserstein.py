import numpy as np
import pytest
import torch
from scipy.special import betaincinv
from scipy.stats import wasserstein_distance

from streamsplit.errors import EncoderError
from streamsplit.refinement.wasserstein import (
    random_directions,
    sliced_wasserstein,
    sliced_wasserstein_to_uniform,
    sphere_quantile_means,
    sphere_quantiles,
    wasserstein_1d,
)


def draw(n, d, seed=0, shift=0.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, 1.0, (n, d)))


def on_sphere(n, d, seed=0, rank=None):
    x = draw(n, rank or d, seed)
    if rank is not None:
        x = torch.cat([x, torch.zeros(n, d - rank, dtype=x.dtype)], dim=1)
    return x / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize(("n", "m"), [(7, 7), (5, 8), (13, 4), (1, 9), (64, 100), (17, 289)])
def test_order_one_equals_scipy_on_every_direction(n, m):
    x, y = draw(n, 6), draw(m, 6, seed=1, shift=0.3)
    directions = random_directions(12, 6, torch.Generator().manual_seed(3), like=x)
    expected = [wasserstein_distance((x @ w).numpy(), (y @ w).numpy()) for w in directions]
    assert np.allclose(wasserstein_1d(x @ directions.T, y @ directions.T, order=1).numpy(), expected, atol=1e-12)
    assert float(sliced_wasserstein(x, y, directions=directions, order=1)) == pytest.approx(
        np.mean(expected), abs=1e-12
    )


@pytest.mark.parametrize(("n", "m"), [(5, 8), (12, 18), (3, 3)])
def test_order_two_equals_repeating_both_samples_to_a_common_size(n, m):
    x, y = draw(n, 1), draw(m, 1, seed=2, shift=1.0)
    common = np.lcm(n, m)
    gap = np.sort(np.repeat(x.numpy()[:, 0], common // n)) - np.sort(np.repeat(y.numpy()[:, 0], common // m))
    assert float(wasserstein_1d(x, y)) == pytest.approx(float(np.mean(gap**2)), rel=1e-12)


def test_a_sample_is_at_distance_zero_from_itself_repeated():
    x = draw(6, 4)
    assert float(wasserstein_1d(x, x.repeat(3, 1)).max()) == pytest.approx(0.0, abs=1e-24)


def test_gradients_agree_with_finite_differences_for_unequal_sizes():
    x = draw(5, 3).requires_grad_(True)
    y = draw(7, 3, seed=4).requires_grad_(True)
    directions = random_directions(4, 3, torch.Generator().manual_seed(0)).double()
    assert torch.autograd.gradcheck(lambda a, b: sliced_wasserstein(a, b, directions=directions), (x, y))
    assert torch.autograd.gradcheck(lambda a: sliced_wasserstein_to_uniform(a, directions=directions), (x,))


def test_gradients_stay_finite_where_the_samples_coincide():
    x = draw(5, 3).requires_grad_(True)
    sliced_wasserstein(x, x.detach(), 10).backward()
    assert bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize("dim", [2, 3, 8, 128, 1024])
def test_sphere_quantiles_equal_the_beta_law(dim):
    mass = np.array([0.001, 0.01, 0.2, 0.5, 0.9, 0.999])
    expected = 2 * betaincinv((dim - 1) / 2, (dim - 1) / 2, mass) - 1
    assert np.allclose(sphere_quantiles(mass, dim), expected, atol=2e-7)


def test_quantile_means_average_to_zero_and_keep_the_variance():
    means, inside = sphere_quantile_means(50, 128)
    assert np.all(np.diff(means) > 0)
    assert np.mean(means) == pytest.approx(0.0, abs=1e-9)
    assert np.mean(means**2) + inside == pytest.approx(1 / 128, rel=1e-9)


def test_distance_to_the_uniform_law_equals_that_to_a_very_large_sample_of_it():
    x = on_sphere(60, 16, seed=5)
    directions = random_directions(20, 16, torch.Generator().manual_seed(1)).double()
    sample = on_sphere(200_000, 16, seed=6)
    expected = float(sliced_wasserstein(x, sample, directions=directions))
    assert float(sliced_wasserstein_to_uniform(x, directions=directions)) == pytest.approx(expected, rel=2e-3)


def test_known_values_at_n_128_a_point_is_far_and_a_uniform_sample_is_near():
    generator = torch.Generator().manual_seed(0)
    point = on_sphere(1, 128).expand(128, 128)
    assert float(sliced_wasserstein_to_uniform(point, 4000, generator)) == pytest.approx(0.125, rel=0.02)
    uniform = float(sliced_wasserstein_to_uniform(on_sphere(128, 128), 500, generator))
    narrow = float(sliced_wasserstein_to_uniform(on_sphere(128, 128, rank=10), 500, generator))
    assert uniform < narrow < 0.05


def test_the_same_seed_gives_the_same_value():
    x, y = draw(9, 5), draw(4, 5, seed=1)
    values = [float(sliced_wasserstein(x, y, 7, torch.Generator().manual_seed(11))) for _ in range(2)]
    assert values[0] == values[1]


def test_empty_samples_and_different_widths_are_refused():
    with pytest.raises(EncoderError, match="expected"):
        sliced_wasserstein(draw(3, 4), draw(3, 5))
    with pytest.raises(EncoderError, match="n, m >= 1"):
        wasserstein_1d(draw(3, 4)[:0], draw(3, 4))
    with pytest.raises(EncoderError, match="n >= 1"):
        sliced_wasserstein_to_uniform(draw(3, 4)[:0])
