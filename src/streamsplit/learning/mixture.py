"""Distributional memory (v2): a diagonal Gaussian mixture learned online, in place of stored negatives."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamsplit.errors import ConfigError, ProtocolError
from streamsplit.learning.density import SHRINK, DiagonalMixture, posterior_entropy, softmax
from streamsplit.learning.reduction import reduce_components
from streamsplit.learning.seeding import k_means

__all__ = ["GaussianMixture", "posterior_entropy"]

Array = NDArray[np.float32]
_DEAD_SHARE = 0.1  # of a fair share 1/C: a component that claims less is dead
_GRACE = 10  # x C observations that a new component has to prove itself
_NOVELTY = 2.0  # x the typical squared distance to the claiming mean: what no component explains
_CLAIM = 1e-4  # responsibilities below this move nothing
_REFRESH = 32  # observations between two looks at the distances among components


class GaussianMixture(DiagonalMixture):
    """C diagonal Gaussians over embeddings, updated per embedding in O(C d); nothing else is stored.

    Online EM on responsibility-weighted sufficient statistics (count, sum, squared sum, held as mean and centred
    squares). A component forgets in proportion to what it claims, with `rate`, so each remembers about 1/rate of
    *its own* embeddings; forgetting all components at every step, as the paper's wording suggests, leaves 64
    components with 1.6 embeddings each. Variances are shrunk toward the pooled within-component variance.
    The first `cold_start` embeddings seed half as many components by k-means; the rest stay free (weight 0) for what
    comes later. A dead component is re-seeded at an embedding that no component explains.
    """

    def __init__(
        self,
        components: int = 64,
        dim: int = 128,
        rate: float = 0.01,
        seed: int = 0,
        *,
        cold_start: int = 50,
        variance_floor: float | None = None,
    ) -> None:
        if components < 2 or dim < 1 or not 0.0 < rate < 1.0 or cold_start < 2:
            raise ConfigError(
                f"got components={components}, dim={dim}, rate={rate}, cold_start={cold_start}; expected at least 2 "
                "components, 1 dimension, a rate between 0 and 1 and a cold start of at least 2 embeddings"
            )
        self.rate, self.cold_start = rate, cold_start
        self.rng = np.random.default_rng(seed)
        super().__init__(components, dim, variance_floor)
        self._clear_course()

    def clear(self) -> None:
        """Forgets everything; the next embeddings are a cold start again."""
        self._clear_statistics()
        self._clear_course()

    def _clear_course(self) -> None:
        self._scale: float | None = None  # typical squared distance among components
        self._scale_at = 0
        self._born = np.zeros(self.components, np.int64)
        self._worst: Array | None = None
        self._worst_ratio = 0.0
        self._pending: list[Array] = []

    # ---- learning ----

    def observe(self, z: Array) -> NDArray[np.float64]:
        """Learns from one embedding [d] and returns its posterior [C] from before; refuses NaN (ConfigError)."""
        z = self._check(z)
        self._seen += 1
        if not self.ready:
            self._pending.append(z.copy())
            if len(self._pending) >= self.cold_start:
                self._seed_components(np.stack(self._pending))
                self._pending = []
            return np.full(self.components, 1.0 / self.components)
        posterior = softmax(self._joint(z))
        claimed = np.flatnonzero(posterior > _CLAIM)
        share = posterior[claimed]
        offset = z - self._means[claimed]
        distance = float(share @ np.einsum("cd,cd->c", offset, offset)) / self.dim
        ratio = distance / max(self._pooled, self.variance_floor)
        if ratio > _NOVELTY and self._reseed(z):
            return posterior
        if ratio > self._worst_ratio:
            self._worst, self._worst_ratio = z.copy(), ratio
        keep = 1.0 - self.rate * share
        counts = keep * self._counts[claimed] + share
        self._counts[claimed] = counts
        self._means[claimed] += (share / counts)[:, None].astype(np.float32) * offset
        self._squares[claimed] = keep[:, None].astype(np.float32) * self._squares[claimed] + share[:, None].astype(
            np.float32
        ) * (offset * (z - self._means[claimed]))
        self._claims *= 1.0 - self.rate / self.components
        self._claims += posterior
        self._pooled += self.rate * (distance - self._pooled)
        self._refresh(claimed)
        if self._seen % self.components == 0 and self._worst is not None:
            self._reseed(self._worst)
            self._worst, self._worst_ratio = None, 0.0
        return posterior

    def observe_batch(self, z: Array) -> None:
        """Learns from embeddings [n, d] in order."""
        for row in np.asarray(z):
            self.observe(row)

    def _seed_components(self, points: Array) -> None:
        """k-means (k-means++ start, a few rounds) on the first embeddings; half as many components as embeddings."""
        count = min(self.components, max(2, len(points) // 2))
        owner = k_means(points, count, self.rng)
        for c in range(count):
            members = points[owner == c]
            if len(members):
                self._counts[c] = self._claims[c] = len(members)
                self._means[c] = members.mean(0)
                self._squares[c] = ((members - self._means[c]) ** 2).sum(0)
        within = self._squares.sum(0) / max(len(points) - count, 1)
        self._pooled = max(float(within.mean()), self.variance_floor)
        self._born[:] = self._seen
        self._scale, self._scale_at = None, 0
        self._forget_cache()

    def _reseed(self, z: Array) -> bool:
        """Gives a free or dead component to `z`; False when none is."""
        young = self._seen - self._born < _GRACE * self.components
        share = np.where((self._claims > 0) & young, np.inf, self._claims)
        c = int(share.argmin())
        if share[c] > _DEAD_SHARE / self.components * self._claims.sum():
            return False
        self._counts[c] = self._claims[c] = 1.0
        self._means[c] = z
        self._squares[c] = 0.0
        self._born[c] = self._seen
        self._refresh(np.array([c]))
        return True

    def merge(self, other: GaussianMixture, weight: float) -> None:
        """Blends in another mixture that holds `weight` (0..1) of the result, then reduces to C components.

        Pairs whose union loses least (Runnalls' bound on the divergence) are joined moment by moment, so the blend's
        mean and total variance per dimension are kept.
        """
        if other.dim != self.dim or not 0.0 <= weight <= 1.0:
            raise ConfigError(f"got dim {other.dim} and weight {weight}, expected dim {self.dim} and a weight in 0..1")
        if not other.ready or weight == 0.0:
            return
        if not self.ready:
            weight = 1.0
        pi = np.concatenate([(1.0 - weight) * self.weights, weight * other.weights])
        counts = np.concatenate([self._counts, other._counts])
        means = np.concatenate([self._means, other._means]).astype(np.float64)
        variances = np.concatenate([self.variances, other.variances]).astype(np.float64)
        live = pi > 0
        reduced = reduce_components(pi[live], means[live], variances[live], counts[live], self.components)
        self._assign(*reduced)

    # ---- negatives ----

    def virtual_negatives(
        self, anchor: Array, n: int, rng: np.random.Generator, *, temperature: float = 0.5, exclusion: float = 0.5
    ) -> Array:
        """Draws n unit-norm negatives [n, d] for an anchor, or [0, d] when no component is far enough.

        Component c is drawn with probability ~ pi_c exp(-||mu_c - mu_c*||^2 / (2 temperature^2 s)), c* the anchor's,
        s the typical squared distance among components (the paper's absolute tau_b = 0.1 is nearly always the single
        nearest component). Every component whose mean lies within `exclusion` s of the anchor is left out, c* too:
        63-91 % of the paper's negatives come from the anchor's own cluster.
        """
        law = self.negative_law(anchor, temperature=temperature, exclusion=exclusion)
        live = np.flatnonzero(law)
        if not len(live):
            return np.zeros((0, self.dim), np.float32)
        chosen = live[rng.choice(len(live), size=n, p=law[live] / law[live].sum())]
        deviation = np.sqrt(self._variances(live))[np.searchsorted(live, chosen)]
        draws = self._means[chosen] + deviation * rng.standard_normal((n, self.dim), dtype=np.float32)
        return (draws / np.maximum(np.linalg.norm(draws, axis=1, keepdims=True), 1e-12)).astype(np.float32)

    def negative_law(self, anchor: Array, *, temperature: float = 0.5, exclusion: float = 0.5) -> NDArray[np.float64]:
        """Probability [C] with which each component gives a virtual negative; all zero when none may."""
        anchor = self._check(anchor)
        law = np.zeros(self.components)
        if not self.ready:
            return law
        own = int(self._joint(anchor).argmax())
        live = np.flatnonzero(self._claims > 0)
        scale = self._typical_distance()
        to_anchor = ((self._means[live] - anchor) ** 2).sum(1)
        to_own = ((self._means[live] - self._means[own]) ** 2).sum(1)
        far = (to_anchor > exclusion * scale) & (live != own)
        if not far.any():
            return law
        score = np.log(self._claims[live][far]) - to_own[far] / (2.0 * temperature**2 * scale)
        law[live[far]] = softmax(score)
        return law

    def _typical_distance(self) -> float:
        """Weighted mean squared distance between two different components."""
        if self._scale is None or self._seen - self._scale_at >= _REFRESH:
            live = self._claims > 0
            pi, means = self._claims[live] / self._claims[live].sum(), self._means[live].astype(np.float64)
            spread = float(pi @ (means**2).sum(1) - ((pi @ means) ** 2).sum())  # = half of sum_ij pi_i pi_j d_ij
            apart = 1.0 - float(pi @ pi)
            self._scale = max(2.0 * spread / apart, 1e-12) if apart > 0 else 1e-12
            self._scale_at = self._seen
        return self._scale

    # ---- transport and snapshots ----

    def to_bytes(self) -> bytes:
        """fp16, little-endian: weights [C], means [C, d], variances [C, d]; 32,896 bytes for C = 64, d = 128."""
        parts = (self.weights, self._means, self.variances)
        return b"".join(np.ascontiguousarray(part, dtype="<f2").tobytes() for part in parts)

    @classmethod
    def from_bytes(
        cls, data: bytes | memoryview, components: int = 64, dim: int = 128, *, rate: float = 0.01, seed: int = 0
    ) -> GaussianMixture:
        """A mixture from `to_bytes`; raises ProtocolError('bad_gmm') on a wrong size, NaN or negative numbers."""
        if components < 2 or dim < 1:
            raise ProtocolError("bad_gmm", f"got {components} components, {dim} dimensions, expected at least 2 and 1")
        expected = 2 * components * (1 + 2 * dim)
        if len(data) != expected:
            raise ProtocolError("bad_gmm", f"got {len(data)} bytes, expected {expected} for C={components}, d={dim}")
        values = np.frombuffer(data, "<f2").astype(np.float64)
        pi, means, variances = np.split(values, [components, components * (1 + dim)])
        live = pi > 0
        bad = not np.isfinite(values).all() or (pi < 0).any() or (variances < 0).any()
        if bad or not 0.5 < pi.sum() < 1.5 or (live.any() and (variances.reshape(components, dim)[live] <= 0).any()):
            raise ProtocolError("bad_gmm", "got NaN, negative or unnormalised statistics, expected a mixture")
        mixture = cls(components, dim, rate, seed)
        mixture._assign(
            pi / pi.sum(),
            means.reshape(components, dim),
            variances.reshape(components, dim),
            np.full(components, 1 / rate),
        )
        return mixture

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `load_state` needs for an exact continuation."""
        pending = np.stack(self._pending) if self._pending else np.zeros((0, self.dim), np.float32)
        worst = self._worst[None] if self._worst is not None else np.zeros((0, self.dim), np.float32)
        scalars = np.array([self._pooled, self._seen, self._worst_ratio, self._scale or 0.0, self._scale_at])
        return {
            "counts": self._counts.copy(), "claims": self._claims.copy(), "means": self._means.copy(),
            "squares": self._squares.copy(), "born": self._born.copy(), "pending": pending, "worst": worst,
            "scalars": scalars, "precision": self._precision.copy(), "tilt": self._tilt.copy(),
            "offset": self._offset.copy(),
        }  # fmt: skip

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Continues from `state()`; the generator is not part of it (it only serves the cold start)."""
        self._counts, self._claims = state["counts"].copy(), state["claims"].copy()
        self._means, self._squares = state["means"].copy(), state["squares"].copy()
        self._born, self._pending = state["born"].copy(), [row.copy() for row in state["pending"]]
        self._worst = state["worst"][0].copy() if len(state["worst"]) else None
        pooled, seen, worst, scale, scale_at = (float(v) for v in state["scalars"])
        self._pooled, self._seen, self._worst_ratio = pooled, int(seen), worst
        self._scale, self._scale_at = (scale or None), int(scale_at)
        self._precision, self._tilt = state["precision"].copy(), state["tilt"].copy()
        self._offset = state["offset"].copy()

    def state_bytes(self) -> int:
        """Bytes held; constant after the cold start."""
        return sum(array.nbytes for array in self.state().values())

    # ---- inside ----

    def _assign(self, pi: np.ndarray, means: np.ndarray, variances: np.ndarray, counts: np.ndarray) -> None:
        """Takes over given parameters; unused components stay free."""
        n = len(pi)
        live = pi > 0
        self.clear()
        self._counts[:n] = np.where(live, np.minimum(counts, 1.0 / self.rate), 0.0)
        self._claims[:n] = pi * self.components / self.rate
        self._means[:n] = means
        self._pooled = max(float(pi @ variances.mean(1)), self.variance_floor)
        raw = (self._counts[:n, None] + SHRINK) * np.maximum(variances, self.variance_floor) - SHRINK * self._pooled
        self._squares[:n] = np.where(live[:, None], raw, 0.0)  # may be negative: undoes the shrinkage exactly
        self._seen = self.cold_start
        self._born[:] = self._seen
        self._scale, self._scale_at = None, 0
        self._forget_cache()
