"""The uncertainty's worth on a corpus: answers are those of exits computed one by one, JSON gives the curve back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from streamsplit.errors import ConfigError
from streamsplit.evaluation.baselines.base import encoder_of, pca_started
from streamsplit.evaluation.corpus import Corpus, synthetic_corpus
from streamsplit.evaluation.probe import fit_probe
from streamsplit.evaluation.transmission_plot import transmission_figure
from streamsplit.evaluation.uncertainty_study import CLASSIFIER, MEASURES, curve_of, curves_of, study_uncertainty


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return synthetic_corpus(20, 40.0)


def test_edge_and_server_answer_as_single_windows_do(corpus: Corpus) -> None:
    encoder = pca_started(encoder_of(0), corpus, 0)
    study = study_uncertainty(corpus, encoder, block=3)
    vectors = []
    with torch.no_grad():
        for part in (corpus.train, corpus.test):
            rows = []
            for row in range(len(part.windows)):
                crossing = encoder.forward_to(torch.from_numpy(part.batch(slice(row, row + 1))), 3)
                z = (encoder.exit_embedding(crossing, 3), encoder.forward_from(crossing, 3))
                rows.append([one[0].numpy() for one in z])
            vectors.append(np.array(rows))
    names = [[part.labels[owner] for owner in part.owners] for part in (corpus.train, corpus.test)]
    groups = [corpus.train.sources[owner] for owner in corpus.train.owners]
    rights = []
    for which in (0, 1):
        said = fit_probe(vectors[0][:, which], names[0], groups=groups)(vectors[1][:, which])
        rights.append(np.mean([a == b for a, b in zip(said, names[1], strict=True)]))
    assert study.curve.edge_accuracy == pytest.approx(rights[0], abs=0.03)  # rounding may turn a close call
    assert study.curve.server_accuracy == pytest.approx(rights[1], abs=0.03)
    assert study.quality.windows == len(corpus.test.windows) == study.curve.windows
    assert study.interval.n == 20 and study.interval.low <= study.interval.mean <= study.interval.high
    assert study.gate[0].share >= study.gate[-1].share and study.heard == len(corpus.learn.windows)
    for point in study.gate:  # as many windows as are not sent may differ, and no more: both are over all windows
        assert abs(point.accuracy - study.curve.server_accuracy) <= 1 - point.share + 1e-9
    curve, gate = curve_of(json.loads(json.dumps(study.as_dict())))
    assert np.allclose(curve.by_uncertainty, study.curve.by_uncertainty) and tuple(gate) == study.gate
    curves = curves_of(json.loads(json.dumps(study.as_dict())))
    assert set(curves) == {*MEASURES, CLASSIFIER}
    assert np.allclose(curves["v2"].by_uncertainty, curve.by_uncertainty)  # the default is one of them
    assert len({curve.edge_accuracy for curve in curves.values()}) == 1  # over the same windows
    labels = [line.get_label() for line in transmission_figure(curve, gate, curves).axes[0].get_lines()]
    assert all(f"by {name}" in labels for name in curves)
    assert study.measures[CLASSIFIER].quality.auroc_error > 0.6


def test_a_cut_outside_of_the_encoder_is_refused(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match="after block 99"):
        study_uncertainty(corpus, encoder_of(0), block=99)
