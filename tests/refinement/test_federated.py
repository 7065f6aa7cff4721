import numpy as np
import pytest

from streamsplit.errors import RevisionError
from streamsplit.refinement.federated import LocalMerge


def weights(value, other=0.0):
    return {"a": np.full((2, 3), value, dtype=np.float32), "b": np.full(4, other, dtype=np.float32)}


BASE = weights(10.0, 10.0)


def test_devices_count_by_their_samples():
    merge = LocalMerge()
    merge.add("x", BASE, weights(1.0), 30, staleness=0)
    merge.add("y", BASE, weights(-1.0), 10, staleness=0)
    merged = merge.apply(BASE, BASE, own_samples=0)
    assert np.allclose(merged.weights["a"], 10.5) and np.allclose(merged.weights["b"], 10.0)
    assert (merged.devices, merged.samples) == (2, 40)


def test_the_servers_own_learning_is_one_of_the_contributions():
    merge = LocalMerge()
    merge.add("x", BASE, weights(4.0), 100, staleness=0)
    merged = merge.apply(BASE, weights(12.0, 11.0), own_samples=300)
    assert np.allclose(merged.weights["a"], 10 + (300 * 2 + 100 * 4) / 400)
    assert np.allclose(merged.weights["b"], 10.75)


def test_a_stale_difference_moves_less():
    merge = LocalMerge()
    merge.add("x", BASE, weights(1.0), 10, staleness=3)
    assert np.allclose(merge.apply(BASE, BASE, 0).weights["a"], 10.5)


def test_an_oversized_difference_is_scaled_down():
    merge = LocalMerge(max_relative_norm=0.1)
    merge.add("x", BASE, weights(1e6), 10, staleness=0)
    moved = merge.apply(BASE, BASE, 0).weights
    length = np.sqrt(sum(np.square(moved[name] - BASE[name]).sum() for name in BASE))
    assert length == pytest.approx(0.1 * np.sqrt(10) * 10, rel=1e-3)


def test_applying_starts_a_new_collection_and_without_any_the_own_weights_stay():
    merge = LocalMerge()
    merge.add("x", BASE, weights(1.0), 10, staleness=0)
    merge.apply(BASE, BASE, 0)
    own = weights(3.0)
    assert merge.apply(BASE, own, 5) == (own, 0, 0)


@pytest.mark.parametrize(
    ("difference", "samples", "reason"),
    [
        ({"c": np.zeros(3, np.float32)}, 5, "unknown arrays"),
        ({"a": np.zeros(3, np.float32)}, 5, "expected"),
        ({"a": np.full((2, 3), np.nan, np.float32)}, 5, "NaN"),
        ({"a": np.zeros((2, 3), np.float32)}, 0, "at least 1"),
        ({}, 5, "unknown arrays"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(difference, samples, reason):
    merge = LocalMerge()
    with pytest.raises(RevisionError, match=reason):
        merge.add("x", BASE, difference, samples, staleness=0)
    assert not merge.sums and not merge.samples
