"""A codec training with its files: checkpoint, figures as CSV, and the published codec at the end."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from streamsplit.codec.tinystream.settings import TinyStreamSettings
from streamsplit.config import Settings, section, setting
from streamsplit.errors import CheckpointError, ConfigError
from streamsplit.evaluation.codec_sounds import CodecDataSettings, CodecEvaluationSettings
from streamsplit.refinement.codec_training import CodecHealth, CodecStep, CodecTraining, CodecTrainingSettings
from streamsplit.server.checkpoint import write_atomic
from streamsplit.weights.codec_file import pack_codec

CHECKPOINT, FIGURES, CODEC = "checkpoint.safetensors", "figures.csv", "codec.safetensors"
COLUMNS = (
    "step", "mel_db", "waveform", "commitment", "adversarial", "discriminator", "revived", "held_out_mel_db",
    "held_out_mel_db_one", "held_out_mel_db_unquantized", "effective_rank", "perplexity",
    "least_perplexity", "process_s",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CodecSettings(Settings):
    """A codec's YAML file."""

    codec: TinyStreamSettings = section(TinyStreamSettings)
    training: CodecTrainingSettings = section(CodecTrainingSettings)
    data: CodecDataSettings = section(CodecDataSettings)
    evaluation: CodecEvaluationSettings = section(CodecEvaluationSettings)
    seed: int = setting(0, low=0)


class Told(NamedTuple):
    """Progress of a run."""

    step: CodecStep
    health: CodecHealth | None  # the last one of this run


def run_training(
    training: CodecTraining, output: Path, card: dict[str, Any], *, resume: bool, tell: Callable[[Told], None]
) -> CodecHealth:
    """Trains to the settings' last step and writes CODEC; gives the last look at the latent.

    Every look writes CHECKPOINT and a row of FIGURES (means over the steps since the one before), so a stopped run
    goes on with `resume`. Raises ConfigError for a folder that holds a run where `resume` is False, CheckpointError
    where it is True and there is none, or one of other settings; CollapseError, see `CodecTraining.health`.
    """
    checkpoint = output / CHECKPOINT
    if resume:
        training.load(_read(checkpoint))
    elif checkpoint.exists():
        raise ConfigError(f"{output}: holds a training already; go on with --resume, or use another --output-dir")
    output.mkdir(parents=True, exist_ok=True)
    settings = training.settings
    health: CodecHealth | None = None
    with _figures(output / FIGURES, training.step_number) as write:
        steps: list[CodecStep] = []
        while training.step_number < settings.steps:
            steps.append(training.step())
            tell(Told(steps[-1], health))
            if training.step_number % settings.health_steps == 0 or training.step_number == settings.steps:
                health = training.health()
                write(steps, health)
                write_atomic(checkpoint, training.state())
                steps = []
    last = health or training.health()
    metrics = {
        "held_out_mel_db": last.mel_db, "held_out_mel_db_first_quantizer": last.mel_db_one,
        "effective_rank": last.effective_rank,
    }  # fmt: skip
    published = card | {"metrics": metrics, "steps": last.step}
    write_atomic(output / CODEC, pack_codec(training.model, training.peaks(), published))
    return last


def _read(checkpoint: Path) -> bytes:
    try:
        return checkpoint.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{checkpoint}: cannot be read ({error.strerror or error}); start without --resume"
        ) from None


@contextmanager
def _figures(path: Path, step: int) -> Iterator[Callable[[list[CodecStep], CodecHealth], None]]:
    """Appends rows to the CSV; rows after `step`, which a stopped run wrote behind its checkpoint, are taken out.

    Process seconds go on from the last row kept; after one of a file without them they are nan, as what they are the
    rest of is not known.
    """
    kept: list[list[str]] = []
    before, started = 0.0, time.process_time()
    if step and path.is_file():
        rows = [
            row for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))) if int(row["step"]) <= step
        ]
        kept = [[row.get(name) or "nan" for name in COLUMNS] for row in rows]
        before = float(kept[-1][-1]) if kept else math.nan
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        table.writerows(kept)

        def write(steps: list[CodecStep], health: CodecHealth) -> None:
            means = np.array([step[1:] for step in steps], float).mean(0)
            seconds = before + time.process_time() - started
            figures = [*means, *health[1:5], float(np.mean(health.perplexity)), min(health.perplexity), seconds]
            table.writerow([health.step, *(f"{value:.5g}" for value in figures)])
            file.flush()

        yield write
