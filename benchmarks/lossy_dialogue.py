"""How an echo sounds over a link that loses packets in bursts of mean 2: the voice client's own talker, frames, link,
jitter buffer and decoder, in virtual time. `python -m benchmarks.lossy_dialogue FOLDER` (utterances; extra 'codec');
with `--frames` only what became of the frames, without judging the sound, in a file of its own.

What may be lost goes as datagrams, one packet each; the rest is repeated until it arrives. Rows: loss on the way up
only, which is what a single stream would meet, and on both.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.record import record
from streamsplit.audio.files import read_audio
from streamsplit.edge.talk_settings import TalkSettings
from streamsplit.edge.talker import Talker
from streamsplit.evaluation.codec_study import speech_quality
from streamsplit.network.packets import PacketDirection, PacketLinkSettings
from streamsplit.wire.dialogue import Kind, Utterance, may_be_lost, pack_utterance, unpack_utterance
from streamsplit.wire.frame import Frame, decode_frame, encode_frame
from streamsplit.wire.talk_states import TalkState
from streamsplit.wire.types import FrameFlag, FrameType

Floats = NDArray[np.float32]
RATE_HZ, FRAME = 16_000, 320
PACKET_BYTES = 28 + 30  # IP and UDP; QUIC's header, frame and authentication
REPEATED_MS = 80.0  # after which the stream sends again what was lost
LOSSES = (0.0, 0.05, 0.10, 0.20)
ONE_WAY_MS, JITTER_MS = 20.0, 5.0
LEAST_MS = (40.0, 80.0)  # that the jitter buffer holds: the default, and enough that nothing is ever waited for


class Way:
    """One direction: what arrives when."""

    def __init__(self, loss: float, seed: int) -> None:
        settings = PacketLinkSettings(one_way_ms=ONE_WAY_MS, jitter_ms=JITTER_MS, loss=loss)
        self.link, self._under_way, self._order = PacketDirection(settings, seed), [], itertools.count()
        self._stream_ms = 0.0  # when the newest of the stream arrives: it keeps its order
        self.sent = self.lost = 0  # datagrams

    def send(self, data: bytes, now_ms: float) -> None:
        """A frame sets out."""
        arrives_s = self.link.arrival_s(now_ms / 1000.0, len(data) + PACKET_BYTES)
        if may_be_lost(data):
            self.sent += 1
            self.lost += arrives_s is None
            arrives_ms = None if arrives_s is None else 1000.0 * arrives_s
        else:
            while arrives_s is None:
                now_ms += REPEATED_MS
                arrives_s = self.link.arrival_s(now_ms / 1000.0, len(data) + PACKET_BYTES)
            arrives_ms = self._stream_ms = max(self._stream_ms, 1000.0 * arrives_s)
        if arrives_ms is not None:
            heapq.heappush(self._under_way, (arrives_ms, next(self._order), data))

    def arrived(self, until_ms: float) -> list[tuple[float, Frame]]:
        """What has arrived by then."""
        came = []
        while self._under_way and self._under_way[0][0] <= until_ms:
            at_ms, _, data = heapq.heappop(self._under_way)
            came.append((at_ms, decode_frame(data)))
        return came


def client_settings(least_ms: float) -> TalkSettings:
    """24 kbit/s throughout, as `streamsplit opus-test` has it: DTX would cost quality in the pauses."""
    talk = {"activity": {"kind": "push", "lead_ms": 0.0}, "jitter": {"least_ms": least_ms}, "adapt_bitrate": False}
    return TalkSettings.from_mapping({**talk, "opus": {"dtx": False}})


def converse(said: Floats, up: Way, down: Way, *, lossy: bool, least_ms: float) -> tuple[Floats, dict[str, int]]:
    """What is heard [n] of an utterance's echo, from its first sample, and what became of its frames."""
    talker = Talker(client_settings(least_ms), lossy=lossy)
    talker.link(True, 0.0)
    talker.press(0.0)
    frames = [said[at : at + FRAME] for at in range(0, len(said) - FRAME + 1, FRAME)]
    total, heard, now_ms = 0, [], 0.0
    while frames or talker.state is not TalkState.IDLE:
        now_ms += 20.0
        if frames:
            talker.hear(frames.pop(0), now_ms)
            if not frames:
                talker.release(now_ms)
        for out in talker.outgoing(now_ms):
            flags = FrameFlag.FINAL if out.final else FrameFlag.NONE
            up.send(encode_frame(Frame(FrameType.DIALOGUE, flags, out.sequence, 0, out.payload)), now_ms)
        for at_ms, frame in up.arrived(now_ms):  # the echo: each message as it comes, and the end behind them
            piece = unpack_utterance(frame.payload)
            total = max(total, piece.first + len(piece.frames))
            if piece.frames:
                back = pack_utterance(piece._replace(live=True))
                down.send(encode_frame(Frame(FrameType.DIALOGUE, FrameFlag.NONE, 1, 0, back)), at_ms)
            if frame.flags & FrameFlag.FINAL:
                end = pack_utterance(Utterance(piece.utterance, total, Kind.OPUS, 20.0, ()))
                down.send(encode_frame(Frame(FrameType.DIALOGUE, FrameFlag.FINAL, 1, 0, end)), at_ms + 100.0)
        for at_ms, frame in down.arrived(now_ms):
            talker.take(frame.payload, bool(frame.flags & FrameFlag.FINAL), at_ms)
        heard.append(talker.play(now_ms))
        talker.tick(now_ms)
    return np.concatenate(heard), dict(vars(talker.answer.jitter.counts))


