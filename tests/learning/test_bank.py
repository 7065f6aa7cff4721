"""The v1 memory bank: ring, resizing, sampling law, age weights."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplit.errors import ConfigError
from streamsplit.learning.bank import MemoryBank, bank_size


def unit(rng: np.random.Generator, n: int, dim: int = 16) -> np.ndarray:
    z = rng.standard_normal((n, dim))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("free_bytes", "entries"), [(0, 64), (32_768, 64), (51_200, 100), (51_711, 100), (51_712, 101), (10**9, 512)]
)
def test_the_size_follows_free_memory_between_64_and_512(free_bytes: int, entries: int) -> None:
    assert bank_size(free_bytes, 128) == entries


def test_the_ring_keeps_the_newest() -> None:
    z = unit(np.random.default_rng(0), 25)
    bank = MemoryBank(10, 16)
    for time, row in enumerate(z):
        bank.add(row, time)
    entries, times = bank.entries()
    assert len(bank) == 10
    assert np.array_equal(entries, z[15:]) and np.array_equal(times, np.arange(15, 25))


@pytest.mark.parametrize(("held", "size", "expected"), [(25, 6, 6), (25, 20, 10), (4, 3, 3), (4, 20, 4)])
def test_resizing_loses_nothing_that_fits(held: int, size: int, expected: int) -> None:
    z = unit(np.random.default_rng(0), 60)
    bank = MemoryBank(10, 16)
    for time in range(held):
        bank.add(z[time], time)
    bank.resize(size)
    assert np.array_equal(bank.entries()[0], z[held - expected : held])
    bank.add(z[held], held)
    assert bank.size == size and np.array_equal(bank.entries()[0][-1], z[held])
    assert len(bank) == min(expected + 1, size)


def test_rare_embeddings_are_drawn_more_often_than_common_ones() -> None:
    rng = np.random.default_rng(0)
    centre = unit(rng, 1)[0]
    bank = MemoryBank(200, 16, seed=1)
    rare = unit(rng, 10)
    for time in range(200):
        z = rare[time // 20] if time % 20 == 19 else centre + 0.02 * rng.standard_normal(16)
        bank.add((z / np.linalg.norm(z)).astype(np.float32), time)
    law = bank.probabilities()
    common = (bank.entries()[0] @ centre) > 0.9
    assert law.sum() == pytest.approx(1)
    assert law[~common].mean() > 1.5 * law[common].mean()
    assert law.max() < 0.2  # no entry swallows the mass


def test_the_law_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    bank = MemoryBank(80, 16, seed=1)
    for time, row in enumerate(unit(rng, 80)):
        bank.add(row, time)
    entries, _ = bank.entries()
    density = np.array([np.exp(bank.mixture.log_density(e) / 16) for e in entries])
    expected = (density + 1e-6) ** -0.5
    assert np.allclose(bank.probabilities(), expected / expected.sum(), rtol=1e-6)


def test_samples_are_different_and_carry_their_times_and_age_weights() -> None:
    rng = np.random.default_rng(0)
    z = unit(rng, 50)
    bank = MemoryBank(50, 16, gamma=0.99)
    for time, row in enumerate(z):
        bank.add(row, time)
    drawn, weights, times = bank.sample(100, now=60, rng=rng)
    assert sorted(times) == list(range(50))  # none twice
    assert np.array_equal(drawn, z[times.astype(int)])
    assert np.allclose(weights, 0.99 ** (60 - times))
    assert bank.sample(7, now=60, rng=rng)[0].shape == (7, 16)
    assert MemoryBank(10, 16).sample(7, now=60, rng=rng)[0].shape == (0, 16)


def test_a_snapshot_continues_exactly() -> None:
    z = unit(np.random.default_rng(0), 200)
    bank = MemoryBank(40, 16)
    for time in range(90):
        bank.add(z[time], time)
    other = MemoryBank(7, 16)
    other.load_state(bank.state())
    for time in range(90, 200):
        bank.add(z[time], time)
        other.add(z[time], time)
    first = bank.sample(10, 200, np.random.default_rng(4))
    second = other.sample(10, 200, np.random.default_rng(4))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="gamma"):
        MemoryBank(10, 16, gamma=1.5)
    with pytest.raises(ConfigError, match="at least 1"):
        MemoryBank(10, 16).resize(0)
