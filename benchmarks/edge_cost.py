"""What a window costs a device beside its encoder: features, memory, policy and framing against one forward pass.

    python -m benchmarks.edge_cost

All in process time, in one run, rounds of every part in turn (so that a slow moment of the machine hits all of them);
medians over the rounds. The goal is at most 25 % of one encoder forward.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.record import record
from streamsplit.audio.synth import Soundscape
from streamsplit.audio.windows import Window, WindowStream
from streamsplit.edge.payload import pack_result
from streamsplit.edge.pipeline import Surroundings, observe
from streamsplit.edge.queue import OfflineQueue
from streamsplit.edge.readings import Readings
from streamsplit.edge.settings import EdgeSettings
from streamsplit.learning.mixture import GaussianMixture
from streamsplit.splitting.link import LinkEstimate
from streamsplit.splitting.policy import make_policy
from streamsplit.splitting.table import packaged_table
from streamsplit.splitting.transmission import UncertaintyGate
from streamsplit.wire.frame import Frame, encode_frame
from streamsplit.wire.media import Encoding, MediaHeader, pack_media
from streamsplit.wire.types import FrameFlag, FrameType

GOAL = 0.25
COUNTED = {
    "encoder": "one full forward pass at batch 1; the measure, not part of the share",
    "features": "half a second of new sound, in blocks of 0.1 s, to one window of log-mel",
    "memory": "uncertainty of the embedding, and one update of the mixture",
    "policy": "observation, choice of a cut among all rows of the table, transmission gate",
    "framing": "packing an embedding, media header, the durable queue's accept, acknowledge and answer, one frame",
}
ROUNDS = 300
SEED = 0


def main() -> int:
    """Measures, prints, writes benchmarks/results/edge_cost.json; returns 1 where the goal is missed."""
    import torch

    from streamsplit.encoders.factory import make_encoder

    torch.set_num_threads(1)
    settings = EdgeSettings()
    encoder = make_encoder(settings.encoder)
    audio = _audio(seconds=ROUNDS / 2 + 10)
    windows = _windows(audio[: 16_000 * 60])
    embeddings = _embeddings(encoder, windows)
    mixture = GaussianMixture(settings.memory_bank.components, encoder.embedding_dim)
    for z in embeddings:
        mixture.observe(z)
    policy, gate = make_policy(settings.policy), UncertaintyGate(settings.splitting.gate)
    table = packaged_table(settings.encoder.name, settings.device.profile)
    stream = WindowStream(settings.audio.log_mel, settings.audio.window_frames, settings.audio.stride_frames)
    stream.push(audio[:16_400])
    samples, at = 160 * settings.audio.stride_frames, 16_400
    temperature = settings.learner.entropy_temperature
    around = Surroundings(Readings(0.3, 0.4), LinkEstimate(5e6, 100.0, 40.0, 100.0, 0), True, 2_000)

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        queue = OfflineQueue(Path(folder) / "queue.sqlite")
        parts: dict[str, list[float]] = {name: [] for name in ("encoder", "features", "memory", "policy", "framing")}
        for index in range(ROUNDS):
            window, z = windows[index % len(windows)], embeddings[index % len(embeddings)]
            x = torch.from_numpy(window.features).unsqueeze(0)
            parts["encoder"].append(_process_ms(partial(encoder, x)))
            piece = audio[at : at + samples]
            at += samples
            parts["features"].append(_process_ms(partial(_push, stream, piece)))
            parts["memory"].append(_process_ms(partial(_remember, mixture, z, temperature)))

            def decide(uncertainty: float = float(index % 4)) -> None:
                observation = observe(around, uncertainty, None)
                policy.decide(observation, table)
                gate.decide(observation)

            parts["policy"].append(_process_ms(decide))

            def frame(number: int = index, z: np.ndarray = z) -> None:
                packed = pack_result(z, Encoding.EMBEDDING_FP16)
                header = MediaHeader(number, 1, encoder.num_blocks, Encoding.EMBEDDING_FP16, 0, 0, 1.0, 0, 5.0, 0)
                payload = pack_media(header, packed.payload)
                sequence = queue.accept(packed.frame_type, number, number, payload) or 0
                encode_frame(Frame(FrameType.EMBEDDING, FrameFlag.NUMBERED, sequence, number, payload))
                queue.acknowledge(sequence)
                queue.take_result(sequence)

            parts["framing"].append(_process_ms(frame))
        queue.close()

    median = {name: float(np.median(values)) for name, values in parts.items()}
    beside = sum(value for name, value in median.items() if name != "encoder")
    share = beside / median["encoder"]
    figures = {f"{name}_ms": round(value, 4) for name, value in median.items()}
    figures |= {"beside_encoder_ms": round(beside, 4), "share_of_encoder": round(share, 4), "goal": GOAL}
    figures["counted"] = COUNTED
    path = record("edge_cost", figures, {"rounds": ROUNDS, "encoder": settings.encoder.as_dict()}, [SEED])
    for name, value in median.items():
        print(f"{name:>9} {value:7.3f} ms  {COUNTED[name]}")
    print(f"features, memory, policy and framing {beside:.3f} ms = {share:.1%} of a forward pass (goal {GOAL:.0%})")
    print("not counted: sockets, learning, the encoder itself")
    print(path)
    return 0 if share <= GOAL else 1


def _process_ms(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return (time.process_time() - started) * 1000


def _remember(mixture: GaussianMixture, z: np.ndarray, temperature: float) -> None:
    mixture.entropy(z, temperature)
    mixture.observe(z)


def _push(stream: WindowStream, piece: np.ndarray) -> list[Window]:
    """Half a second of sound in the blocks that a device hears it in."""
    windows: list[Window] = []
    for start in range(0, len(piece), 1600):
        windows += stream.push(piece[start : start + 1600])
    return windows


def _audio(seconds: float) -> np.ndarray:
    blocks, length = [], 0
    for samples, _ in Soundscape(SEED).blocks(16_000):
        blocks.append(samples)
        length += len(samples)
        if length >= seconds * 16_000:
            break
    return np.concatenate(blocks)


def _windows(audio: np.ndarray) -> list[Window]:
    return WindowStream().push(audio)


def _embeddings(encoder, windows: list[Window]) -> list[np.ndarray]:  # type: ignore[no-untyped-def]
    import torch

    with torch.no_grad():
        return [encoder(torch.from_numpy(window.features).unsqueeze(0))[0].numpy() for window in windows]


if __name__ == "__main__":
    sys.exit(main())
