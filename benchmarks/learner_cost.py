"""What learning costs a device: memory above that of a frozen encoder, and windows learned a second on one core.

    python -m benchmarks.learner_cost

One process a setting of `trained`, because memory does not shrink back. Memory is what the process holds for itself
(USS): its peak while it learns, read after every mini-batch, and what stays once freed pages are given back, both
above what 50 forward passes of the frozen encoder left. A device's stream is played: every window is embedded and
remembered, every fourth one is followed by a mini-batch of eight; then mini-batches alone are timed (process time),
beside a single forward pass. A Pi 4 takes its compute factor as long.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil
import torch

from benchmarks.record import record
from streamsplit.audio.synth import Soundscape
from streamsplit.audio.windows import cut_windows
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.learning.heap import trim_heap
from streamsplit.learning.learner import EdgeLearner
from streamsplit.learning.settings import LearnerSettings
from streamsplit.splitting.device import device_profile

GOAL_MB, GOAL_WINDOWS_PER_S, GOAL_PI4_SHARE = 35.0, 100.0, 0.6
SOUND_S = 330
LEARN_EVERY = 4  # windows, as a device without real time does
TIMED = 200  # mini-batches
STRIDE_MS = 500.0
MEGABYTE = 1e6
SEED = 0


def measure(trained: str) -> dict[str, Any]:
    """Figures of one setting, in this process."""
    torch.set_num_threads(1)
    windows = [window.features for window in cut_windows(Soundscape(SEED).read(SOUND_S * 16_000), None, 100, 50)]
    encoder = make_encoder(EncoderSettings(seed=SEED)).eval()
    one = torch.from_numpy(windows[0])[None]
    with torch.no_grad():
        for _ in range(50):
            encoder(one)
    frozen = _held()
    learner, peak = EdgeLearner(encoder, LearnerSettings(trained=trained), SEED), 0.0
    for index, window in enumerate(windows):
        learner.remember(window, z=learner.embed(window), index=index)
        if index % LEARN_EVERY == 0:
            learner.learn()
            peak = max(peak, _held(trim=False) - frozen)
    stays = _held() - frozen
    batch_s, forward_s = _timed(learner)
    settings = learner.settings
    rate = settings.batch_windows / batch_s
    host_ms = 1000 * (forward_s + batch_s / LEARN_EVERY)  # of a window
    return {
        "peak_mb": peak / MEGABYTE, "stays_mb": stays / MEGABYTE, "windows_per_s": rate, "forward_ms": 1000 * forward_s,
        "mini_batch_ms": 1000 * batch_s, "steps": learner.steps,
        "pi4_core_share": host_ms * device_profile("pi4").factor / STRIDE_MS,
    }  # fmt: skip


def _timed(learner: EdgeLearner) -> tuple[float, float]:
    """Process seconds of a mini-batch and of a single window's embedding, in turn: medians of four rounds each."""
    batches, forwards = [], []
    window = next(learner.buffer.in_order())[1][0]
    for _ in range(4):
        at = time.process_time()
        for _ in range(TIMED // 4):
            learner.learn()
        batches.append((time.process_time() - at) / (TIMED // 4))
        at = time.process_time()
        for _ in range(50):
            learner.embed(window)
        forwards.append((time.process_time() - at) / 50)
    return float(np.median(batches)), float(np.median(forwards))


def _held(*, trim: bool = True) -> int:
    if trim:
        trim_heap()
    return int(psutil.Process().memory_full_info().uss)


def main() -> int:
    """Prints and writes learner_cost.json; returns 1 where the default misses a goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", choices=("readouts", "all"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return 0
    figures: dict[str, Any] = {}
    for trained in ("readouts", "all"):
        command = [sys.executable, "-m", "benchmarks.learner_cost", "--one", trained]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        figures[trained] = found
        print(
            f"{trained}: peak +{found['peak_mb']:.1f} MB, stays +{found['stays_mb']:.1f} MB, "
            f"{found['windows_per_s']:.0f} windows/s, {found['pi4_core_share']:.0%} of a Pi 4's core"
        )
    usual = figures["readouts"]
    figures["goals_met"] = bool(
        usual["peak_mb"] <= GOAL_MB
        and usual["windows_per_s"] >= GOAL_WINDOWS_PER_S
        and usual["pi4_core_share"] < GOAL_PI4_SHARE
    )
    settings = {"sound_s": SOUND_S, "learn_every": LEARN_EVERY, "learner": LearnerSettings().as_dict()}
    print(record("learner_cost", figures, settings, [SEED]))
    return 0 if figures["goals_met"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
