"""Learning on one device without any server: windows in, embeddings and their uncertainty out.

`python examples/learn_alone.py [FILE]` learns from a recording, or from a minute of synthetic sound.
"""

from __future__ import annotations

import sys

import numpy as np

from streamsplit.audio.files import read_audio
from streamsplit.audio.synth import Soundscape
from streamsplit.audio.windows import WindowStream
from streamsplit.encoders.factory import make_encoder
from streamsplit.learning.learner import EdgeLearner
from streamsplit.learning.settings import LearnerSettings

SECONDS = 60


def main() -> None:
    """Prints what the learner knows, every twenty windows."""
    audio = read_audio(sys.argv[1]) if len(sys.argv) > 1 else Soundscape(seed=0).read(SECONDS * 16_000)
    stream = WindowStream()
    learner = EdgeLearner(make_encoder(), LearnerSettings(warm_start_windows=56, buffer_windows=96))
    for start in range(0, len(audio), 16_000):  # as it would come from a microphone
        for window in stream.push(np.asarray(audio[start : start + 16_000])):
            seen = learner.observe(window.features, window.index, window.end_ms)
            if window.index % 20 == 0:
                loss = "no step yet" if learner.last_loss is None else f"loss {learner.last_loss:.3f}"
                print(
                    f"{window.end_ms / 1000:6.1f} s  uncertainty {seen.uncertainty:.2f} nats, {seen.steps} steps, "
                    f"{loss}, effective rank {seen.effective_rank:.1f}"
                )


if __name__ == "__main__":
    main()
