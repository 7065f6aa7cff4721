"""Where negatives come from: one interface over the mixture (v2) and the memory bank (v1)."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streamsplit.learning.bank import MemoryBank, bank_size
from streamsplit.learning.mixture import GaussianMixture
from streamsplit.learning.settings import LearnerSettings

Array = NDArray[np.float32]


class NegativeMemory(Protocol):
    """What the learner asks of a memory."""

    mixture: GaussianMixture

    def add(self, z: Array, index: int) -> None:
        """Learns from the embedding [d] of window `index`."""

    def negatives(
        self, anchors: Array, times: NDArray[np.int64], n: int, rng: np.random.Generator
    ) -> tuple[Array, Array]:
        """(negatives [b, m, d], weights [b, m]) for anchors [b, d] of windows `times` [b]; weight 0 means none."""

    def fit(self, free_bytes: float) -> None:
        """Takes no more room than free memory allows; nothing that still fits is lost."""

    def clear(self) -> None:
        """Forgets everything."""

    def state(self) -> dict[str, np.ndarray]:
        """Arrays for a snapshot."""

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Continues from `state()`."""

    def rng_state(self) -> dict[str, Any]:
        """The generator's state for a snapshot."""

    def load_rng_state(self, state: dict[str, Any]) -> None:
        """Continues from `rng_state()`."""

    def state_bytes(self) -> int:
        """Bytes held."""


class _Memory:
    mixture: GaussianMixture

    def rng_state(self) -> dict[str, Any]:
        return dict(self.mixture.rng.bit_generator.state)

    def load_rng_state(self, state: dict[str, Any]) -> None:
        self.mixture.rng.bit_generator.state = state


class MixtureMemory(_Memory):
    """v2: virtual negatives from the mixture; nothing else is stored."""

    def __init__(self, settings: LearnerSettings, dim: int, seed: int) -> None:
        s = settings
        self.mixture = GaussianMixture(s.components, dim, s.mixture_rate, seed, cold_start=s.cold_start)

    def add(self, z: Array, index: int) -> None:
        self.mixture.observe(z)

    def negatives(
        self, anchors: Array, times: NDArray[np.int64], n: int, rng: np.random.Generator
    ) -> tuple[Array, Array]:
        drawn = np.zeros((len(anchors), n, self.mixture.dim), np.float32)
        weights = np.zeros((len(anchors), n), np.float32)
        for row, anchor in enumerate(anchors):
            virtual = self.mixture.virtual_negatives(anchor, n, rng)
            drawn[row, : len(virtual)] = virtual
            weights[row, : len(virtual)] = 1.0
        return drawn, weights

    def fit(self, free_bytes: float) -> None:
        """Nothing to do: the mixture's size never changes."""

    def clear(self) -> None:
        self.mixture.clear()

    def state(self) -> dict[str, np.ndarray]:
        return self.mixture.state()

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        self.mixture.load_state(state)

    def state_bytes(self) -> int:
        return self.mixture.state_bytes()


class BankMemory(_Memory):
    """v1: remembered negatives, age-weighted, away from where the stream is dense. Its mixture has 5 components."""

    def __init__(self, settings: LearnerSettings, dim: int, seed: int) -> None:
        s = settings
        self.bank = MemoryBank(
            s.bank_entries, dim, seed, alpha=s.bank_alpha, gamma=s.bank_gamma, cold_start=s.cold_start
        )
        self.mixture = self.bank.mixture
        self._least, self._most = s.bank_least, s.bank_entries
        self._gap = settings.negative_gap
        self._now = 0

    def add(self, z: Array, index: int) -> None:
        self.bank.add(z, index)
        self._now = index

    def negatives(
        self, anchors: Array, times: NDArray[np.int64], n: int, rng: np.random.Generator
    ) -> tuple[Array, Array]:
        drawn, weights, drawn_times = self.bank.sample(n, self._now, rng)
        near = np.abs(times[:, None] - drawn_times[None]) < self._gap
        shared = np.broadcast_to(drawn, (len(anchors), *drawn.shape)).copy()
        return shared, np.where(near, 0.0, weights[None]).astype(np.float32)

    def fit(self, free_bytes: float) -> None:
        """Resizes the bank to v1's size for free memory, within `bank_least` and `bank_entries`."""
        size = min(max(bank_size(free_bytes, self.bank.dim), self._least), self._most)
        if size != self.bank.size:
            self.bank.resize(size)

    def clear(self) -> None:
        self.bank.clear()

    def state(self) -> dict[str, np.ndarray]:
        return {**self.bank.state(), "now": np.array([self._now])}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        self._now = int(state["now"][0])
        self.bank.load_state({name: value for name, value in state.items() if name != "now"})

    def state_bytes(self) -> int:
        return self.bank.state_bytes()


def make_memory(settings: LearnerSettings, dim: int, seed: int) -> NegativeMemory:
    """The memory that the settings name."""
    return MixtureMemory(settings, dim, seed) if settings.memory == "mixture" else BankMemory(settings, dim, seed)
