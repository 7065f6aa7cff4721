import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import adjusted_rand_score

from streamsplit.errors import EncoderError
from streamsplit.refinement.prototypes import Prototypes


def clusters(n, count=12, d=16, seed=0, spread=0.15):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(count, d))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    labels = rng.integers(count, size=n)
    return centres[labels] + rng.normal(0, spread / np.sqrt(d), (n, d)), labels, centres


def feed(prototypes, z, batch=25):
    for start in range(0, len(z), batch):
        prototypes.observe(z[start : start + batch])


def test_known_clusters_are_found():
    z, labels, centres = clusters(3000)
    prototypes = Prototypes(12, 16, seed=1)
    feed(prototypes, z)
    assert adjusted_rand_score(labels, prototypes.nearest(z).prototype) > 0.95
    assert np.linalg.norm(prototypes.centres[:, None] - centres[None], axis=2).min(axis=0).max() < 0.1


def test_inertia_is_close_to_sklearns_on_structureless_data():
    z = np.random.default_rng(2).normal(size=(4000, 8))
    prototypes = Prototypes(50, 8, seed=3)
    feed(prototypes, z, batch=100)
    mine = float((prototypes.nearest(z).distance ** 2).sum())
    theirs = MiniBatchKMeans(50, batch_size=100, random_state=0, n_init=3).fit(z)
    assert mine < 1.1 * float((theirs.transform(z).min(axis=1) ** 2).sum())


def test_prototypes_follow_a_drift_and_abandoned_ones_are_moved():
    z, _, _ = clusters(2000)
    prototypes = Prototypes(12, 16, seed=1)
    feed(prototypes, z)
    moved = clusters(6000, seed=5)[0] @ np.linalg.qr(np.random.default_rng(4).normal(size=(16, 16)))[0]
    feed(prototypes, moved)
    assert np.median(prototypes.nearest(moved).distance) < 0.25


def test_a_snapshot_continues_exactly():
    z, _, _ = clusters(900)
    first = Prototypes(12, 16, seed=1)
    feed(first, z[:400])
    second = Prototypes(12, 16, seed=1)
    second.restore({name: array.copy() for name, array in first.state().items()})
    second.rng.bit_generator.state = first.rng.bit_generator.state
    feed(first, z[400:])
    feed(second, z[400:])
    assert np.array_equal(first.centres, second.centres)


def test_fewer_distinct_points_than_prototypes_is_no_error():
    prototypes = Prototypes(5, 2)
    prototypes.observe(np.tile([[1.0, 0.0], [0.0, 1.0]], (20, 1)))
    assert prototypes.nearest(np.array([[1.0, 0.0]])).distance[0] == pytest.approx(0.0, abs=1e-6)


def test_bad_input_is_refused_and_questions_before_the_seeding_too():
    prototypes = Prototypes(5, 4)
    with pytest.raises(EncoderError, match="finite"):
        prototypes.observe(np.full((2, 4), np.nan))
    with pytest.raises(EncoderError, match="15 embeddings first"):
        prototypes.nearest(np.zeros((1, 4)))
