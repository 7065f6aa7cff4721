"""What an uncertainty is worth: how well it foretells error and the benefit of sending, and the curve of share sent
against accuracy beside random sending and an oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from streamsplit.errors import ConfigError, MissingExtraError
from streamsplit.evaluation.statistics import MeanInterval
from streamsplit.splitting.observation import Observation
from streamsplit.splitting.transmission import GateSettings, Transmission, UncertaintyGate

SHARES = tuple(step / 20 for step in range(21))
PERCENTILES = (0.0, 25.0, 50.0, 60.0, 70.0, 75.0, 80.0, 90.0, 95.0)


class UncertaintyQuality(NamedTuple):
    """What the uncertainty says about each window; nan where it can't be said (no errors, all equal).

    Spearman's correlation is with 1 - edge right, and with server right - edge right (-1, 0 or 1). The areas under the
    ROC curve are of finding the edge's errors, and the windows that sending repairs; .5 says nothing.
    """

    spearman_error: float
    spearman_benefit: float
    auroc_error: float
    auroc_benefit: float
    edge_errors: int
    repaired: int  # wrong on the edge, right on the server
    spoiled: int  # right on the edge, wrong on the server
    windows: int

    def as_dict(self) -> dict[str, float | int | None]:
        """Plain values for JSON; nan becomes None."""
        return {name: _plain(value) for name, value in self._asdict().items()}


class TransmissionCurve(NamedTuple):
    """Accuracy of the whole (server's answer for windows sent, edge's for the others) at each share sent.

    Areas are means over all shares from 0 to 1 of the gain over random sending, in accuracy; `area_of_oracle` is
    their quotient (nan where the oracle gains nothing), `p_value` the share of random orders with at least as large
    an area (one-sided permutation test of single windows; over whole recordings: `area_interval`).
    """

    shares: np.ndarray  # [s]
    by_uncertainty: np.ndarray  # [s], the most uncertain first; expected value over the order of equals
    random: np.ndarray  # [s], exact expected value
    random_low: np.ndarray  # [s], 2.5th percentile over random orders
    random_high: np.ndarray  # [s]
    oracle: np.ndarray  # [s], repaired windows first, spoiled ones last
    area: float
    oracle_area: float
    area_of_oracle: float
    p_value: float
    edge_accuracy: float
    server_accuracy: float
    windows: int

    def share_needed(self, accuracy: float) -> float:
        """The smallest share of `shares` from which the most uncertain bring this accuracy; nan where none does."""
        reached = np.flatnonzero(self.by_uncertainty >= accuracy - 1e-12)
        return float(self.shares[reached[0]]) if len(reached) else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; nan becomes None."""
        return {name: _plain(value) for name, value in self._asdict().items()}


class GatePoint(NamedTuple):
    """The live gate at one percentile: the share that it sent, the accuracy, and the others at exactly that share."""

    percentile: float
    share: float
    accuracy: float
    random: float
    random_low: float
    random_high: float
    oracle: float


def correct(predictions: Sequence[Any], labels: Sequence[Any]) -> np.ndarray:
    """Whether each prediction is its label, bool [n]; both are compared as text. Raises ConfigError on lengths."""
    predicted, true = [str(name) for name in predictions], [str(name) for name in labels]
    if len(predicted) != len(true):
        raise ConfigError(f"got {len(predicted)} predictions for {len(true)} labels, expected one a window")
    return np.array([mine == theirs for mine, theirs in zip(predicted, true, strict=True)], dtype=bool)


def uncertainty_quality(uncertainty: Sequence[float], edge_right: Any, server_right: Any) -> UncertaintyQuality:
    """How well the uncertainty [n] foretells the edge's errors and what sending would repair. Raises ConfigError."""
    u, edge, server = _checked(uncertainty, edge_right, server_right)
    error, repaired, spoiled = ~edge, ~edge & server, edge & ~server
    counts = (int(error.sum()), int(repaired.sum()), int(spoiled.sum()), len(u))
    correlations = _spearman(u, error), _spearman(u, repaired.astype(float) - spoiled)
    return UncertaintyQuality(*correlations, _auroc(u, error), _auroc(u, repaired), *counts)


