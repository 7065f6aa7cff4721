import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from streamsplit.refinement.laplacian import laplacian_loss, neighbour_graph, temporal_graph


def dense(graph, n):
    weights = np.zeros((n, n))
    weights[graph.edges[:, 0], graph.edges[:, 1]] = graph.weights
    return weights + weights.T


def embeddings(n, d=6, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d)))


def slow_temporal_edges(frames, devices, k, horizon=None):
    found = set()
    for i, (frame, device) in enumerate(zip(frames, devices, strict=True)):
        others = [j for j in range(len(frames)) if j != i and devices[j] == device]
        if horizon is not None:
            others = [j for j in others if abs(frames[j] - frame) <= horizon]
        for j in sorted(others, key=lambda j: (abs(frames[j] - frame), frames[j]))[:k]:
            found.add((min(i, j), max(i, j)))
    return found


@pytest.mark.parametrize("make", ["temporal", "neighbour"])
def test_loss_equals_the_dense_trace_form(make):
    z = embeddings(20)
    graph = temporal_graph(np.arange(20), k=3) if make == "temporal" else neighbour_graph(z, k=4)
    weights = dense(graph, 20)
    laplacian = np.diag(weights.sum(axis=1)) - weights
    expected = np.trace(z.numpy().T @ laplacian @ z.numpy()) / len(graph.edges)
    assert float(laplacian_loss(z, graph)) == pytest.approx(expected, rel=1e-6)


def test_temporal_edges_equal_a_slow_search_with_gaps_devices_and_any_order():
    rng = np.random.default_rng(3)
    frames = rng.choice(200, size=40, replace=False)
    devices = rng.choice(["a", "b", "c"], size=40).tolist()
    for k, horizon in ((1, None), (5, None), (5, 12)):
        graph = temporal_graph(frames, devices, k, horizon)
        assert {tuple(edge) for edge in graph.edges.tolist()} == slow_temporal_edges(frames, devices, k, horizon)


def test_neighbour_edges_are_the_union_of_sklearns_neighbours():
    z = embeddings(30, seed=2)
    index = NearestNeighbors(n_neighbors=5).fit(z.numpy()).kneighbors(return_distance=False)
    expected = {(min(i, j), max(i, j)) for i, row in enumerate(index) for j in row}
    graph = neighbour_graph(z, k=5)
    assert {tuple(edge) for edge in graph.edges.tolist()} == expected


def test_weights_fall_with_distance_and_are_exp_minus_half_at_the_median():
    graph = temporal_graph(np.array([0, 1, 3, 6]), k=3)
    gaps = np.abs(np.subtract.outer([0, 1, 3, 6], [0, 1, 3, 6]))[graph.edges[:, 0], graph.edges[:, 1]]
    assert np.allclose(graph.weights, np.exp(-(gaps**2) / (2 * np.median(gaps) ** 2)))


def test_without_edges_the_loss_is_zero_and_still_has_a_gradient():
    z = embeddings(3).requires_grad_(True)
    loss = laplacian_loss(z, temporal_graph(np.arange(3), ["a", "b", "c"]))
    loss.backward()
    assert float(loss.detach()) == 0.0 and float(z.grad.abs().sum()) == 0.0
    assert len(neighbour_graph(embeddings(1)).edges) == 0
