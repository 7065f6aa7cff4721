"""The risk of a cut: 1 where the input itself crosses, 0 where nothing about it does, in between in the right order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamsplit.audio.synth import Soundscape
from streamsplit.audio.windows import WindowStream
from streamsplit.splitting.privacy import Decoder, Evidence, variance_share


@pytest.fixture(scope="module")
def windows() -> np.ndarray:
    return np.stack([window.features for window in WindowStream().push(Soundscape(4).read(16_000 * 60))])


@pytest.fixture(scope="module")
def halves(windows) -> tuple[np.ndarray, np.ndarray]:
    return windows[:70], windows[78:]


def test_the_share_is_that_of_an_explicit_sum():
    rng = np.random.default_rng(0)
    true, guess = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    trivial = rng.normal(size=3)
    total = left = 0.0
    for n in range(2):
        for f in range(3):
            for t in range(4):
                total += (true[n, f, t] - trivial[f]) ** 2
                left += (true[n, f, t] - 0.1 * guess[n, f, t]) ** 2
    expected = max(1 - left / total, 0.0)
    assert variance_share(true, 0.1 * guess, trivial) == pytest.approx(expected)
    assert variance_share(true, true, trivial) == 1.0
    assert variance_share(true, -9 * true, trivial) == 0.0


def test_whoever_gets_the_input_itself_draws_it(halves):
    train, test = halves[0][:20], halves[1][:20]
    quiet = np.zeros((len(train), 4), np.float32)
    made = Decoder(Evidence(quiet, train[:, None]), train, steps=30)
    assert made.risk(Evidence(quiet[: len(test)], test[:, None]), test) > 0.97


def test_numbers_that_know_nothing_of_the_window_give_nothing_away(halves):
    train, test = halves
    rng = np.random.default_rng(1)

    def noise(count: int) -> Evidence:
        maps = rng.standard_normal((count, 8, 8, 7)).astype(np.float32)
        return Evidence(rng.standard_normal((count, 32)).astype(np.float32), maps)

    assert Decoder(noise(len(train)), train, steps=30).risk(noise(len(test)), test) < 0.05


def test_a_coarse_picture_gives_away_less_than_a_fine_one_and_a_spectrum_less_still(halves):
    train, test = halves[0][:40], halves[1][:20]

    def shrunk(windows: np.ndarray, factor: int) -> Evidence:
        maps = torch.nn.functional.avg_pool2d(torch.from_numpy(windows[:, None]), factor).numpy()
        return Evidence(np.zeros((len(windows), 4), np.float32), maps)

    def risk(factor: int) -> float:
        return Decoder(shrunk(train, factor), train, steps=30).risk(shrunk(test, factor), test)

    spectrum = Decoder(Evidence(train.mean(2)), train).risk(Evidence(test.mean(2)), test)
    fine, coarse = risk(2), risk(16)
    assert 1.0 > fine > coarse + 0.05 and fine > spectrum > 0.1


def test_the_same_seed_draws_the_same(halves):
    train, test = halves
    made = [Decoder(Evidence(train.mean(2), train[:, None, ::4, ::4]), train, steps=5, seed=3) for _ in range(2)]
    evidence = Evidence(test.mean(2), test[:, None, ::4, ::4])
    assert np.array_equal(made[0].draw(evidence), made[1].draw(evidence))
