"""What a trained encoder's uncertainty is worth on a corpus: a device at a cut, the server behind it, real memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

from streamsplit.encoders.base import SplitEncoder
from streamsplit.errors import ConfigError
from streamsplit.evaluation.corpus import Corpus, Part
from streamsplit.evaluation.probe import fit_sure_probe
from streamsplit.evaluation.statistics import MeanInterval
from streamsplit.evaluation.transmission import (
    GatePoint,
    TransmissionCurve,
    UncertaintyQuality,
    area_interval,
    correct,
    gate_curve,
    transmission_curve,
    uncertainty_quality,
)
from streamsplit.learning.learner import EdgeLearner
from streamsplit.learning.settings import LearnerSettings

BLOCK = 4  # the device runs blocks 1..4 and answers by the early exit there
TRAIN_WINDOWS = 600  # at most, that each probe is trained on
HEARD_WINDOWS = 3000  # at most, that the memory has heard
MEASURES = ("v2", "v1", "context")  # what a device can compute without labels: LearnerSettings.uncertainty
CLASSIFIER = "classifier"  # 1 - probability of the device's own answer: needs a probe, and so labels, on the device
_BATCH = 64


class MeasureWorth(NamedTuple):
    """What one measure of uncertainty is worth over the same windows."""

    quality: UncertaintyQuality
    curve: TransmissionCurve
    interval: MeanInterval  # of the curve's area above random sending, over whole recordings

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; nan becomes None."""
        return {
            "quality": self.quality.as_dict(), "curve": self.curve.as_dict(),
            "area_interval": self.interval.as_dict(),
        }  # fmt: skip


class UncertaintyStudy(NamedTuple):
    """Per-window uncertainty on the test part against the edge's errors and what sending repairs."""

    block: int
    quality: UncertaintyQuality
    curve: TransmissionCurve
    interval: MeanInterval  # of the curve's area above random sending, over whole recordings
    gate: tuple[GatePoint, ...]  # over the same windows, so with its warm-up
    heard: int  # windows that the memory learned from
    measures: Mapping[str, MeasureWorth]  # every measure, by name; the device's own is among them

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; nan becomes None."""
        gate = [point._asdict() for point in self.gate]
        return {
            "block": self.block, "quality": self.quality.as_dict(), "curve": self.curve.as_dict(),
            "area_interval": self.interval.as_dict(), "gate": gate, "heard": self.heard,
            "measures": {name: worth.as_dict() for name, worth in self.measures.items()},
        }  # fmt: skip


def study_uncertainty(
    corpus: Corpus, encoder: SplitEncoder, seed: int = 0, *, learner: LearnerSettings | None = None, block: int = BLOCK
) -> UncertaintyStudy:
    """Hears the corpus's stream into a device's memory, then asks it about every test window at a cut after `block`.

    The device's answer is a probe's on the early exit, the server's a probe's on the embedding; both are trained on
    windows of the training part. Test windows come as a stream, which is the order the live gate sees. Beside the
    uncertainty that the learner's settings choose, all MEASURES are asked about the same windows, and the device's
    own classifier (CLASSIFIER) for comparison. Raises ConfigError for a block that the encoder does not have.
    """
    if not 0 < block < encoder.num_blocks:
        raise ConfigError(f"got a cut after block {block}, expected 1..{encoder.num_blocks - 1} of {encoder.name}")
    settings = (learner or LearnerSettings()).replace(warm_start=False)
    devices = {name: EdgeLearner(encoder, settings.replace(uncertainty=name), seed) for name in MEASURES}
    device = devices[settings.uncertainty]
    heard = [row for row, _ in islice(corpus.stream(seed), min(HEARD_WINDOWS, len(corpus.learn.windows)))]
    _, remembered = _exits(device.key, corpus.learn, np.array(heard), block)
    for index, z in enumerate(remembered):
        for each in devices.values():
            each.hold(z, index)
    train_rows, test_rows = _drawn(len(corpus.train.windows), seed), _as_stream(corpus, seed)
    train, test = (
        _exits(device.key, part, rows, block)
        for part, rows in ((corpus.train, train_rows), (corpus.test, test_rows))
    )  # fmt: skip
    (names, groups), (truth, recordings) = (
        (_of_pieces(part, part.labels, rows), _of_pieces(part, part.recordings, rows))
        for part, rows in ((corpus.train, train_rows), (corpus.test, test_rows))
    )
    (edge_right, sure), (server_right, _) = (
        (correct(said, truth), shares)
        for said, shares in (
            fit_sure_probe(known, names, groups=groups, seed=seed)(asked)
            for known, asked in zip(train, test, strict=True)
        )
    )
    doubts = {
        name: [each.uncertainty(z, features, block) for z, features in zip(
            test[0], corpus.test.batch(test_rows), strict=True)]
        for name, each in devices.items()
    }  # fmt: skip
    doubts[CLASSIFIER] = (1.0 - sure).tolist()
    worth = {
        name: MeasureWorth(
            uncertainty_quality(values, edge_right, server_right),
            transmission_curve(values, edge_right, server_right, seed=seed),
            area_interval(values, edge_right, server_right, recordings, seed=seed),
        )
        for name, values in doubts.items()
    }
    gate = gate_curve(doubts[settings.uncertainty], edge_right, server_right, after_warm_up=False, seed=seed)
    return UncertaintyStudy(block, *worth[settings.uncertainty], tuple(gate), len(heard), worth)


def curve_of(held: Mapping[str, Any]) -> tuple[TransmissionCurve, list[GatePoint]]:
    """Curve and gate of an `as_dict()` that went through JSON."""
    return _curve(held), [GatePoint(**point) for point in held["gate"]]


def curves_of(held: Mapping[str, Any]) -> dict[str, TransmissionCurve]:
    """Every measure's curve, by name, of an `as_dict()` that went through JSON."""
    return {name: _curve(worth) for name, worth in measures_of(held).items()}


def measures_of(held: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Every measure's worth, by name, of an `as_dict()` that went through JSON; of older ones the device's own."""
    return held.get("measures") or {"own": held}


@torch.no_grad()
def _exits(encoder: SplitEncoder, part: Part, rows: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Early exits after `block` and embeddings, each [n, d]."""
    early, whole = [], []
    for start in range(0, len(rows), _BATCH):
        crossing = encoder.forward_to(torch.from_numpy(part.batch(rows[start : start + _BATCH])), block)
        early.append(encoder.exit_embedding(crossing, block).numpy())
        whole.append(encoder.forward_from(crossing, block).numpy())
    return np.concatenate(early), np.concatenate(whole)


def _drawn(count: int, seed: int) -> np.ndarray:
    chosen = np.random.default_rng([seed, 91]).permutation(count)[:TRAIN_WINDOWS]
    return np.sort(chosen)


def _as_stream(corpus: Corpus, seed: int) -> np.ndarray:
    """Rows of the test part's windows, its pieces in the order of a stream."""
    heard = replace(corpus, learn=corpus.test, follows=())
    order = heard.order(seed)[0]
    return np.concatenate([np.flatnonzero(corpus.test.owners == piece) for piece in order])


def _of_pieces(part: Part, values: tuple[str, ...], rows: np.ndarray) -> list[str]:
    return [values[owner] for owner in part.owners[rows]]


def _curve(held: Mapping[str, Any]) -> TransmissionCurve:
    return TransmissionCurve(**{name: _number(value) for name, value in held["curve"].items()})


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return np.array([_number(each) for each in value], np.float64)
    return math.nan if value is None else value
