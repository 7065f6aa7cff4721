"""What is kept of a buffer's windows is computed once, for the window that is there now."""

import numpy as np
import torch

from streamsplit.encoders.mobilenet import MobileNetV3Small
from streamsplit.learning.slots import SlotCache, readout_cache


def windows(n, seed=0):
    return np.random.default_rng(seed).normal(-7, 2, (n, 128, 24)).astype(np.float32)


def test_each_window_is_computed_once_until_its_slot_takes_another():
    seen = []

    def mean(window):
        seen.append(window)
        return window.mean(1)

    cache, x = SlotCache(8, 128, mean), windows(3)
    slots = np.array([5, 2, 5])
    x[2] = x[0]
    assert np.array_equal(cache(slots, x), x.mean(2)) and len(seen) == 2
    assert np.array_equal(cache(np.array([2]), x[1:2]), x[1:2].mean(2)) and len(seen) == 2
    other = windows(1, seed=1)
    cache.forget(2)
    assert np.array_equal(cache(np.array([2]), other), other.mean(2)) and len(seen) == 3
    cache.clear()
    cache(slots, x)
    assert len(seen) == 5


def test_statistics_are_the_encoders_whatever_is_asked_for_together():
    torch.set_num_threads(1)
    encoder, x = MobileNetV3Small(0.25, 32, np.random.default_rng(0)), windows(4)
    one, other = readout_cache(encoder, 8), readout_cache(encoder, 8)
    together = one(np.arange(4), x)
    apart = np.concatenate([other(np.array([row]), x[row : row + 1]) for row in (3, 0, 2, 1)])
    assert np.array_equal(together[[3, 0, 2, 1]], apart)
    with torch.no_grad():
        direct = encoder.readout_features(torch.from_numpy(x)).numpy()
    assert np.allclose(together, direct, rtol=1e-3, atol=1e-6)
    assert one.state_bytes() == 8 * (2 * direct.shape[1] + 1)
