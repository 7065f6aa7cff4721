import numpy as np
import pytest
import torch

from streamsplit.refinement.buffer import NearbyFrames
from streamsplit.refinement.hybrid import (
    HybridSettings,
    between_devices,
    hybrid_loss,
    label_loss,
    pair_info_nce,
    target_loss,
)
from streamsplit.refinement.laplacian import Graph, laplacian_loss, neighbour_graph, temporal_graph
from streamsplit.refinement.wasserstein import sliced_wasserstein, sliced_wasserstein_to_uniform


def unit(n, d=8, seed=0):
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d)))
    return x / x.norm(dim=1, keepdim=True)


def slow_info_nce(first, second, frames, devices, temperature, mask):
    rows = torch.cat([first, second]).numpy()
    n, losses = len(rows), []
    for i in range(n):
        positive = (i + n // 2) % n
        terms = []
        for j in range(n):
            near = devices[i] == devices[j] and abs(int(frames[i]) - int(frames[j])) <= mask
            if j == positive or (j != i and not near):
                terms.append(np.exp(rows[i] @ rows[j] / temperature))
        losses.append(-np.log(np.exp(rows[i] @ rows[positive] / temperature) / sum(terms)))
    return float(np.mean(losses))


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


def test_info_nce_equals_a_slow_loop_with_near_windows_masked():
    first, second = unit(6), unit(6, seed=1)
    frames = np.array([0, 3, 50, 0, 2, 90, 1, 4, 51, 1, 3, 91])
    devices = ["a", "a", "a", "b", "b", "b"] * 2
    value = pair_info_nce(first, second, frames, devices, 0.2, mask_frames=4)
    assert float(value) == pytest.approx(slow_info_nce(first, second, frames, devices, 0.2, 4), rel=1e-9)
    unmasked = pair_info_nce(first, second, frames, devices, 0.2, mask_frames=0)
    assert float(unmasked) == pytest.approx(slow_info_nce(first, second, frames, devices, 0.2, 0), rel=1e-9)
    assert float(unmasked) > float(value)


def test_info_nce_is_finite_when_every_negative_is_masked():
    first, second = unit(3).requires_grad_(True), unit(3, seed=1)
    loss = pair_info_nce(first, second, np.zeros(6, dtype=np.int64), ["a"] * 6, 0.1, mask_frames=5)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-12) and bool(torch.isfinite(first.grad).all())


def test_target_loss_is_zero_when_each_window_equals_the_others_target():
    a, b = unit(5), unit(5, seed=1)
    assert float(target_loss(a, b, first_target=b, second_target=a)) == pytest.approx(0.0, abs=1e-12)
    assert float(target_loss(a, b, first_target=-b, second_target=-a)) == pytest.approx(2.0)


def test_label_loss_is_low_for_separated_classes_and_high_for_swapped_ones():
    z = torch.eye(8, dtype=torch.float64)[[0, 0, 0, 1, 1, 1]]
    right = float(label_loss(z, np.array([0, 0, 0, 1, 1, 1]), 0.1))
    wrong = float(label_loss(z, np.array([0, 1, 0, 1, 0, 1]), 0.1))
    assert right == pytest.approx(np.log1p(np.exp(-10.0)), rel=1e-6)
    assert wrong > 1.0
    assert float(label_loss(z, np.array([2, 2, 2, 2, 2, -1]), 0.1)) == 0.0


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
