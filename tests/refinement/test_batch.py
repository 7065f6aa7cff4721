"""Training windows: which of the collected ones closed-form fits are made from."""

from __future__ import annotations

import numpy as np

from streamsplit.refinement.batch import full_resolution
from streamsplit.refinement.reservoir import StoredWindow


def stored(number: int, bands: int = 128, frames: int = 10, block: int = 0) -> StoredWindow:
    shape = (bands, frames) if block == 0 else (2, bands, frames)
    return StoredWindow("a", number, block, np.full(shape, number, np.float16))


def test_fits_take_windows_evenly_spread_over_all_that_are_held() -> None:
    taken = full_resolution([stored(number) for number in range(41)], 5)
    assert taken.shape == (5, 128, 10) and taken.dtype == np.float32
    assert taken[:, 0, 0].tolist() == [0, 10, 20, 30, 40]


def test_fits_leave_out_crossings_reduced_windows_and_windows_of_another_length() -> None:
    held = [stored(0), stored(1, bands=64, frames=5), stored(2, block=3), stored(3, frames=7), stored(4)]
    assert full_resolution(held, 100)[:, 0, 0].tolist() == [0, 4]
    assert full_resolution(held[1:3], 100).shape == (0, 128, 0)
