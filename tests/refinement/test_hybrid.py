import numpy as np
import pytest
import torch

from streamsplit.refinement.buffer import NearbyFrames
from streamsplit.refinement.hybrid import (
    HybridSettings,
    between_devices,
    hybrid_loss,
)
from streamsplit.refinement.laplacian import Graph, laplacian_loss, neighbour_graph, temporal_graph
from streamsplit.refinement.wasserstein import sliced_wasserstein, sliced_wasserstein_to_uniform


def unit(n, d=8, seed=0):
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d)))
    return x / x.norm(dim=1, keepdim=True)


def test_frames_around_the_batch_pull_its_rows_by_their_weights():
    z = unit(2).requires_grad_(True)
    held = unit(1, seed=1)[0].numpy()
    graph = Graph(np.array([[0, 1], [1, 2]]), np.array([0.5, 0.25], np.float32))
    settings = HybridSettings(wasserstein_weight=0.0, laplacian_weight=2.0)
    nearby = NearbyFrames(graph, held[None])
    loss = hybrid_loss(torch.zeros(()), z, np.array([0, 90]), ["a", "b"], settings, None, nearby)
    one, two = z.detach().numpy()
    expected = (0.5 * ((one - two) ** 2).sum() + 0.25 * ((two - held) ** 2).sum()) / 2
    assert float(loss.laplacian.detach()) == pytest.approx(expected)
    loss.total.backward()
    assert np.allclose(z.grad[1], 2 * (0.5 * (two - one) + 0.25 * (two - held)))


def test_version_two_adds_uniformity_and_time_smoothness():
    z, frames, devices = unit(10), np.arange(10), ["a"] * 5 + ["b"] * 5
    task = torch.tensor(0.7, dtype=torch.float64)
    result = hybrid_loss(task, z, frames, devices, HybridSettings(), torch.Generator().manual_seed(1))
    uniform = sliced_wasserstein_to_uniform(z, 50, torch.Generator().manual_seed(1))
    smooth = laplacian_loss(z, temporal_graph(frames, devices, 5, 100))
    assert float(result.wasserstein) == float(uniform) and float(result.laplacian) == float(smooth)
    assert float(result.total) == pytest.approx(0.7 + 0.1 * float(uniform) + 0.01 * float(smooth))


def test_version_one_pulls_devices_together_on_the_neighbour_graph():
    z, devices = unit(12), ["a"] * 5 + ["b"] * 7
    settings = HybridSettings(version="v1")
    result = hybrid_loss(torch.zeros(()), z, np.arange(12), devices, settings, torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(2)
    apart = [sliced_wasserstein(z[:5], z[5:], 100, generator), sliced_wasserstein(z[5:], z[:5], 100, generator)]
    assert float(result.wasserstein) == pytest.approx(float(sum(apart)) / 2)
    smooth = float(laplacian_loss(z, neighbour_graph(z, 10)))
    assert float(result.total) == pytest.approx(float(result.wasserstein) + 0.1 * smooth)
    assert float(between_devices(z, ["a"] * 12, 10)) == 0.0


def test_given_weights_replace_the_versions_own():
    settings = HybridSettings(version="v1", wasserstein_weight=0.0, laplacian_weight=0.5, projections=3, neighbours=2)
    assert settings.weights == (0.0, 0.5) and (settings.projection_count, settings.neighbour_count) == (3, 2)
