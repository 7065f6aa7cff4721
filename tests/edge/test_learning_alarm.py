"""The device says once that its embeddings collapse, and once that they have recovered."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from streamsplit.audio.synth import Soundscape
from streamsplit.audio.windows import WindowStream
from streamsplit.edge.counters import Counters
from streamsplit.edge.emulation import RealDevice
from streamsplit.edge.learning import LearningLoop
from streamsplit.edge.model import EncoderModel
from streamsplit.edge.payload import PieceChain
from streamsplit.edge.pipeline import Surroundings, WindowPipeline
from streamsplit.edge.readings import Readings
from streamsplit.edge.settings import EdgeSettings
from streamsplit.learning.collapse import CollapseSettings, CollapseWatch
from streamsplit.splitting.link import LinkEstimate
from streamsplit.splitting.policy import make_policy
from streamsplit.splitting.table import packaged_table
from streamsplit.splitting.transmission import UncertaintyGate


def test_the_alarm_is_said_once_at_its_start_and_once_at_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = EdgeSettings.from_mapping({"device": {"id": "edge-1", "state_dir": str(tmp_path)}})
    model = EncoderModel(settings)
    device = RealDevice(settings.device.profile)
    notes: list[dict[str, Any]] = []
    problems: list[str] = []
    counters = Counters()
    loop = LearningLoop(
        settings, model, device, counters, lambda kind, **values: notes.append({"kind": kind, **values}),
        problems.append, paced=True, behind=lambda: False,
    )  # fmt: skip
    pipeline = WindowPipeline(
        model, packaged_table(settings.encoder.name, settings.device.profile), make_policy(settings.policy),
        UncertaintyGate(settings.splitting.gate), device, PieceChain(100, 50),
    )  # fmt: skip
    around = Surroundings(Readings(0.3, 0.4), LinkEstimate(5e6, 100.0, 40.0, 100.0, 0), True, 0)
    watch = CollapseWatch(CollapseSettings(smoothing=0.1, first_at=1, reference_at=2))
    model.learner.collapse = watch
    windows = WindowStream().push(Soundscape(0).read(16_000 * 5))
    position = 0
    with caplog.at_level(logging.WARNING, "streamsplit.edge.learning"):
        for window, rank in zip(windows, (40, 40, 40, 40, 5, 4, 4, 40, 40), strict=False):
            position += 1
            watch.observe(position, rank)
            loop.heard(window, pipeline.process(window, around))
            assert counters.collapsed is watch.collapsed, "what STATS will say"
    assert [note["collapsed"] for note in notes if note["kind"] == "collapse"] == [True, False]
    assert len(problems) == 1 and "effective rank" in problems[0] and "13% of its reference" in problems[0]
    assert [record.getMessage() for record in caplog.records] == ["embeddings no longer collapse"]