def transmission_curve(
    uncertainty: Sequence[float],
    edge_right: Any,
    server_right: Any,
    *,
    shares: Sequence[float] = SHARES,
    orders: int = 1000,
    seed: int = 0,
) -> TransmissionCurve:
    """Share sent against accuracy, from uncertainty [n] and whether edge and server are right on each window.

    `orders` random orders give the interval of random sending and the p-value. Raises ConfigError on NaN, unequal
    lengths, and shares outside of [0, 1].
    """
    u, edge, server = _checked(uncertainty, edge_right, server_right)
    n, at = len(u), np.asarray(shares, dtype=np.float64)
    if at.ndim != 1 or not len(at) or not ((at >= 0) & (at <= 1)).all() or orders < 1:
        raise ConfigError(
            f"got shares {list(shares)} and {orders} orders, expected shares in 0..1 and at least 1 order"
        )
    sent = np.rint(at * n).astype(np.int64)
    gain, base = server.astype(np.float64) - edge, float(edge.mean())
    ours, best = _cumulative(_expected_in_order(u, gain)), _cumulative(-np.sort(-gain))
    drawn, areas = _random_orders(gain, sent, orders, seed)
    level = 0.5 * float(gain.mean())  # area of random sending
    area, oracle_area = _area(ours) - level, _area(best) - level
    low, high = np.quantile(base + drawn / n, (0.025, 0.975), axis=0)
    return TransmissionCurve(
        shares=sent / n,
        by_uncertainty=base + ours[sent] / n,
        random=base + sent / n * gain.mean(),
        random_low=low,
        random_high=high,
        oracle=base + best[sent] / n,
        area=area,
        oracle_area=oracle_area,
        area_of_oracle=area / oracle_area if oracle_area > 1e-12 else math.nan,
        p_value=float((1 + (areas - level >= area - 1e-12).sum()) / (orders + 1)),
        edge_accuracy=base,
        server_accuracy=float(server.mean()),
        windows=n,
    )


def gate_sends(uncertainty: Sequence[float], settings: GateSettings | None = None) -> np.ndarray:
    """What the live gate sends of a stream of windows in order, bool [n], on a link that carries everything."""
    gate = UncertaintyGate(settings)
    decisions = (gate.decide(Observation(uncertainty=float(u))) for u in uncertainty)
    return np.array([decision.action is not Transmission.KEEP for decision in decisions], dtype=bool)


def gate_curve(
    uncertainty: Sequence[float],
    edge_right: Any,
    server_right: Any,
    *,
    percentiles: Sequence[float] = PERCENTILES,
    settings: GateSettings | None = None,
    after_warm_up: bool = True,
    orders: int = 1000,
    seed: int = 0,
) -> list[GatePoint]:
    """The live gate at several percentiles, over windows in the order of the stream.

    `after_warm_up` leaves out the windows of the warm-up, in which everything crosses. Raises ConfigError on NaN,
    unequal lengths, and a stream that ends in the warm-up.
    """
    u, edge, server = _checked(uncertainty, edge_right, server_right)
    base = settings or GateSettings()
    start = base.warm_up_windows if after_warm_up else 0
    if start >= len(u):
        raise ConfigError(f"got {len(u)} windows, expected more than the warm-up's {start}")
    edge, server = edge[start:], server[start:]
    points = []
    for percentile in percentiles:
        sent = gate_sends(u.tolist(), base.replace(percentile=percentile))[start:]
        others = transmission_curve(
            u[start:].tolist(), edge, server, shares=[float(sent.mean())], orders=orders, seed=seed
        )
        accuracy = float(np.where(sent, server, edge).mean())
        beside = (others.random, others.random_low, others.random_high, others.oracle)
        points.append(GatePoint(percentile, float(sent.mean()), accuracy, *(float(value[0]) for value in beside)))
    return points