def aligned(heard: Floats, said: Floats) -> Floats:
    """The stretch of what was heard [n] that is what was said [n]."""
    n = 1 << (len(heard) + len(said)).bit_length()
    at = int(np.fft.irfft(np.fft.rfft(heard, n) * np.conj(np.fft.rfft(said, n)), n)[: len(heard)].argmax())
    piece = heard[at : at + len(said)]
    return np.pad(piece, (0, len(said) - len(piece)))


def row(
    utterances: list[Floats], loss: float, *, both: bool, lossy: bool, least_ms: float, seeds: range, judged: bool
) -> dict[str, Any]:
    """Means over utterances and seeds."""
    found: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    for seed, (place, said) in itertools.product(seeds, enumerate(utterances)):
        up, down = Way(loss, 1_000 * seed + 2 * place), Way(loss if both else 0.0, 1_000 * seed + 2 * place + 1)
        heard, became = converse(said, up, down, lossy=lossy, least_ms=least_ms)
        for name, value in (speech_quality(said, aligned(heard, said)) if judged else {}).items():
            found.setdefault(name, []).append(value)
        found.setdefault("lost_up", []).append(up.lost / max(1, up.sent))
        counts = {name: counts.get(name, 0) + value for name, value in became.items()}
    means = {name: round(float(np.mean(values)), 4) for name, values in found.items()}
    link = {"transport": "quic" if lossy else "websocket", "loss": loss, "both_ways": both, "least_ms": least_ms}
    return {**link, **means, "frames": counts}


def main() -> None:
    """Prints the rows and records them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of utterances (.flac, .wav)")
    parser.add_argument("--utterances", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--frames", action="store_true", help="count frames only")
    args = parser.parse_args()
    paths = sorted(path for path in args.folder.iterdir() if path.suffix in (".flac", ".wav"))[: args.utterances]
    utterances = [np.asarray(read_audio(path, RATE_HZ), np.float32) for path in paths]
    seeds, judged = range(args.seeds), not args.frames
    rows = []
    for least_ms in LEAST_MS:
        rows.append(row(utterances, 0.0, both=False, lossy=False, least_ms=least_ms, seeds=range(1), judged=judged))
        for loss in LOSSES:
            for both in (False, True) if loss else (False,):
                drawn = seeds if loss else range(1)
                rows.append(row(utterances, loss, both=both, lossy=True, least_ms=least_ms, seeds=drawn, judged=judged))
                print(rows[-1], flush=True)
    settings = {
        "utterances": [path.name for path in paths], "burst": 2.0, "one_way_ms": ONE_WAY_MS, "jitter_ms": JITTER_MS,
        "talk": client_settings(LEAST_MS[0]).over_lossy_link().as_dict(),
    }  # fmt: skip
    record("lossy_dialogue" if judged else "lossy_dialogue_frames", {"rows": rows}, settings, seeds)


if __name__ == "__main__":
    main()
