"""What lost packets cost: a stream of Opus through the jitter buffer and the decoder that a voice client has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamsplit.codec.jitter import JitterBuffer, Play
from streamsplit.codec.opus_stream import OpusDecoderStream, OpusEncoderStream, OpusSettings
from streamsplit.evaluation.codec_study import speech_quality
from streamsplit.network.bursts import BurstLoss

Floats = NDArray[np.float32]
BURST = 2.0  # packets that are lost in a row, on average
RECEIVERS = ("silence", "concealed", "recovered")
"""A lost frame as silence; concealed; recovered from the packet after it where that is there, else concealed."""


class LossRow(NamedTuple):
    """One receiver at one rate of loss."""

    loss: float  # share of packets, as drawn
    receiver: str
    fec: bool  # whether the stream carried forward error correction
    kbit_s: float
    quality: dict[str, float]


def lost_packets(count: int, share: float, rng: np.random.Generator, burst: float = BURST) -> NDArray[np.bool_]:
    """Which of `count` packets are lost: two states, runs of `burst` on average (Gilbert 1960)."""
    bursts = BurstLoss(share, burst, rng.random)
    return np.array([bursts.lost() for _ in range(count)], bool)


def receive(packets: Sequence[bytes], lost: NDArray[np.bool_], settings: OpusSettings, receiver: str) -> Floats:
    """What is played [n] of a stream whose packets come in time or not at all; begins with the first frame."""
    frame_ms, played = settings.frame_ms, []
    buffer = JitterBuffer(frame_ms=frame_ms, fec=receiver == "recovered")
    decoder = OpusDecoderStream(frame_ms)
    for place in range(len(packets) + round(1_000 / frame_ms)):
        if place < len(packets) and not lost[place]:
            buffer.push(place, packets[place], place * frame_ms)
        if place == len(packets):
            buffer.finish(len(packets))
        decision = buffer.pull(place * frame_ms)
        if decision.play is Play.END:
            break
        if decision.play is Play.PACKET:
            played.append(decoder.decode(decision.data))
        elif decision.play is Play.RECOVER:
            played.append(decoder.recover(decision.data))
        elif decision.play is not Play.NOTHING:
            concealed = decoder.conceal()
            played.append(np.zeros_like(concealed) if receiver == "silence" else concealed)
    return np.concatenate(played) if played else np.zeros(0, np.float32)


def study(
    audio: Floats, losses: Sequence[float], settings: OpusSettings, seed: int = 0
) -> tuple[list[LossRow], Floats]:
    """Rows for every rate of loss and receiver, and the sound of the last one. Raises MissingExtraError without pystoi
    and pesq."""
    rows, heard = [], audio
    for loss in (0.0, *losses):
        lost = lost_packets(len(audio) // settings.frame_samples, loss, np.random.default_rng(seed))
        lost[0] = False
        for receiver in RECEIVERS if loss else RECEIVERS[1:]:
            fec = receiver == "recovered"
            made = settings.replace(fec=fec, expected_loss=loss if fec else 0.0, dtx=False)
            encoder = OpusEncoderStream(made)
            size = made.frame_samples
            packets = [encoder.encode(audio[at : at + size]) for at in range(0, len(audio) - size + 1, size)]
            heard = receive(packets, lost, made, receiver)[encoder.lookahead :]
            whole = min(len(heard), len(audio))
            seconds = len(packets) * made.frame_ms / 1000.0
            kbit_s = 8e-3 * sum(map(len, packets)) / seconds
            rows.append(
                LossRow(float(lost.mean()), receiver, fec, kbit_s, speech_quality(audio[:whole], heard[:whole]))
            )
    return rows, heard


def as_dicts(rows: Sequence[LossRow]) -> list[dict[str, Any]]:
    """For JSON."""
    return [row._asdict() for row in rows]
