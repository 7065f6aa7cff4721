"""A given encoder's weights as a row of the table: nothing is learned, the file is only judged."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load

from streamsplit.encoders.base import SplitEncoder
from streamsplit.encoders.factory import ENCODERS
from streamsplit.errors import CheckpointError, RevisionError
from streamsplit.evaluation.baselines.base import Budget, Effort, Outcome, Progress, Stopwatch, embedder, encoder_of
from streamsplit.evaluation.corpus import Corpus
from streamsplit.weights.pretrained import is_published, pretrained_encoder, read_pretrained
from streamsplit.weights.revision import load_weights


class GivenEncoder:
    """The encoder in a safetensors file: weights by name, as a server keeps its revisions, or a published encoder.

    Raises CheckpointError.
    """

    def __init__(self, path: str | Path, name: str = "", about: str = "") -> None:
        """`name` and `about` are the row's; by default they say the file's name and hash, and the architecture."""
        path = Path(path)
        self._encoder, digest = read_encoder(path)
        self.name = name or f"{path.stem}@{digest[:8]}"
        self.about = about or f"given {self._encoder.name}"

    def run(self, corpus: Corpus, budget: Budget, seed: int, progress: Progress) -> Outcome:
        """Takes no step."""
        watch = Stopwatch()
        return Outcome(embedder(self._encoder), Effort(cpu_s=watch.read()), math.nan, math.nan, encoder=self._encoder)


def read_encoder(path: Path) -> tuple[SplitEncoder, str]:
    """The encoder of whichever architecture fits the file, and its revision if published, else the SHA-256 of the file.

    Raises CheckpointError where the file is missing, is no safetensors file or fits none of the known encoders.
    """
    try:
        data = path.read_bytes()
        weights = load(data)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); give a safetensors file") from None
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: is not a safetensors file of weights ({error})") from None
    if is_published(path):
        found = read_pretrained(path)
        return pretrained_encoder(found), found.revision
    reasons = []
    for name in ENCODERS:
        encoder = encoder_of(0, name)
        try:
            load_weights(encoder, weights)
        except RevisionError as error:
            reasons.append(f"{name}: {error}")
        else:
            return encoder, hashlib.sha256(data).hexdigest()
    raise CheckpointError(
        f"{path}: got weights of another architecture, expected one of {', '.join(ENCODERS)} ({reasons[0]})"
    )
