"""The theorem on a corpus: the corrected bound holds, a learner leaves a trace, and a kept study is the same again."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from streamsplit.evaluation import theory_study
from streamsplit.evaluation.corpus import Corpus
from streamsplit.evaluation.theory import TheorySettings
from streamsplit.evaluation.theory_study import kept_study
from streamsplit.learning.settings import LearnerSettings

SETTINGS = TheorySettings(steps=60, seeds=2, percentile=75.0)


def test_a_study_is_measured_once_and_kept(corpus: Corpus, tmp_path: Path, monkeypatch) -> None:
    soon = partial(LearnerSettings, warm_start_windows=56, buffer_windows=64)
    monkeypatch.setattr(theory_study, "LearnerSettings", soon)
    first = kept_study(corpus, tmp_path, settings=SETTINGS, heard=64)
    assert first.run.holds and first.run.bias2[-1] > 0 and first.run.split2.max() > 0
    assert len(first.trace.step) == 2 and (first.trace.sigma2 > 0).all()  # 8 mini-batches, 4 a step
    assert first.rows == len(corpus.train.windows) and first.heard == 64

    def measured_again(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(theory_study, "study_theory", measured_again)
    again = kept_study(corpus, tmp_path, settings=SETTINGS, heard=64)
    for one, two in ((first.run, again.run), (first.trace, again.trace)):
        for name in one._fields:
            if name != "settings":
                assert np.array_equal(getattr(one, name), getattr(two, name), equal_nan=True)
    assert again.run.settings == SETTINGS and again.as_dict() == first.as_dict()
    with pytest.raises(AssertionError, match="measured again"):
        kept_study(corpus, tmp_path, settings=SETTINGS.replace(steps=61), heard=64)
