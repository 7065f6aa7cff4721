"""Comparisons over seeds: intervals, paired tests with Holm's correction, and the paired bootstrap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from streamsplit.errors import ConfigError, MissingExtraError


class MeanInterval(NamedTuple):
    """A mean with the ends of its confidence interval, which are nan for a single value, and how many values."""

    mean: float
    low: float
    high: float
    n: int  # values, or groups that the bootstrap drew from

    def as_dict(self) -> dict[str, float | int | None]:
        """Plain values for JSON; nan becomes None."""
        return {name: None if math.isnan(value) else value for name, value in self._asdict().items()}


class PairedTest(NamedTuple):
    """First minus second of the same seeds: mean difference with its interval, and two p-values (two-sided).

    A p-value is nan for a single pair, and 1 where every difference is zero. With five pairs Wilcoxon's can't be below
    0.0625, whatever the data.
    """

    difference: MeanInterval
    t_p: float
    wilcoxon_p: float


class Comparison(NamedTuple):
    """One method against the reference (method minus reference), with p-values corrected over a table."""

    method: str
    test: PairedTest
    t_holm_p: float
    wilcoxon_holm_p: float


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> MeanInterval:
    """Mean and Student's t interval of independent values (one a seed). Raises ConfigError on none and on NaN."""
    x = _finite(values, "values")
    _check_confidence(confidence)
    mean = float(x.mean())
    if len(x) == 1:
        return MeanInterval(mean, math.nan, math.nan, 1)
    quantile = float(_stats().t.ppf(0.5 + confidence / 2, len(x) - 1))
    half = quantile * float(x.std(ddof=1)) / math.sqrt(len(x))
    return MeanInterval(mean, mean - half, mean + half, len(x))


def paired_test(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> PairedTest:
    """Paired t test and Wilcoxon's signed-rank test of two methods' values on the same seeds. Raises ConfigError."""
    a, b = _pair(first, second)
    difference = a - b
    interval = mean_interval(difference.tolist(), confidence)
    if len(difference) == 1:
        return PairedTest(interval, math.nan, math.nan)
    if not difference.any():
        return PairedTest(interval, 1.0, 1.0)
    if (difference == difference[0]).all():
        t_p = 0.0  # the same difference in every pair: t is infinite
    else:
        t_p = float(_stats().ttest_rel(a, b).pvalue)
    return PairedTest(interval, t_p, float(_stats().wilcoxon(difference).pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given; nan stays nan and counts for none of the others.

    Rejecting where the corrected value is below alpha keeps the chance of any false rejection below alpha, however the
    tests depend on each other. Raises ConfigError outside of [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(p))
    if ((p[known] < 0) | (p[known] > 1)).any():
        raise ConfigError(f"got p-values {p.tolist()}, expected numbers in 0..1")
    corrected = np.full(len(p), np.nan)
    order = known[np.argsort(p[known], kind="stable")]
    stepped = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0) if len(order) else stepped
    return [float(value) for value in corrected]


def compare_methods(
    scores: Mapping[str, Sequence[float]], reference: str, confidence: float = 0.95
) -> list[Comparison]:
    """Every other method against `reference`, by scores on the same seeds in the same order. Raises ConfigError."""
    if reference not in scores:
        raise ConfigError(f"got reference '{reference}', expected one of {', '.join(scores) or 'no methods at all'}")
    tests = {
        name: paired_test(values, scores[reference], confidence) for name, values in scores.items() if name != reference
    }
    t_p = holm([test.t_p for test in tests.values()])
    wilcoxon_p = holm([test.wilcoxon_p for test in tests.values()])
    return [Comparison(name, test, t_p[at], wilcoxon_p[at]) for at, (name, test) in enumerate(tests.items())]


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    *,
    groups: Sequence[Any] | None = None,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> MeanInterval:
    """Mean of first minus second over the same rows, with the percentile bootstrap's interval.

    Where rows hang together (windows of one recording), give `groups`: whole groups are drawn, and `n` is how many
    there are. Raises ConfigError on unequal lengths, NaN, or fewer than two groups.
    """
    a, b = _pair(first, second)
    _check_confidence(confidence)
    if resamples < 1:
        raise ConfigError(f"got resamples {resamples}, expected at least 1")
    index = np.arange(len(a)) if groups is None else np.unique(np.asarray(list(groups)), return_inverse=True)[1]
    if len(index) != len(a):
        raise ConfigError(f"got {len(index)} groups for {len(a)} rows, expected one a row")
    sizes = np.bincount(index).astype(np.float64)
    sums = np.bincount(index, weights=a - b)
    if len(sizes) < 2:
        raise ConfigError(f"got {len(sizes)} group to draw from, expected at least 2")
    rng, means = np.random.default_rng(seed), np.empty(resamples)
    at_once = max(1, 2_000_000 // len(sizes))
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        drawn = rng.integers(len(sizes), size=(count, len(sizes)))
        means[start : start + count] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.5 - confidence / 2, 0.5 + confidence / 2))
    return MeanInterval(float((a - b).mean()), float(low), float(high), len(sizes))


def _pair(first: Sequence[float], second: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    a, b = _finite(first, "values of the first"), _finite(second, "values of the second")
    if len(a) != len(b):
        raise ConfigError(f"got {len(a)} and {len(b)} values, expected pairs: the same seeds or rows in the same order")
    return a, b


def _finite(values: Sequence[float], what: str) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ConfigError(f"got {what} {x.tolist() if x.size <= 8 else x.shape}, expected finite numbers, at least one")
    return x


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(f"got confidence {confidence}, expected a share between 0 and 1, such as 0.95")


def _stats() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise MissingExtraError("comparing methods", "server", str(error)) from error
    return stats