def area_interval(
    uncertainty: Sequence[float],
    edge_right: Any,
    server_right: Any,
    groups: Sequence[Any],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> MeanInterval:
    """The curve's `area` with its percentile bootstrap interval over whole groups (recordings, devices).

    Windows of one recording are right and wrong together, so orders of single windows (`p_value`) make chance look
    smaller than it is; an interval above 0 over recordings does not. Raises ConfigError on fewer than two groups.
    """
    u, edge, server = _checked(uncertainty, edge_right, server_right)
    index = np.unique(np.asarray(list(groups)), return_inverse=True)[1]
    count = int(index.max(initial=-1)) + 1
    if len(index) != len(u) or count < 2:
        raise ConfigError(
            f"got {count} groups on {len(index)} of {len(u)} windows, expected at least two, on each window"
        )
    if resamples < 1 or not 0 < confidence < 1:
        raise ConfigError(f"got {resamples} resamples and confidence {confidence}, expected at least 1 and 0..1")
    gain = server.astype(np.float64) - edge
    members = [np.flatnonzero(index == group) for group in range(count)]
    rng, areas = np.random.default_rng(seed), np.empty(resamples)
    for row in range(resamples):
        chosen = np.concatenate([members[group] for group in rng.integers(count, size=count)])
        areas[row] = _area_above_random(u[chosen], gain[chosen])
    low, high = np.quantile(areas, (0.5 - confidence / 2, 0.5 + confidence / 2))
    return MeanInterval(_area_above_random(u, gain), float(low), float(high), count)


def _expected_in_order(u: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Gains from the most to the least uncertain; equals share their mean, the expected value of a random order."""
    index = np.unique(-u, return_inverse=True)[1]
    mean = np.bincount(index, weights=gain) / np.bincount(index)
    return mean[np.sort(index)]


def _area_above_random(u: np.ndarray, gain: np.ndarray) -> float:
    return _area(_cumulative(_expected_in_order(u, gain))) - 0.5 * float(gain.mean())


def _random_orders(gain: np.ndarray, sent: np.ndarray, orders: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums of gains [orders, s] of the first `sent` windows in random orders, and each order's area [orders]."""
    rng = np.random.default_rng(seed)
    sums, areas = np.empty((orders, len(sent))), np.empty(orders)
    for row in range(orders):
        total = _cumulative(rng.permutation(gain))
        sums[row], areas[row] = total[sent], _area(total)
    return sums, areas


def _cumulative(gain: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(gain)])


def _area(total: np.ndarray) -> float:
    """Mean over the shares 0..1 of a summed gain [n + 1], as accuracy (trapezoids)."""
    n = len(total) - 1
    return float((total.sum() - 0.5 * (total[0] + total[-1])) / n / n)


def _spearman(u: np.ndarray, values: np.ndarray) -> float:
    if np.ptp(u) == 0 or np.ptp(values.astype(float)) == 0:
        return math.nan
    try:
        from scipy.stats import spearmanr
    except ImportError as error:
        raise MissingExtraError("the uncertainty's correlation", "server", str(error)) from error
    return float(spearmanr(u, values).statistic)


def _auroc(u: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive window is more uncertain than another one; half of the equals count."""
    found, others = int(positive.sum()), int((~positive).sum())
    if not found or not others:
        return math.nan
    _, index, counts = np.unique(u, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2  # mean rank of equals
    return float((rank[index][positive].sum() - found * (found + 1) / 2) / (found * others))


def _checked(uncertainty: Sequence[float], edge: Any, server: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u = np.asarray(uncertainty, dtype=np.float64)
    right = [np.asarray(values) for values in (edge, server)]
    if u.ndim != 1 or not len(u) or any(values.shape != u.shape for values in right):
        raise ConfigError(
            f"got uncertainty {u.shape}, edge {right[0].shape} and server {right[1].shape}, expected one value a window"
        )
    if not np.isfinite(u).all():
        raise ConfigError(
            f"got {int((~np.isfinite(u)).sum())} unknown uncertainties, expected numbers; leave those out"
        )
    for values in right:
        if not np.isin(values, (0, 1)).all():
            raise ConfigError(
                "got other values than true and false, expected right or wrong; use correct(predictions, labels)"
            )
    return u, right[0].astype(bool), right[1].astype(bool)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(float(each)) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
