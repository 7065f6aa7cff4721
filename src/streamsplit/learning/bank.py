"""Memory bank (v1): a ring of embeddings with their times, sampled away from where the stream is dense."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from streamsplit.errors import ConfigError
from streamsplit.learning.mixture import GaussianMixture

Array = NDArray[np.float32]
MIN_ENTRIES, MAX_ENTRIES = 64, 512
_RARE = math.log(1e-6)


def bank_size(free_bytes: float, dim: int) -> int:
    """Entries that fit: min(max(64, floor(M_free / 4d)), 512)."""
    return min(max(MIN_ENTRIES, int(free_bytes // (4 * dim))), MAX_ENTRIES)


class MemoryBank:
    """Ring of the newest embeddings [k, d]; negatives are drawn with probability ~ (p_GMM(e) + 1e-6)^-alpha.

    p_GMM is a 5-component mixture with rate 0.1. In 128 dimensions its density spans hundreds of nats, so that the
    paper's formula gives one entry nearly all the mass; here p is the density per dimension (geometric mean), which
    keeps the intent. An entry's weight in the loss is gamma^(age in windows).
    """

    def __init__(
        self,
        size: int = MAX_ENTRIES,
        dim: int = 128,
        seed: int = 0,
        *,
        alpha: float = 0.5,
        gamma: float = 0.99,
        cold_start: int = 50,
    ) -> None:
        if size < 1 or dim < 1 or alpha < 0.0 or not 0.0 < gamma <= 1.0:
            raise ConfigError(f"got size={size}, dim={dim}, alpha={alpha}, gamma={gamma}; expected positive sizes, "
                              "alpha >= 0 and gamma in (0, 1]")  # fmt: skip
        self.dim, self.alpha, self.gamma = dim, alpha, gamma
        self._entries = np.zeros((size, dim), np.float32)
        self._times = np.zeros(size)
        self._filled = 0
        self._next = 0
        self.mixture = GaussianMixture(5, dim, rate=0.1, seed=seed, cold_start=cold_start)

    def __len__(self) -> int:
        return self._filled

    @property
    def size(self) -> int:
        """Most entries it may hold."""
        return len(self._entries)

    def clear(self) -> None:
        """Forgets every entry and the density model."""
        self._filled = self._next = 0
        self.mixture.clear()

    def add(self, z: Array, time: float) -> None:
        """Stores one embedding [d] seen at `time` (in windows); the oldest leaves when full."""
        self.mixture.observe(z)
        self._entries[self._next] = z
        self._times[self._next] = time
        self._next = (self._next + 1) % self.size
        self._filled = min(self._filled + 1, self.size)

    def entries(self) -> tuple[Array, NDArray[np.float64]]:
        """(embeddings [n, d], times [n]), oldest first."""
        order = self._order()
        return self._entries[order], self._times[order]

    def resize(self, size: int) -> None:
        """Changes the capacity, keeping the newest entries that fit."""
        if size < 1:
            raise ConfigError(f"got a bank of {size} entries, expected at least 1")
        entries, times = self.entries()
        keep = min(size, self._filled)
        self._entries = np.zeros((size, self.dim), np.float32)
        self._times = np.zeros(size)
        if keep:
            self._entries[:keep], self._times[:keep] = entries[-keep:], times[-keep:]
        self._filled, self._next = keep, keep % size

    def probabilities(self) -> NDArray[np.float64]:
        """Sampling law [n] over `entries()`."""
        entries, _ = self.entries()
        if not len(entries):
            return np.zeros(0)
        if self.mixture.ready:
            density = self.mixture.log_densities(entries) / self.dim
        else:
            density = np.zeros(len(entries))
        score = -self.alpha * np.logaddexp(density, _RARE)
        law: NDArray[np.float64] = np.exp(score - score.max())
        return law / law.sum()

    def sample(self, n: int, now: float, rng: np.random.Generator) -> tuple[Array, Array, NDArray[np.float64]]:
        """Up to n different negatives: (embeddings [m, d], age weights [m], times [m]), m <= n."""
        law = self.probabilities()
        entries, times = self.entries()
        if not len(law):
            return entries, np.zeros(0, np.float32), times
        chosen = rng.choice(len(law), size=min(n, len(law)), replace=False, p=law)
        age = np.maximum(now - times[chosen], 0.0)
        return entries[chosen], (self.gamma**age).astype(np.float32), times[chosen]

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `load_state` needs."""
        entries, times = self.entries()
        mixture = {f"mixture.{name}": value for name, value in self.mixture.state().items()}
        return {"entries": entries, "times": times, "size": np.array([self.size]), **mixture}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Continues from `state()`."""
        size, entries = int(state["size"][0]), state["entries"]
        self._entries = np.zeros((size, self.dim), np.float32)
        self._times = np.zeros(size)
        self._filled = len(entries)
        self._entries[: self._filled], self._times[: self._filled] = entries, state["times"]
        self._next = self._filled % size
        prefix = "mixture."
        self.mixture.load_state({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})

    def state_bytes(self) -> int:
        """Bytes held."""
        return self._entries.nbytes + self._times.nbytes + self.mixture.state_bytes()

    def _order(self) -> NDArray[np.intp]:
        start = self._next if self._filled == self.size else 0
        return (start + np.arange(self._filled)) % self.size
