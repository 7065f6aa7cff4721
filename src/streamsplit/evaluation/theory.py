"""v1's convergence theorem, measured: its bound beside the observed gradient on a problem where both can be computed.

The paper writes min_t E||grad f_t||^2 <= 2 (f_0 - f*) / (T eta) + L eta sigma^2 / 2 + L eps^2, L the smoothness. With
eps the norm of the gradient's bias this does not hold. On f(x) = L x^2 / 2 with eta = 1/L, a step
x <- x - eta (L x + noise) leaves E||grad||^2 = L eta sigma^2, twice the paper's term; and a constant bias b stops
descent where grad f = -b, at ||grad||^2 = eps^2, above L eps^2 wherever L < 1 (L eps^2 has not even the unit of a
squared gradient). What holds, with both constants reached in these two examples: the step is along
grad f + b + noise with ||b|| = eps, E||noise||^2 = sigma^2, and eta <= 1/L. By smoothness

    E f_{t+1} <= f_t - eta <grad f, grad f + b> + L eta^2 / 2 (||grad f + b||^2 + sigma^2)
              <= f_t - eta/2 ||grad f||^2 + eta/2 eps^2 + L eta^2 / 2 sigma^2,

because -2 <v, v + b> + ||v + b||^2 = -||v||^2 + ||b||^2. Summed over T steps:

    min_t E||grad f_t||^2 <= 2 (f_0 - f*) / (T eta) + L eta sigma^2 + eps^2.

Where f is strongly convex (mu), ||grad f||^2 >= 2 mu (f - f*) makes of the same line
E f_{t+1} - f* <= (1 - eta mu) (E f_t - f*) + eta/2 (L eta sigma^2 + eps^2), and E||W - W*||^2 <= 2/mu (E f - f*).
With eta_t = 2 / (mu t + 2 L) this is c1 / (T + 2 L/mu) + c2 eps^2, c1 = 4 L/mu^2 max(f_0 - f*, sigma^2 / mu) and
c2 = 1/mu^2.

eps is the *bias*: selective transmission is not only variance, as the paper has it. Rows that never cross shift the
gradient's mean, unless those sent were weighted by the inverse of their chance of being sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from streamsplit.config import Settings, setting
from streamsplit.encoders.embedding_codec import pack_embedding, unpack_embedding
from streamsplit.errors import ConfigError
from streamsplit.evaluation.convex_head import ConvexHead, with_ones
from streamsplit.learning.theorem import GradientTrace, GradientVariance
from streamsplit.wire.media import Encoding

Crossing = Callable[[np.ndarray], np.ndarray]  # embeddings [n, d] to what the server sees of them


@dataclass(frozen=True, kw_only=True)
class TheorySettings(Settings):
    """A run of stochastic gradient descent on the convex head."""

    regularisation: float = setting(0.01, low=1e-6, high=100.0)  # mu
    steps: int = setting(2000, low=1, high=1_000_000)  # T
    batch: int = setting(32, low=0)  # rows drawn with replacement from those sent; 0 = all of them, no noise
    percentile: float = setting(0.0, low=0.0, high=99.0)  # only rows with an uncertainty at or above it are sent
    rate_share: float = setting(1.0, low=1e-4, high=1.0)  # eta L; the bound needs eta <= 1/L
    schedule: str = setting("constant", choices=("constant", "decreasing"))  # decreasing: eta_t = 2 / (mu t + 2 L)
    seeds: int = setting(5, low=1, high=1000)  # runs that E is the mean over
    seed: int = setting(0, low=0)


class Convergence(NamedTuple):
    """Observed curves beside the bounds; entry t is measured at W_t, after t steps; sums are over W_0..W_t (T = t + 1).

    `sigma2`, `bias2` and its two parts are exact at every iterate (all rows, not a sample), means over the runs.
    Bounds use what was measured: the corrected one running means (weighted by eta), the paper's the largest
    so far, which is the most that it can claim (nan for decreasing steps, of which it doesn't speak).
    """

    gradient2: np.ndarray  # [T], E||grad f_t||^2
    smallest2: np.ndarray  # [T], min of it so far: what the bounds are about
    average2: np.ndarray  # [T], mean of it so far, weighted by eta: what the proof bounds
    bound: np.ndarray  # [T], corrected
    paper_bound: np.ndarray  # [T], as written
    distance2: np.ndarray  # [T], E||W_t - W*||^2
    distance_bound: np.ndarray  # [T]
    sigma2: np.ndarray  # [T], variance of the mini-batch's gradient
    bias2: np.ndarray  # [T], eps^2: ||mean transmitted gradient - grad f||^2
    selection2: np.ndarray  # [T], the part by selection: ||gradient over sent rows - grad f||^2
    split2: np.ndarray  # [T], the part by what crossed: ||the same over crossed embeddings - without||^2
    rate: np.ndarray  # [T], eta_t
    smoothness: float  # L
    strong_convexity: float  # mu
    start_gap: float  # f_0 - f*
    optimum_gradient_norm: float
    c1: float  # of E||W_T - W*||^2 <= c1 / (T + 2 L/mu) + c2 eps^2, decreasing steps; nan with constant ones
    c2: float
    settings: TheorySettings

    @property
    def holds(self) -> bool:
        """Whether the corrected bounds are above what was observed, at every step."""
        return bool((self.average2 <= self.bound * (1 + 1e-9)).all()) and bool(
            (np.sqrt(self.distance2) <= np.sqrt(self.distance_bound) * (1 + 1e-9) + self.optimum_error).all()
        )

    @property
    def optimum_error(self) -> float:
        """How far the W* that was found can be from the true one: ||grad f|| / mu."""
        return self.optimum_gradient_norm / self.strong_convexity

    @property
    def paper_violations(self) -> float:
        """Share of the steps at which the smallest observed E||grad||^2 is above the paper's bound; nan without one."""
        if np.isnan(self.paper_bound).any():
            return float("nan")
        return float((self.smallest2 > self.paper_bound * (1 + 1e-9)).mean())

    def as_dict(self, points: int = 200) -> dict[str, Any]:
        """Plain values for JSON, curves at `points` steps spread evenly on a log axis, which are in 'step'."""
        at = np.unique(np.geomspace(1, len(self.rate), points).astype(int)) - 1
        plain: dict[str, Any] = {"step": at.tolist(), "holds": self.holds, "settings": self.settings.as_dict()}
        named = {"paper_violations": self.paper_violations, **self._asdict()}
        del named["settings"]
        for name, value in named.items():
            thin = value[at].tolist() if isinstance(value, np.ndarray) else [value]
            numbers = [float(number) if math.isfinite(number) else None for number in thin]
            plain[name] = numbers if isinstance(value, np.ndarray) else numbers[0]
        return plain


def measure_convergence(
    embeddings: Any,
    labels: Sequence[Any],
    settings: TheorySettings | None = None,
    *,
    crossing: Crossing | None = None,
    uncertainty: Sequence[float] | None = None,
) -> Convergence:
    """Runs SGD on a logistic head over embeddings [n, d], with selective transmission and split error, and measures it.

    `crossing` gives the embeddings as the server sees them (`through_codec`, `through_bottleneck`; None: exact).
    `uncertainty` [n] fixes which rows are sent; without it, the head's own entropy decides anew at every step. Starts
    at zero. Raises ConfigError on bad input, StreamSplitError where f* is out of reach.
    """
    s = settings or TheorySettings()
    head = ConvexHead(embeddings, labels, s.regularisation)
    crossed = head.x if crossing is None else with_ones(np.asarray(crossing(head.x[:, :-1]), dtype=np.float64))
    if crossed.shape != head.x.shape or not np.isfinite(crossed).all():
        raise ConfigError(f"got crossed embeddings {crossed.shape}, expected finite ones {head.x[:, :-1].shape}")
    fixed = None if uncertainty is None else _fixed_selection(uncertainty, len(head.x), s.percentile)
    best = head.optimum()
    weights = np.zeros((s.seeds, *best.weights.shape))
    gap = float(head.loss(weights[:1])[0]) - best.loss + best.gradient_norm**2 / (2 * s.regularisation)  # at most
    t = np.arange(s.steps)
    rate = np.full(s.steps, s.rate_share / head.smoothness)
    if s.schedule == "decreasing":
        rate = 2 * s.rate_share / (s.regularisation * t * s.rate_share + 2 * head.smoothness)
    rng = np.random.default_rng(s.seed)
    measured = np.empty((6, s.steps))  # gradient2, distance2, sigma2, bias2, selection2, split2
    for step in range(s.steps):
        drawn, measured[:, step] = _step(head, crossed, weights, fixed, s, rng, best.weights)
        weights = weights - rate[step] * drawn
    return _against_bounds(measured, rate, head, gap, best.gradient_norm, s)


def through_codec(encoding: Encoding = Encoding.EMBEDDING_INT8) -> Crossing:
    """The embeddings as they come out of the bytes that really cross."""
    return lambda x: np.stack([unpack_embedding(pack_embedding(row, encoding)) for row in x])


def through_bottleneck(width: int) -> Crossing:
    """The embeddings narrowed to their first `width` principal directions and widened again: a linear bottleneck."""

    def narrow(x: np.ndarray) -> np.ndarray:
        mean = x.mean(axis=0)
        directions = np.linalg.svd(x - mean, full_matrices=False)[2][:width]
        narrowed: np.ndarray = mean + (x - mean) @ directions.T @ directions
        return narrowed

    return narrow


class HasVariance(Protocol):
    """What `theory_trace` needs of a learner."""

    @property
    def variance(self) -> GradientVariance: ...


def theory_trace(learner: HasVariance) -> GradientTrace:
    """sigma^2 and the mean gradient's squared norm per optimiser step of a real learner; no bound is claimed for it."""
    return learner.variance.trace()


def _fixed_selection(uncertainty: Sequence[float], rows: int, percentile: float) -> np.ndarray:
    u = np.asarray(uncertainty, dtype=np.float64)
    if u.shape != (rows,) or not np.isfinite(u).all():
        raise ConfigError(f"got uncertainty {u.shape} for {rows} rows, expected one finite number a row")
    return u >= np.percentile(u, percentile)


def _step(
    head: ConvexHead,
    crossed: np.ndarray,
    weights: np.ndarray,
    fixed: np.ndarray | None,
    s: TheorySettings,
    rng: np.random.Generator,
    best: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The transmitted mini-batch's gradient [s, d + 1, c], and what is measured at W_t, means over the runs [6]."""
    p, penalty = head.probabilities(weights, head.x), s.regularisation * weights
    full = head.x.T @ (p - head.y) / len(head.x) + penalty
    if fixed is None:
        entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=-1)
        sent = entropy >= np.percentile(entropy, s.percentile, axis=1, keepdims=True)
    else:
        sent = np.broadcast_to(fixed, p.shape[:2])
    share = (sent / sent.sum(axis=1, keepdims=True))[..., None]  # [s, n, 1], of the rows sent
    exact = head.x.T @ (share * (p - head.y)) + penalty
    residual = head.probabilities(weights, crossed) - head.y
    mean = crossed.T @ (share * residual) + penalty
    if s.batch:
        rows_norm2 = (residual**2).sum(axis=-1) * (crossed**2).sum(axis=1)  # a row's gradient is x (p - y)
        second = (share[..., 0] * rows_norm2).sum(axis=1)
        sigma2 = np.maximum(second - _norm2(mean - penalty), 0.0) / s.batch
        chosen = np.stack([rng.choice(np.flatnonzero(run), size=s.batch) for run in sent])
        residual = np.take_along_axis(residual, chosen[..., None], axis=1)
        drawn = np.swapaxes(crossed[chosen], 1, 2) @ residual / s.batch + penalty
    else:
        sigma2, drawn = np.zeros(len(weights)), mean
    measured = (
        _norm2(full), _norm2(weights - best), sigma2, _norm2(mean - full), _norm2(exact - full), _norm2(mean - exact),
    )  # fmt: skip
    return drawn, np.array([values.mean() for values in measured])


def _against_bounds(
    measured: np.ndarray, rate: np.ndarray, head: ConvexHead, gap: float, optimum_norm: float, s: TheorySettings
) -> Convergence:
    gradient2, distance2, sigma2, bias2, selection2, split2 = measured
    smooth, mu, total = head.smoothness, head.strong_convexity, np.cumsum(rate)
    noise = smooth * rate * sigma2 + bias2
    bound = (2 * gap + np.cumsum(rate * noise)) / total
    largest_sigma2, largest_bias2 = np.maximum.accumulate(sigma2), np.maximum.accumulate(bias2)
    paper = 2 * gap / total + smooth * rate * largest_sigma2 / 2 + smooth * largest_bias2
    if s.schedule != "constant":
        paper = np.full_like(paper, np.nan)
    gaps = np.empty(len(rate))  # bound on E f_t - f*
    gaps[0] = gap
    for t in range(len(rate) - 1):
        gaps[t + 1] = (1 - rate[t] * mu) * gaps[t] + rate[t] / 2 * noise[t]
    decreasing = s.schedule == "decreasing" and s.rate_share == 1.0
    c1 = 4 * smooth / mu**2 * max(gap, float(sigma2.max()) / mu)
    return Convergence(
        gradient2, np.minimum.accumulate(gradient2), np.cumsum(rate * gradient2) / total, bound, paper,
        distance2, 2 / mu * gaps, sigma2, bias2, selection2, split2, rate, smooth, mu, gap, optimum_norm,
        c1 if decreasing else float("nan"), 1 / mu**2, s,
    )  # fmt: skip


def _norm2(values: np.ndarray) -> np.ndarray:
    squared: np.ndarray = (values**2).sum(axis=(1, 2))
    return squared
