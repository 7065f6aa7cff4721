"""The convergence theorem on a corpus's own embeddings, and the gradients of a real learner beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from streamsplit.evaluation.baselines.base import Budget, Effort, embedder, encoder_of, heard_by
from streamsplit.evaluation.baselines.edge_only import hear
from streamsplit.evaluation.corpus import Corpus
from streamsplit.evaluation.provenance import revision_of_code
from streamsplit.evaluation.theory import (
    Convergence,
    TheorySettings,
    measure_convergence,
    theory_trace,
    through_codec,
)
from streamsplit.learning.learner import EdgeLearner
from streamsplit.learning.settings import LearnerSettings
from streamsplit.learning.theorem import GradientTrace

SETTINGS = TheorySettings(steps=500, seeds=3, percentile=75.0)
HEARD_WINDOWS = 256  # by the learner whose gradients are shown: 16 optimiser steps after its start
ROWS = 400  # at most, windows that the head is fitted to
_ARRAYS = tuple(name for name in Convergence._fields if name != "settings")


class TheoryStudy(NamedTuple):
    """The bound beside the observed gradient of a strongly convex head, and a learner's trace, without a bound."""

    run: Convergence
    trace: GradientTrace
    rows: int  # windows of the head's problem
    heard: int  # windows that the learner heard

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, curves thinned."""
        trace = {name: values.tolist() for name, values in self.trace._asdict().items()}
        return {"convergence": self.run.as_dict(), "trace": trace, "rows": self.rows, "heard": self.heard}


def study_theory(
    corpus: Corpus, seed: int = 0, *, settings: TheorySettings = SETTINGS, heard: int = HEARD_WINDOWS
) -> TheoryStudy:
    """A device learns from `heard` windows of the stream; a head is then fitted to embeddings of training windows.

    The head's rows cross as int8 embeddings, and only those that it is least sure of are sent (`settings.percentile`).
    """
    learner = EdgeLearner(encoder_of(seed), LearnerSettings(), seed)
    effort = Effort()
    for number, (_, row, continuous) in enumerate(heard_by(corpus, Budget(heard=heard), seed)):
        hear(learner, corpus, row, number, continuous, effort)
        learner.learn()
    part = corpus.train
    rows = np.sort(np.random.default_rng([seed, 97]).permutation(len(part.windows))[:ROWS])
    labels = [part.labels[owner] for owner in part.owners[rows]]
    run = measure_convergence(embedder(learner.key)(part.batch(rows)), labels, settings, crossing=through_codec())
    return TheoryStudy(run, theory_trace(learner), len(rows), effort.heard)


def kept_study(
    corpus: Corpus, folder: Path, *, settings: TheorySettings = SETTINGS, heard: int = HEARD_WINDOWS
) -> TheoryStudy:
    """The study of this corpus that `folder` holds, or a new one, which is left there."""
    path = folder / f"{corpus.name}-theory.npz"
    held = [corpus.fingerprint, corpus.hearing.as_dict(), corpus.fleet, settings.as_dict(), heard, revision_of_code()]
    about = json.dumps(held)
    study = load_study(path, about)
    if study is None:
        study = study_theory(corpus, settings=settings, heard=heard)
        folder.mkdir(parents=True, exist_ok=True)
        save_study(study, path, about)
    return study


def save_study(study: TheoryStudy, path: Path, about: str) -> None:
    """Writes it all, with what it was measured on; `load_study` gives it back for the same `about` only."""
    held = {name: np.asarray(getattr(study.run, name)) for name in _ARRAYS}
    held |= {f"trace_{name}": values for name, values in study.trace._asdict().items()}
    record = {"about": about, "rows": study.rows, "heard": study.heard, "settings": study.run.settings.as_dict()}
    with path.open("wb") as file:
        np.savez_compressed(file, record=np.array(json.dumps(record)), **held)  # type: ignore[arg-type]


def load_study(path: Path, about: str) -> TheoryStudy | None:
    """The study in a file, None where there is none or it was measured on something else."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as held:
        record = json.loads(str(held["record"]))
        if record["about"] != about:
            return None
        values: dict[str, Any] = {name: held[name] if held[name].ndim else float(held[name]) for name in _ARRAYS}
        trace = GradientTrace(*(held[f"trace_{name}"] for name in GradientTrace._fields))
    run = Convergence(**values, settings=TheorySettings.from_mapping(record["settings"]))
    return TheoryStudy(run, trace, record["rows"], record["heard"])
